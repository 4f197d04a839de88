package testnet_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/peer"
	"github.com/covey-cache/covey/testnet/scenario"
	"github.com/covey-cache/covey/testnet/sim"
)

// The simulation above the transport and whole agents on libp2p are given the
// same scenario to read, in the same orders, and agree on what left the origin
// and on where the bytes of each epoch came from.
func TestSimulationAgreesWithAgents(t *testing.T) {
	const files, size = 240, 64 << 10
	nodes := 20
	if testing.Short() {
		nodes = 12
	}
	s, err := scenario.Parse("cross-check", fmt.Appendf(nil,
		"nodes: %d\nepochs: 3\nreaders: 2\ncompute: 50ms\ndata: {objects: %d, size: 64KiB, block: 64KiB}\nexpect: [origin_ratio == 1]\n", nodes, files))
	if err != nil {
		t.Fatal(err)
	}
	c := s.Cases[0]
	orders := make([][][]int, c.Epochs)
	for e := range orders {
		orders[e] = sim.Orders(c, e+1)
	}
	contents := map[string]int{}
	for i := range files {
		contents[fmt.Sprintf("f%04d", i)] = size
	}
	dir := filepath.Join(t.TempDir(), "data")
	writeFiles(t, dir, contents)

	var agents []sim.Sources
	synctest.Test(t, func(t *testing.T) { agents = readWithAgents(t, nodes, dir, orders, size) })
	var simulated *sim.Result
	synctest.Test(t, func(t *testing.T) {
		if simulated, err = sim.Run(t.Context(), c, sim.Options{Scenario: s.Name}); err != nil {
			t.Fatal(err)
		}
	})
	d := float64(files * size)
	near := func(epoch int, what string, real, simulated int64) {
		t.Helper()
		// While the data set is cold, nodes that wait for others read in turn for
		// them, and who does follows from the extents, which the simulation cuts at
		// other names.
		most := 0.1
		if epoch == 1 {
			most = 0.3
		}
		if diff := float64(real-simulated) / d; diff > most || diff < -most {
			t.Errorf("epoch %d, %s: %.4f of the data set with agents, %.4f simulated", epoch, what, float64(real)/d, float64(simulated)/d)
		}
	}
	for i, e := range simulated.Epochs {
		t.Logf("epoch %d: agents %+v, simulated %+v", e.Epoch, agents[i], e.Bytes)
		near(e.Epoch, "local", agents[i].Local, e.Bytes.Local)
		near(e.Epoch, "neighbour", agents[i].Neighbour, e.Bytes.Neighbour)
		if agents[i].Origin != e.Bytes.Origin {
			t.Errorf("epoch %d: %d bytes from the origin with agents, %d simulated", e.Epoch, agents[i].Origin, e.Bytes.Origin)
		}
	}
	if agents[0].Origin != files*size {
		t.Errorf("the agents read %d bytes from the origin, of a data set of %d", agents[0].Origin, files*size)
	}
}

// readWithAgents has whole agents read the orders, epoch after epoch, and
// returns the bytes of each epoch by source.
func readWithAgents(t *testing.T, nodes int, dir string, orders [][][]int, size int) (epochs []sim.Sources) {
	m := simulate(t, nodes)
	defer m.end(t)
	m.await(t)
	open := make([]*agentData, nodes)
	for i, a := range m.agents {
		var err error
		if open[i], err = openAgentData(t.Context(), a, dir); err != nil {
			t.Fatal(err)
		}
		defer open[i].release()
	}
	var before sim.Sources
	for _, order := range orders {
		errs := make([]error, nodes)
		var all sync.WaitGroup
		for i, d := range open {
			all.Go(func() {
				for _, b := range order[i] {
					errs[i] = errors.Join(errs[i], d.read(t.Context(), b, size))
					time.Sleep(25 * time.Millisecond)
				}
			})
		}
		all.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second) // the last announcements
		var sum sim.Sources
		for _, a := range m.agents {
			f := a.Status().Fetched
			sum.Local, sum.Neighbour, sum.Origin = sum.Local+f.Local, sum.Neighbour+f.Neighbour, sum.Origin+f.Origin
		}
		epochs = append(epochs, sim.Sources{
			Local: sum.Local - before.Local, Neighbour: sum.Neighbour - before.Neighbour, Origin: sum.Origin - before.Origin,
		})
		before = sum
	}
	return epochs
}

// agentData is a data set as one agent sees it.
type agentData struct {
	agent   *peer.Agent
	ds      *dataset.Dataset
	files   []dataset.FileAt
	release func()
}

func openAgentData(ctx context.Context, a *peer.Agent, dir string) (*agentData, error) {
	d := &agentData{agent: a}
	var err error
	if d.ds, d.release, err = a.OpenDataset(ctx, dir); err != nil {
		return nil, err
	}
	for file, err := range d.ds.Walk(ctx, "") {
		if err != nil {
			d.release()
			return nil, err
		}
		if file.Entry.Kind == dataset.File {
			d.files = append(d.files, file)
		}
	}
	slices.SortFunc(d.files, func(a, b dataset.FileAt) int { return strings.Compare(a.Path, b.Path) })
	return d, nil
}

func (d *agentData) read(ctx context.Context, n, size int) error {
	got, err := readFile(ctx, d.agent, d.ds, d.files[n])
	if err == nil && !bytes.Equal(got, content(d.files[n].Path, size)) {
		err = fmt.Errorf("%s: wrong bytes", d.files[n].Path)
	}
	return err
}

package testnet_test

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/fetch/ahead"
	"github.com/covey-cache/covey/fetch/plan"
	"github.com/covey-cache/covey/gateway"
	"github.com/covey-cache/covey/peer"
)

// Four whole agents in virtual time, with a rank each: they find each other by
// their plans, and between them read the origin once in two epochs. About half of
// it comes by the plans; the homes have the other askers read the rest in turn.
func TestAgentsOfOneJobFindEachOther(t *testing.T) {
	files := map[string]int{}
	var size int64
	for i := range 240 {
		n := 50_000 + i%7*10_000
		files[fmt.Sprintf("f%03d", i)] = n
		size += int64(n)
	}
	dir := filepath.Join(t.TempDir(), "data")
	writeFiles(t, dir, files)
	spec := plan.Spec{Samples: uint64(len(files)), World: 4, Seed: 3, Shuffle: true}
	b, err := spec.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		s := simulate(t, 4)
		defer s.end(t)
		s.await(t)
		plans := make([]gateway.Plan, len(s.agents))
		for i, a := range s.agents {
			plans[i], err = a.AddPlan(t.Context(), gateway.PlanRequest{
				Job: "sim", Source: dir, Spec: base64.StdEncoding.EncodeToString(b), Ranks: []uint32{uint32(i)}, Epochs: 2,
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		for i, a := range s.agents {
			for plans[i].State != "active" || plans[i].Nodes != len(s.agents) {
				if time.Since(began) > 10*time.Second {
					t.Fatalf("agent %d: %+v", i, plans[i])
				}
				time.Sleep(10 * time.Millisecond)
				if plans[i], err = a.Plan(plans[i].ID); err != nil {
					t.Fatal(err)
				}
			}
		}
		t.Logf("they knew each other after %v", time.Since(began))
		errs := make([]error, len(s.agents))
		var all sync.WaitGroup
		for i, a := range s.agents {
			all.Go(func() { errs[i] = trainInSim(t.Context(), a, dir, spec, plans[i]) })
		}
		all.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		var origin, brought int64
		for i, a := range s.agents {
			origin += a.Status().OriginBytes
			p, err := a.Plan(plans[i].ID)
			if err != nil || p.Ranks[0].Position != p.Ranks[0].Samples {
				t.Errorf("agent %d: %+v, %v", i, p, err)
			}
			brought += p.Fetched.Origin
			if p.Fetched.Origin == 0 || p.Fetched.Neighbour == 0 || p.OwnedBytes == 0 {
				t.Errorf("agent %d read nothing ahead: %+v", i, p)
			}
			if err := a.CancelPlan(p.ID); err != nil {
				t.Error(err)
			}
		}
		t.Logf("origin %d bytes of %d, %d of them by plan", origin, size, brought)
		if origin != size || brought < size/4 {
			t.Errorf("the origin gave %d bytes of a data set of %d, %d of them by plan", origin, size, brought)
		}
	})
}

// trainInSim reads one rank's files, counts them, and computes for a while.
func trainInSim(ctx context.Context, a *peer.Agent, dir string, spec plan.Spec, p gateway.Plan) error {
	ds, release, err := a.OpenDataset(ctx, dir)
	if err != nil {
		return err
	}
	defer release()
	order, err := ahead.NewOrder(spec, p.Epochs)
	if err != nil {
		return err
	}
	cursor, err := os.OpenFile(p.Cursor, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer cursor.Close()
	var index [1]uint32
	for at := uint64(0); ; at++ {
		n, err := order.Read(ctx, p.Ranks[0].Rank, at, index[:])
		if err != nil || n == 0 {
			return err
		}
		name := fmt.Sprintf("f%03d", index[0])
		e, err := ds.Lookup(ctx, name)
		if err != nil {
			return err
		}
		if _, err := readFile(ctx, a, ds, dataset.FileAt{Path: name, Entry: e}); err != nil {
			return err
		}
		if _, err := cursor.WriteAt(binary.LittleEndian.AppendUint64(nil, at+1), 64); err != nil {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Package testnet runs meshes for tests, the demo and measurements: agents as
// processes on loopback around a shared origin, and whole agents in one process
// on an in-memory network for runs in virtual time.
package testnet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"github.com/covey-cache/covey/peer"
)

// ClusterOptions say how a cluster's agents run.
type ClusterOptions struct {
	// Binary is the covey program.
	Binary string
	// Dir is where every agent has its state, cache, socket and log. Keep it
	// short: a socket path has at most 107 bytes.
	Dir string
	// Env is added to the environment of every agent: credentials, as a rule.
	Env []string
}

// Cluster is a mesh of agent processes on loopback with one key. Its methods may
// be called concurrently.
type Cluster struct {
	opts    ClusterOptions
	keyFile string

	mu     sync.Mutex
	agents []*Process
	made   int // directories made for agents
}

// NewCluster makes a cluster key and starts nothing.
func NewCluster(opts ClusterOptions) (*Cluster, error) {
	c := &Cluster{opts: opts, keyFile: filepath.Join(opts.Dir, "cluster.key")}
	key := peer.NewClusterKey()
	if err := os.WriteFile(c.keyFile, []byte(key.String()+"\n"), 0o600); err != nil {
		return nil, fmt.Errorf("write the cluster key: %w", err)
	}
	return c, nil
}

// AgentSpec is one agent to start.
type AgentSpec struct {
	// Mounts are sources to mount, each on a directory that Start makes.
	Mounts []peer.MountSpec
	// CacheSize is the budget, as the command line takes it; "" means 4GiB.
	CacheSize string
	// Join are addresses; nil means those of all agents started before.
	Join []string
	// Args are further arguments.
	Args []string
	// Dir reuses the state and cache of an agent that was stopped.
	Dir string
}

// Start starts an agent and returns when it is ready.
func (c *Cluster) Start(ctx context.Context, spec AgentSpec) (*Process, error) {
	p, err := c.launch(spec)
	if err != nil {
		return nil, err
	}
	if err := p.waitReady(ctx); err != nil {
		return nil, errors.Join(err, p.Kill())
	}
	return p, nil
}

// launch starts the process without waiting for it.
func (c *Cluster) launch(spec AgentSpec) (*Process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if spec.CacheSize == "" {
		spec.CacheSize = "4GiB"
	}
	if spec.Dir == "" {
		c.made++
		spec.Dir = filepath.Join(c.opts.Dir, "a"+strconv.Itoa(c.made))
	}
	if spec.Join == nil {
		for _, p := range c.agents {
			if p.running() {
				spec.Join = append(spec.Join, p.Listen())
			}
		}
	}
	p, err := startProcess(c.opts, c.keyFile, spec)
	if err != nil {
		return nil, err
	}
	// It takes the place, and the mounts, of the one that had its directory.
	c.agents = append(slices.DeleteFunc(c.agents, func(was *Process) bool { return was.dir == p.dir }), p)
	return p, nil
}

// Agents returns every agent started so far, in order, stopped ones included; of
// those that shared a directory, the last.
func (c *Cluster) Agents() []*Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*Process(nil), c.agents...)
}

// Stop ends every agent: politely, and the hard way those that do not leave. No
// mount is left behind.
func (c *Cluster) Stop() error {
	agents := c.Agents()
	errs := make([]error, len(agents))
	var all sync.WaitGroup
	for i, p := range agents {
		all.Go(func() { errs[i] = p.Stop() })
	}
	all.Wait()
	return errors.Join(errs...)
}

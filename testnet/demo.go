package testnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/covey-cache/covey/gateway"
	"github.com/covey-cache/covey/origin/origintest"
	"github.com/covey-cache/covey/peer"
)

// DemoOptions configure the demo.
type DemoOptions struct {
	// Binary is the covey program, S3Server the S3 server (versitygw); "" takes
	// the repository's, built when it is missing.
	Binary, S3Server string
	// Tree is the directory whose regular files are the data set.
	Tree string
	// Agents is how many nodes read it; Readers how many files each has open at
	// once.
	Agents, Readers int
	// Keep leaves the working directory behind, with the agents' logs.
	Keep bool
	Out  io.Writer
}

// demoBucket is where the demo's data set goes.
const demoBucket = "demo"

// Demo is the main job on real input: it starts a real S3 server, uploads a
// tree, starts agents in one mesh, reads the whole tree through every agent's
// mount at the same time, compares each byte with the source, and prints where
// the bytes came from. Whatever it started is gone when it returns.
func Demo(ctx context.Context, opts DemoOptions) (err error) {
	if err := preflight(opts); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "covey-demo-")
	if err != nil {
		return fmt.Errorf("make a working directory: %w", err)
	}
	defer func() {
		if opts.Keep {
			fmt.Fprintf(opts.Out, "left behind: %s\n", dir)
			return
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	d := &demo{opts: opts, dir: dir, began: time.Now()}
	defer func() {
		d.say("cleaning up")
		err = errors.Join(err, d.stop())
	}()
	if err := d.run(ctx); ctx.Err() == nil {
		return err
	}
	// What a cancelled context breaks is as many errors as it broke.
	return errors.New("interrupted")
}

// demo is one run.
type demo struct {
	opts    DemoOptions
	dir     string
	began   time.Time
	s3      *origintest.S3
	cluster *Cluster
	tree    *Tree
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.opts.Out, "%6.1fs  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

func (d *demo) run(ctx context.Context) error {
	tree, err := ReadTree(d.opts.Tree)
	if err != nil {
		return err
	}
	d.tree = tree
	d.say("data set: %d files, %s, from %s", len(tree.Files), mib(tree.Bytes), d.opts.Tree)
	if err := d.startOrigin(ctx); err != nil {
		return err
	}
	if err := d.startAgents(ctx); err != nil {
		return err
	}
	took, err := d.readEverywhere(ctx)
	if err != nil {
		return err
	}
	d.say("read and compared on all %d mounts", d.opts.Agents)
	return d.report(ctx, took)
}

func (d *demo) startOrigin(ctx context.Context) (err error) {
	d.s3, err = origintest.RunS3(ctx, origintest.S3Options{Dir: filepath.Join(d.dir, "s3"), Binary: d.opts.S3Server})
	if err != nil {
		return fmt.Errorf("start the S3 server: %w", err)
	}
	if err := d.s3.CreateBucket(demoBucket); err != nil {
		return err
	}
	began := time.Now()
	if err := d.tree.Upload(ctx, d.s3, demoBucket); err != nil {
		return fmt.Errorf("upload the data set: %w", err)
	}
	d.say("uploaded to a real S3 server at %.0f files/s", float64(len(d.tree.Files))/time.Since(began).Seconds())
	return nil
}

func (d *demo) startAgents(ctx context.Context) (err error) {
	d.cluster, err = NewCluster(ClusterOptions{Binary: d.opts.Binary, Dir: d.dir, Env: d.s3.Env()})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for i := range d.opts.Agents {
		at := filepath.Join(d.dir, fmt.Sprintf("m%d", i+1))
		if _, err := d.cluster.Start(ctx, AgentSpec{Mounts: []peer.MountSpec{{Source: d.s3.URL(demoBucket, ""), Dir: at}}}); err != nil {
			return err
		}
	}
	d.say("%d agents joined in one mesh, the data set mounted on each", d.opts.Agents)
	return nil
}

// readEverywhere reads the tree through every mount at once and returns how
// long that took.
func (d *demo) readEverywhere(ctx context.Context) (time.Duration, error) {
	agents := d.cluster.Agents()
	errs := make([]error, len(agents))
	began := time.Now()
	done := make(chan struct{})
	for i, p := range agents {
		go func() {
			errs[i] = d.tree.Compare(ctx, p.Mount(), d.opts.Readers)
			done <- struct{}{}
		}()
	}
	for range agents {
		<-done
	}
	return time.Since(began), errors.Join(append(errs, d.deaths()...)...)
}

// deaths are the last words of agents that ended by themselves: their logs go
// with the working directory.
func (d *demo) deaths() (errs []error) {
	for _, p := range d.cluster.Agents() {
		if !p.running() {
			errs = append(errs, fmt.Errorf("agent %s ended: %s", filepath.Base(p.Dir()), p.lastWords()))
		}
	}
	return errs
}

func (d *demo) report(ctx context.Context, took time.Duration) error {
	gets, err := d.s3.GetCount()
	if err != nil {
		return err
	}
	originBytes, err := d.s3.GetBytes()
	if err != nil {
		return err
	}
	var all []gateway.Status
	for _, p := range d.cluster.Agents() {
		s, err := p.Client().Status(ctx)
		if err != nil {
			return err
		}
		all = append(all, s)
	}
	reportTable{
		tree: d.tree, agents: all, took: took, originGets: gets, originBytes: originBytes,
	}.print(d.opts.Out)
	return nil
}

func (d *demo) stop() error {
	var errs []error
	if d.cluster != nil {
		errs = append(errs, d.cluster.Stop())
	}
	if d.s3 != nil {
		errs = append(errs, d.s3.Close())
	}
	return errors.Join(errs...)
}

// preflight says in one line what is missing and how to get it.
func preflight(opts DemoOptions) error {
	if err := needFUSE(); err != nil {
		return err
	}
	if info, err := os.Stat(opts.Binary); err != nil || info.IsDir() {
		return fmt.Errorf("the covey program is not at %s; run `make build` first", opts.Binary)
	}
	if info, err := os.Stat(opts.S3Server); opts.S3Server != "" && (err != nil || info.IsDir()) {
		return fmt.Errorf("the S3 server is not at %s; run `make bin/versitygw` first", opts.S3Server)
	}
	if info, err := os.Stat(opts.Tree); err != nil || !info.IsDir() {
		return fmt.Errorf("the tree to read is not at %s; name another with --tree DIR", opts.Tree)
	}
	return nil
}

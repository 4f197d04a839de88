package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/gateway"
	"github.com/covey-cache/covey/mount"
	"github.com/covey-cache/covey/peer"
)

// leaveTimeout is how long an agent may take to unmount and leave. Service
// managers and the people who send SIGTERM are promised 5 s.
const leaveTimeout = 4500 * time.Millisecond

// signalEcho is how long after the first signal another one is taken for the
// same: timeout(1) signals its child and then the group that the child is in,
// and a terminal's Ctrl-C comes to sudo and to what runs below it. A person who
// wants the second signal to count takes longer.
const signalEcho = 500 * time.Millisecond

func (a *app) agentCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "run an agent in the foreground",
		Long: `agent runs an agent until SIGTERM or SIGINT, which unmounts and leaves within 5 s; a
second signal, half a second later or more, ends it at once.

Each flag can also be set in the config file (YAML, by the flag's name without dashes in
front) and in the environment: --cluster-key is COVEY_CLUSTER_KEY. A flag goes before the
environment, that before the file. Lists are cut at commas in the environment, mounts
(COVEY_MOUNT) at ";" or newlines, since a URL may have commas.`,
		Example: `  covey agent --mount s3://bucket/imagenet=/mnt/imagenet
  covey agent --cluster-key /etc/covey/cluster.key --join node1:7171,node2:7171 \
              --cache /nvme/covey:2TiB --mount s3://bucket/imagenet=/mnt/imagenet`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.loadConfig(cmd)
			if err != nil {
				return err
			}
			return a.runAgent(cmd.Context(), c)
		},
	}
	cmd.Flags().String("config", "", "read settings from `FILE`")
	addSettings(cmd)
	return cmd
}

// peerOptions turns the settings into those of package peer.
func peerOptions(c *agentConfig, log *slog.Logger) (peer.AgentOptions, error) {
	opts := peer.AgentOptions{
		StateDir:  c.state,
		Listen:    c.listen,
		Join:      c.join,
		Zone:      c.zone,
		Rack:      c.rack,
		HostName:  c.host,
		DataPlane: c.dataPlane,
		HTTP:      c.http,
		API:       c.api,
		Version:   readVersion().Version,
		Dataset:   dataset.Options{MaxAge: c.policy.maxAge, Immutable: c.policy.immutable},
		Mount:     mount.Options{ReadTimeout: c.policy.readTimeout, Profile: c.policy.profile, AllowOther: c.allowOther},
		Staging:   c.staging,
		Log:       log,
	}
	opts.DataListen, opts.OriginStrict = c.dataListen, c.policy.strict
	opts.CachePolicy, opts.IdleAfter = c.keeping.policy, c.keeping.idleAfter
	for _, s := range c.keeping.sets {
		opts.Keep = append(opts.Keep, peer.KeepSpec{Source: s.source, Path: s.path, Policy: s.policy, TTL: s.ttl})
	}
	opts.Compress, opts.ScrubRate = c.coding.compress, c.coding.scrubRate
	if c.coding.keys != "" {
		keys, err := readCacheKeys(c.coding.keys)
		if err != nil {
			return opts, err
		}
		opts.CacheKeys = keys
	}
	if c.holder {
		opts.Holder = holderOptions(c.state)
	}
	for _, d := range c.cache {
		opts.Cache = append(opts.Cache, peer.CacheDir{Dir: d.dir, Size: d.size})
	}
	for _, m := range c.mounts {
		opts.Mounts = append(opts.Mounts, peer.MountSpec{Source: m.source, Dir: m.dir, Options: m.options})
	}
	if c.clusterKey != "" {
		key, err := readClusterKey(c.clusterKey, log)
		if err != nil {
			return opts, err
		}
		opts.ClusterKey = key
	}
	opts.Revoked = c.revoked
	opts.VerifyManifest, opts.AuditEvery = c.policy.verifyManifest, c.policy.audit
	if c.memberRecord != "" {
		record, err := readMemberRecord(c.memberRecord, log)
		if err != nil {
			return opts, err
		}
		opts.MemberRecord = record
	}
	return opts, opts.Validate()
}

// runAgent runs an agent until a signal or a failure ends it.
func (a *app) runAgent(ctx context.Context, c *agentConfig) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)

	log := newLog(a.stderr, c)
	opts, err := peerOptions(c, log)
	if err != nil {
		return err
	}
	lock, err := lockState(c.state)
	if err != nil {
		return err
	}
	defer lock.Close()
	// All paths are absolute by now; an agent must not keep the file system
	// busy that it happened to be started in.
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("change to the root directory: %w", err)
	}
	agent, err := peer.NewAgent(opts)
	if err != nil {
		return err
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- agent.Run(ctx) }()
	go a.tellReady(ctx, agent, log)
	select {
	case err := <-done:
		return err
	case s := <-signals:
		log.Info("signal received", "signal", s.String())
	}
	if err := notify(a.getenv, "STOPPING=1"); err != nil {
		log.Warn("service manager not told", "err", err)
	}
	cancel()
	return leave(agent, done, signals, log)
}

// leave waits until a cancelled agent has ended: for leaveTimeout, or until a
// second signal that is no echo of the first. When the time is up the mounts are
// taken off by force, so that no reader hangs on them.
func leave(agent gateway.Agent, done <-chan error, signals <-chan os.Signal, log *slog.Logger) error {
	began := time.Now()
	timeout := time.After(leaveTimeout)
	for waiting := true; waiting; {
		select {
		case err := <-done:
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		case <-signals:
			if time.Since(began) >= signalEcho {
				return errors.New("leave: ended by a second signal before everything was unmounted: run covey umount on what is left")
			}
		case <-timeout:
			waiting = false
		}
	}
	forceUnmount(agent, log)
	return fmt.Errorf("leave: still busy after %v: what was mounted is unmounted by force", leaveTimeout)
}

func forceUnmount(agent gateway.Agent, log *slog.Logger) {
	unmounted := make(chan struct{})
	go func() {
		defer close(unmounted)
		var all sync.WaitGroup
		for _, m := range agent.Mounts() {
			all.Go(func() {
				if err := mount.Umount(m.Dir, true); err != nil {
					log.Error("unmount by force failed", "dir", m.Dir, "err", err)
				}
			})
		}
		all.Wait()
	}()
	select {
	case <-unmounted:
	case <-time.After(300 * time.Millisecond): // the rest of the 5 s
	}
}

// tellReady tells the service manager once the agent is ready.
func (a *app) tellReady(ctx context.Context, agent gateway.Agent, log *slog.Logger) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for agent.Ready() != nil {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
	if err := notify(a.getenv, "READY=1"); err != nil {
		log.Warn("service manager not told", "err", err)
	}
}

package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/covey-cache/covey/gateway"
	"github.com/covey-cache/covey/mount"
)

// doctorTimeout bounds each check that asks somebody.
const doctorTimeout = 5 * time.Second

// verdict is the outcome of a check.
type verdict string

const (
	ok   verdict = "ok"
	warn verdict = "warn"
	fail verdict = "fail"
)

// finding is what one check found. Do says what helps; "" when all is well.
type finding struct {
	Verdict verdict `json:"verdict"`
	What    string  `json:"what"`
	Do      string  `json:"do,omitempty"`
}

func (f finding) String() string {
	if f.Do == "" {
		return fmt.Sprintf("%s\t%s", f.Verdict, f.What)
	}
	return fmt.Sprintf("%s\t%s  — %s", f.Verdict, f.What, f.Do)
}

func (a *app) doctorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "look for what keeps covey from working well here",
		Long: `doctor checks this host, the agent, its peers and its sources, and prints a line for
each: ok, warn (works, but not as well as it could) or fail, and what to do about it.
It fails when a check does. Give it the flags, environment and config of the agent.`,
		Example: "  covey doctor\n  covey doctor --config /etc/covey/agent.yaml --json",
		Args:    exactly(),
		RunE:    a.doctor,
	}
	cmd.Flags().String("config", "", "read settings from `FILE`")
	addSettings(cmd)
	addJSONFlag(cmd)
	return cmd
}

func (a *app) doctor(cmd *cobra.Command, _ []string) error {
	c, err := a.loadConfig(cmd)
	if err != nil {
		return err
	}
	found := append(checkHost(), checkAgent(cmd.Context(), c)...)
	if err := a.printFindings(found, wantJSON(cmd)); err != nil {
		return err
	}
	failed := 0
	for _, f := range found {
		if f.Verdict == fail {
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d checks failed: see the lines that begin with fail", failed, len(found))
	}
	return nil
}

func (a *app) printFindings(found []finding, asJSON bool) error {
	for i := range found {
		found[i].What, found[i].Do = oneLine(found[i].What), oneLine(found[i].Do)
	}
	if asJSON {
		return a.printJSON(found)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, f := range found {
		fmt.Fprintln(w, f)
	}
	return w.Flush()
}

// checkAgent looks at the agent, and at its cache, peers and sources. When it
// does not answer, the settings say what to look at; sources that only they
// name are tried in any case.
func checkAgent(ctx context.Context, c *agentConfig) []finding {
	sources := make([]string, 0, len(c.mounts))
	for _, m := range c.mounts {
		sources = append(sources, m.source)
	}
	status, peers, found := askAgent(ctx, c.api)
	var caches []string
	for _, d := range c.cache {
		caches = append(caches, d.dir)
	}
	if len(status.Tiers) > 0 {
		caches = nil
	}
	for _, t := range status.Tiers {
		caches = append(caches, t.Dir)
	}
	for _, dir := range caches {
		found = append(found, checkCache(dir)...)
	}
	for _, m := range status.Mounts {
		sources = append(sources, m.Source)
		if !m.Passthrough && m.Profile != mount.Small.String() {
			found = append(found, finding{warn, fmt.Sprintf("mount %s has no passthrough: %s", m.Dir, m.PassthroughWhy), "see the lines on the kernel and the cache"})
		}
	}
	found = append(found, checkPeers(ctx, peers)...)
	return append(found, checkSources(ctx, sources)...)
}

func askAgent(ctx context.Context, socket string) (gateway.Status, []gateway.Peer, []finding) {
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	client := gateway.NewClient(socket)
	defer client.Close()
	s, err := client.Status(ctx)
	if err != nil {
		what, do := splitAdvice(err)
		return s, nil, []finding{{fail, what, do}}
	}
	found := []finding{{ok, fmt.Sprintf("agent answers on %s, version %s", socket, s.Version), ""}}
	if err := client.Ready(ctx); err != nil {
		found = append(found, finding{fail, "agent is not ready: " + err.Error(), "wait, or read its log"})
	} else {
		found = append(found, finding{ok, "agent is ready", ""})
	}
	for _, t := range s.Tiers {
		if t.State != "ok" {
			found = append(found, finding{fail, fmt.Sprintf("cache %s is %s: %s", t.Dir, t.State, oneLine(t.Why)),
				"look at the disk; the agent tries it again by itself, every five minutes at least"})
		}
	}
	for source, n := range s.CorruptBlocks {
		if n > 0 {
			found = append(found, finding{warn, fmt.Sprintf("%d corrupt blocks from %s were refused", n, source), "the agent's log names them; look at that disk or host"})
		}
	}
	peers, err := client.Peers(ctx)
	if err != nil {
		found = append(found, finding{fail, "peers: " + err.Error(), "read the agent's log"})
	}
	switch {
	case s.Standalone:
		found = append(found, finding{ok, "agent is standalone: it shares its cache with nobody", ""})
	case err == nil && len(peers) == 0:
		found = append(found, finding{warn, "agent is in a mesh and knows no other member",
			"look whether the addresses of --join are right, their agents run with the same --cluster-key (covey cluster show), and no firewall is between"})
	}
	return s, peers, found
}

// splitAdvice parts an error into what is wrong and what to do.
func splitAdvice(err error) (what, do string) {
	what, do, found := strings.Cut(err.Error(), "; ")
	if !found {
		return what, "see the agent's log"
	}
	return what, do
}

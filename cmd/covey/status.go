package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/covey-cache/covey/gateway"
	"github.com/covey-cache/covey/mount"
)

// query makes a command that asks the agent one thing and shows the answer.
func query[T any](a *app, cmd *cobra.Command,
	ask func(ctx context.Context, c *gateway.Client, args []string) (T, error), show func(w io.Writer, v T)) *cobra.Command {
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.ask(cmd, func(ctx context.Context, c *gateway.Client) error {
			v, err := ask(ctx, c, args)
			if err != nil {
				return err
			}
			if wantJSON(cmd) {
				return a.printJSON(v)
			}
			w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
			show(w, v)
			return w.Flush()
		})
	}
	addClientFlags(cmd)
	addJSONFlag(cmd)
	return cmd
}

func (a *app) statusCommand() *cobra.Command {
	return query(a, &cobra.Command{
		Use:     "status",
		Short:   "show what the agent holds and where its bytes came from",
		Example: "  covey status\n  covey status --json | jq .fetched_bytes",
		Args:    exactly(),
	}, func(ctx context.Context, c *gateway.Client, _ []string) (gateway.Status, error) {
		return c.Status(ctx)
	}, showStatus)
}

func showStatus(w io.Writer, s gateway.Status) {
	state := "ready"
	if !s.Ready {
		state = "starting"
	}
	mesh := fmt.Sprintf("%d peers", s.Peers)
	if s.Standalone {
		mesh = "standalone"
	}
	fmt.Fprintf(w, "agent\t%s, pid %d, version %s, up %s\n", state, s.PID, s.Version, since(s.Started))
	if s.NotReady != "" {
		fmt.Fprintf(w, "waits\t%s\n", oneLine(s.NotReady))
	}
	fmt.Fprintf(w, "peer\t%s\n", s.PeerID)
	fmt.Fprintf(w, "mesh\t%s, %s, on %s\n", mesh, s.DataPlane, strings.Join(s.Listen, " "))
	if s.HTTP != "" {
		fmt.Fprintf(w, "http\thttp://%s\n", s.HTTP)
	}
	fmt.Fprintf(w, "read\t%s local, %s neighbours, %s origin\n",
		formatSize(s.Fetched.Local), formatSize(s.Fetched.Neighbour), formatSize(s.Fetched.Origin))
	fmt.Fprintf(w, "origin\t%s in %s\n", formatSize(s.OriginBytes), counts(s.OriginRequests, "no requests"))
	if corrupt := counts(s.CorruptBlocks, ""); corrupt != "" {
		fmt.Fprintf(w, "corrupt\t%s\n", corrupt)
	}
	for _, t := range s.Tiers {
		note := ""
		if t.State != "ok" {
			note = fmt.Sprintf(", %s: %s", t.State, oneLine(t.Why))
		}
		fmt.Fprintf(w, "cache\t%s: %s of %s, %d objects, %d blocks%s\n",
			t.Dir, formatSize(t.Used), formatSize(t.Budget), t.Objects, t.Blocks, note)
	}
	for _, m := range s.Mounts {
		fmt.Fprintf(w, "mount\t%s: %s, %s\n", m.Dir, m.Source, passthrough(m))
	}
	for _, f := range s.Staged {
		fmt.Fprintf(w, "staged\t%s: %s, %q of %s %s\n", f.State, formatSize(f.Size), f.Path, f.Source, oneLine(f.Error))
	}
	for _, p := range s.Plans {
		fmt.Fprintf(w, "plan\t%s\n", describePlan(p))
	}
}

func since(t time.Time) string {
	if t.IsZero() {
		return "0s"
	}
	return time.Since(t).Round(time.Second).String()
}

// counts writes a map of counters in the order of its keys.
func counts(m map[string]int64, none string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if m[k] != 0 {
			parts = append(parts, fmt.Sprintf("%d %s", m[k], k))
		}
	}
	if len(parts) == 0 {
		return none
	}
	return strings.Join(parts, ", ")
}

func passthrough(m gateway.Mount) string {
	if m.Profile == mount.Small.String() {
		return "profile small"
	}
	if m.Passthrough {
		return "passthrough"
	}
	return "no passthrough: " + m.PassthroughWhy
}

func (a *app) peersCommand() *cobra.Command {
	return query(a, &cobra.Command{
		Use:     "peers",
		Short:   "list the members of the mesh that the agent knows",
		Example: "  covey peers --json | jq '.[] | select(.connected)'",
		Args:    exactly(),
	}, func(ctx context.Context, c *gateway.Client, _ []string) ([]gateway.Peer, error) {
		return c.Peers(ctx)
	}, showPeers)
}

func showPeers(w io.Writer, peers []gateway.Peer) {
	fmt.Fprintln(w, "HOST\tPEER\tSTATE\tDISTANCE\tRTT\tLOAD\tIN\tOUT\tRECEIVED\tSENT\tERRORS\tADDRESSES")
	for _, p := range peers {
		state := "connected"
		if !p.Connected {
			state = "seen " + since(p.LastSeen) + " ago"
		}
		if !p.Banned.IsZero() {
			state = "banned, " + strconv.Itoa(p.BadBlocks) + " bad blocks"
		}
		rtt := "-"
		if p.RTTMicros > 0 {
			rtt = (time.Duration(p.RTTMicros) * time.Microsecond).String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d/%d\t%s/s\t%s/s\t%s\t%s\t%d\t%s\n", p.Host, p.ID, state, p.Distance, rtt,
			p.UnderWay, p.Window, formatSize(p.ReceivedRate), formatSize(p.SentRate),
			formatSize(p.ReceivedBytes), formatSize(p.SentBytes), p.Errors, strings.Join(p.Addresses, " "))
	}
}

func (a *app) mountsCommand() *cobra.Command {
	return query(a, &cobra.Command{
		Use:     "mounts",
		Short:   "list the mounted data sets",
		Example: "  covey mounts",
		Args:    exactly(),
	}, func(ctx context.Context, c *gateway.Client, _ []string) ([]gateway.Mount, error) {
		return c.Mounts(ctx)
	}, showMounts)
}

func showMounts(w io.Writer, mounts []gateway.Mount) {
	fmt.Fprintln(w, "DIR\tSOURCE\tOPENS BY KERNEL\tOPENS BY AGENT\tPASSTHROUGH")
	for _, m := range mounts {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\n", m.Dir, m.Source, m.OpensPassthrough, m.OpensDaemon, passthrough(m))
	}
}

func (a *app) locateCommand() *cobra.Command {
	return query(a, &cobra.Command{
		Use:     "locate PATH",
		Short:   "show which peers hold the blocks of a file",
		Example: "  covey locate /mnt/imagenet/train-0001.tar",
		Args:    exactly("PATH"),
	}, func(ctx context.Context, c *gateway.Client, args []string) (gateway.Location, error) {
		path, err := pathOrSource(args[0])
		if err != nil {
			return gateway.Location{}, err
		}
		return c.Locate(ctx, path)
	}, showLocation)
}

// pathOrSource makes a path absolute and leaves a source URL as it is.
func pathOrSource(s string) (string, error) {
	if strings.Contains(s, "://") {
		return s, nil
	}
	path, err := absPath(s)
	if err != nil {
		return "", misuse("%w", err)
	}
	return path, nil
}

func showLocation(w io.Writer, l gateway.Location) {
	fmt.Fprintf(w, "%s\t%s, version %s\n", l.Key, formatSize(l.Size), l.Version)
	fmt.Fprintln(w, "BLOCK\tCID\tHOLDERS\tHOMES\tHERE")
	for _, b := range l.Blocks {
		here := "-"
		if b.Tier != "" {
			here = b.Tier
		}
		if b.Replica {
			here += " (replica)"
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", b.Index, b.CID, orDash(b.Holders), orDash(b.Homes), here)
	}
}

func orDash(list []string) string {
	if len(list) == 0 {
		return "-"
	}
	return strings.Join(list, " ")
}

package testnet

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/covey-cache/covey/gateway"
)

// reportTable is what the demo prints at its end.
type reportTable struct {
	tree        *Tree
	agents      []gateway.Status
	took        time.Duration
	originGets  int64
	originBytes int64 // by the S3 server's own log
}

func (r reportTable) print(out io.Writer) {
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "agent\tlocal\tneighbour\torigin\tpassthrough opens\tdaemon opens\t")
	var sum gateway.FetchedBytes
	var through, daemon uint64
	var overrides int64
	for i, a := range r.agents {
		var t, d uint64
		for _, m := range a.Mounts {
			t, d = t+m.OpensPassthrough, d+m.OpensDaemon
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%d\t%d\t\n", i+1, mib(a.Fetched.Local), mib(a.Fetched.Neighbour), mib(a.Fetched.Origin), t, d)
		sum.Local, sum.Neighbour, sum.Origin = sum.Local+a.Fetched.Local, sum.Neighbour+a.Fetched.Neighbour, sum.Origin+a.Fetched.Origin
		through, daemon = through+t, daemon+d
		overrides += a.OriginOverrides
	}
	fmt.Fprintf(w, "all\t%s\t%s\t%s\t%d\t%d\t\n", mib(sum.Local), mib(sum.Neighbour), mib(sum.Origin), through, daemon)
	_ = w.Flush() // the rest of the report has no error either

	files := float64(len(r.tree.Files) * len(r.agents))
	bytes := float64(r.tree.Bytes) * float64(len(r.agents))
	seconds := r.took.Seconds()
	fmt.Fprintf(out, `
data set                       %d files, %s
read and compared              %d times at once, in %.1f s: %.0f files/s, %.0f MiB/s
origin bytes / data set bytes  %.4f  (by the S3 server's own log: %d GETs, %s)
reads without a lease          %d
passthrough share              %.1f %% of opens
`, len(r.tree.Files), mib(r.tree.Bytes), len(r.agents), seconds, files/seconds, bytes/seconds/(1<<20),
		float64(r.originBytes)/float64(r.tree.Bytes), r.originGets, mib(r.originBytes), overrides,
		100*float64(through)/float64(max(1, through+daemon)))
	if why := r.whyServed(); why != "" {
		fmt.Fprintf(out, "no passthrough because         %s\n", why)
	}
}

// whyServed is the reason that a mount gives for serving its reads itself, ""
// when passthrough works on all.
func (r reportTable) whyServed() string {
	for _, a := range r.agents {
		for _, m := range a.Mounts {
			if m.PassthroughWhy != "" {
				return m.PassthroughWhy
			}
		}
	}
	return ""
}

func mib(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }

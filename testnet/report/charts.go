package report

import (
	"fmt"
	"html/template"
	"slices"

	"github.com/covey-cache/covey/testnet/sim"
)

// figure is a chart with its heading and legend.
type figure struct {
	Title  string
	Note   string
	Legend []entry
	SVG    template.HTML
}

type entry struct{ Class, Name string }

var bySource = []entry{{"local", "local"}, {"neighbour", "neighbour"}, {"origin", "origin"}}

// figures are the charts of one case.
func figures(r *sim.Result) []figure {
	return []figure{originOverData(r), bytesOverTime(r), epochTimes(r), homeLoad(r), messages(r), given(r)}
}

// originOverData is what left the origin so far, over D.
func originOverData(r *sim.Result) figure {
	d := float64(r.DataBytes)
	c := chart{xTitle: "seconds of virtual time", yTitle: "origin bytes / D", yMax: 1.1}
	points := []point{{0, 0}}
	var sum float64
	for _, p := range r.Series {
		sum += float64(p.Bytes.Origin) / d
		points = append(points, point{p.At, sum})
		c.xMax = p.At
	}
	floor := r.Figures["origin_ratio"] / positive(r.Figures["origin_floor"])
	c.yMax = max(1.1, 1.1*sum, 1.1*floor)
	bands(&c, r)
	c.level(floor, "the least that any policy reads")
	c.line("origin", points)
	return figure{
		Title: "Bytes from the origin, over the data set",
		Note:  fmt.Sprintf("%.4f in the end; the least possible is %.4f.", sum, floor),
		SVG:   c.svg("bytes from the origin over those of the data set, by time"),
	}
}

// bytesOverTime is the throughput by source, one upon the other.
func bytesOverTime(r *sim.Result) figure {
	c := chart{xTitle: "seconds of virtual time", yTitle: "GB/s, all nodes"}
	rows := [4][]point{}
	from := 0.0
	for _, p := range r.Series {
		s := positive(p.Seconds) * 1e9
		y := [4]float64{0, float64(p.Bytes.Local) / s}
		y[2] = y[1] + float64(p.Bytes.Neighbour)/s
		y[3] = y[2] + float64(p.Bytes.Origin)/s
		for i := range rows {
			// Steps, not slopes: a point is the mean of its span.
			rows[i] = append(rows[i], point{from, y[i]}, point{p.At, y[i]})
		}
		c.yMax, c.xMax, from = max(c.yMax, 1.1*y[3]), p.At, p.At
	}
	for i, e := range bySource {
		c.area(e.Class, rows[i], rows[i+1])
	}
	bands(&c, r)
	return figure{
		Title: "Bytes by source", Legend: bySource,
		Note: "Faults are shaded; the pointer tells which.",
		SVG:  c.svg("bytes a second by source, by time"),
	}
}

// bands shades the time that faults last.
func bands(c *chart, r *sim.Result) {
	open := map[string]sim.Strike{}
	for _, s := range r.Faults {
		what := s.What
		if s.Ends {
			what = what[len("end of "):]
			if b, ok := open[what]; ok {
				c.band(b.At, s.At, what)
				delete(open, what)
			}
			continue
		}
		open[what] = s
	}
	for what, s := range open {
		c.band(s.At, s.At, what)
	}
}

// epochTimes has a bar for each epoch, of the time it took.
func epochTimes(r *sim.Result) figure {
	c := chart{xMax: float64(len(r.Epochs)) + 0.5, xTitle: "epoch", yTitle: "seconds"}
	for _, e := range r.Epochs {
		c.yMax = max(c.yMax, 1.15*e.Seconds)
	}
	for _, e := range r.Epochs {
		all := positive(float64(e.Bytes.Local + e.Bytes.Neighbour + e.Bytes.Origin))
		low := 0.0
		for i, n := range [...]int64{e.Bytes.Local, e.Bytes.Neighbour, e.Bytes.Origin} {
			high := low + e.Seconds*float64(n)/all
			c.bar(bySource[i].Class, float64(e.Epoch)-0.35, 0.7, low, high,
				fmt.Sprintf("epoch %d: %s, %s %s", e.Epoch, seconds(e.Seconds), size(n), bySource[i].Name))
			low = high
		}
	}
	return figure{
		Title: "Time of each epoch", Legend: bySource,
		Note: "A bar's colours are the shares of its bytes by source.",
		SVG:  c.svg("seconds that each epoch took"),
	}
}

// homeLoad is how evenly the homes are asked: their requests, most first.
func homeLoad(r *sim.Result) figure {
	served, mean := sorted(r.Served)
	c := chart{xMax: float64(len(served)), xTitle: "nodes, the busiest first", yTitle: "directory requests"}
	if len(served) > 0 {
		c.yMax = max(2.2*mean, 1.1*float64(served[0]))
	}
	for i, n := range served {
		c.bar("home", float64(i), 0.9, 0, float64(n), fmt.Sprintf("%d requests", n))
	}
	c.level(mean, "mean")
	c.level(2*mean, "twice the mean")
	return figure{
		Title: "Load of the homes",
		Note:  fmt.Sprintf("The busiest answers %.2f times the mean.", r.Figures["busiest_home"]),
		SVG:   c.svg("directory requests that each node answered, sorted"),
	}
}

// sorted returns values with the largest first, and their mean.
func sorted(values []int64) (most []int64, mean float64) {
	most = slices.Sorted(slices.Values(values))
	slices.Reverse(most)
	for _, n := range most {
		mean += float64(n) / float64(len(most))
	}
	return most, mean
}

// messages is what each node sent to homes and holders, most first.
func messages(r *sim.Result) figure {
	sent, mean := sorted(r.Sent)
	c := chart{xMax: float64(len(sent)), xTitle: "nodes, the busiest first", yTitle: "messages a second"}
	for i, n := range sent {
		rate := float64(n) / positive(r.VirtualSeconds)
		if i == 0 {
			c.yMax = 1.1 * rate
		}
		c.bar("home", float64(i), 0.9, 0, rate, number(rate)+" a second")
	}
	c.level(mean/positive(r.VirtualSeconds), "mean")
	return figure{
		Title: "Messages of each node",
		Note: fmt.Sprintf("Requests and directory messages; %s a second on average, %s.",
			number(r.Figures["messages"]), size(int64(r.Figures["message_bytes"]))),
		SVG: c.svg("messages a second that each node sent, sorted"),
	}
}

// given is what each node sent to neighbours, most first.
func given(r *sim.Result) figure {
	gave, mean := sorted(r.Gave)
	scale, unit := 1e6, "MB"
	if mean >= 1e9 {
		scale, unit = 1e9, "GB"
	}
	c := chart{xMax: float64(len(gave)), xTitle: "nodes, the busiest first", yTitle: unit + " to neighbours"}
	for i, n := range gave {
		if i == 0 {
			c.yMax = 1.1 * float64(n) / scale
		}
		c.bar("neighbour", float64(i), 0.9, 0, float64(n)/scale, size(n))
	}
	c.level(mean/scale, "mean")
	return figure{
		Title: "Bytes that each node gave",
		Note:  fmt.Sprintf("%s on average.", size(int64(mean))),
		SVG:   c.svg("bytes that each node sent to neighbours, sorted"),
	}
}

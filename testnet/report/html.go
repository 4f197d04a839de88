package report

import (
	_ "embed"
	"html/template"
	"io"
	"maps"
	"slices"

	"github.com/covey-cache/covey/testnet/scenario"
	"github.com/covey-cache/covey/testnet/sim"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Parse(pageText))

// page is what the template shows.
type page struct {
	Name, About string
	Cases       []pageCase
}

type pageCase struct {
	*sim.Result
	Title   string
	Cards   []card
	Figures []figure
	Rows    []row
	Reached []string
}

type card struct{ Value, Name string }

type row struct{ Name, Value, About string }

// HTML writes the results as one page that loads nothing from anywhere.
func HTML(out io.Writer, name, about string, results []*sim.Result) error {
	p := page{Name: name, About: about}
	for _, r := range results {
		c := pageCase{Result: r, Title: Title(r), Figures: figures(r), Reached: slices.Sorted(maps.Keys(r.Marks)), Cards: []card{
			{number(float64(r.Nodes)), "nodes"},
			{size(r.DataBytes), "data set, " + number(float64(r.Blocks)) + " blocks"},
			{size(r.CacheBytes), "cache of all nodes"},
			{number(r.Figures["origin_ratio"]), "origin bytes / D"},
			{seconds(r.VirtualSeconds), "of virtual time"},
			{seconds(r.ReadP50) + " / " + seconds(r.ReadP99), "a read, p50 / p99"},
			{number(float64(r.Seed)), "seed"},
		}}
		for _, f := range scenario.Figures() {
			if v, ok := r.Figures[f]; ok {
				c.Rows = append(c.Rows, row{f, number(v), scenario.About(f)})
			}
		}
		p.Cases = append(p.Cases, c)
	}
	return pageTemplate.Execute(out, p)
}

package report

import (
	"fmt"
	"html/template"
	"math"
	"strings"
)

// Sizes of a chart, in SVG's units; the page scales it to its column.
const (
	chartWidth, chartHeight = 520, 240
	left, right             = 58, 12
	top, bottom             = 14, 40
	plotWidth               = chartWidth - left - right
	plotHeight              = chartHeight - top - bottom
)

// chart is one SVG drawing: axes, and what is drawn between them.
type chart struct {
	xMax, yMax     float64
	xTitle, yTitle string
	body           strings.Builder
}

func (c *chart) x(v float64) float64 { return left + plotWidth*clamp(v/positive(c.xMax)) }
func (c *chart) y(v float64) float64 { return top + plotHeight*(1-clamp(v/positive(c.yMax))) }

func clamp(v float64) float64 { return math.Min(1, math.Max(0, v)) }

func positive(v float64) float64 {
	if v <= 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return 1
	}
	return v
}

// point is a place in the chart's own units.
type point struct{ x, y float64 }

func (c *chart) path(points []point) string {
	var b strings.Builder
	for i, p := range points {
		op := "L"
		if i == 0 {
			op = "M"
		}
		fmt.Fprintf(&b, "%s%.1f %.1f", op, c.x(p.x), c.y(p.y))
	}
	return b.String()
}

// line draws a line of a class, which the style sheet colours.
func (c *chart) line(class string, points []point) {
	fmt.Fprintf(&c.body, `<path class="line %s" d="%s"/>`, class, c.path(points))
}

// area fills between two lines over the same x.
func (c *chart) area(class string, low, high []point) {
	back := make([]point, len(low))
	for i, p := range low {
		back[len(low)-1-i] = p
	}
	d := c.path(high) + strings.Replace(c.path(back), "M", "L", 1) + "Z"
	fmt.Fprintf(&c.body, `<path class="fill %s" d="%s"/>`, class, d)
}

// bar draws a bar from x on, with a text that shows when the pointer is on it.
func (c *chart) bar(class string, x, width, low, high float64, tip string) {
	y := c.y(high)
	fmt.Fprintf(&c.body, `<rect class="fill %s" x="%.1f" y="%.1f" width="%.1f" height="%.1f"><title>%s</title></rect>`,
		class, c.x(x), y, math.Max(0.5, c.x(x+width)-c.x(x)), math.Max(0, c.y(low)-y), template.HTMLEscapeString(tip))
}

// band shades a span of x: a fault.
func (c *chart) band(from, to float64, tip string) {
	fmt.Fprintf(&c.body, `<rect class="band" x="%.1f" y="%d" width="%.1f" height="%d"><title>%s</title></rect>`,
		c.x(from), top, math.Max(1.5, c.x(to)-c.x(from)), plotHeight, template.HTMLEscapeString(tip))
}

// level draws a line across at y, with its name.
func (c *chart) level(y float64, name string) {
	at := c.y(y)
	fmt.Fprintf(&c.body, `<line class="level" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/><text class="tick" x="%d" y="%.1f" text-anchor="end">%s</text>`,
		left, left+plotWidth, at, at, left+plotWidth-4, at-4, template.HTMLEscapeString(name))
}

// svg finishes the chart. name is what a reader who cannot see it is told.
func (c *chart) svg(name string) template.HTML {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %d %d" role="img" aria-label="%s">`, chartWidth, chartHeight, template.HTMLEscapeString(name))
	for _, v := range ticks(c.yMax, 4) {
		fmt.Fprintf(&b, `<line class="grid" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/><text class="tick" x="%d" y="%.1f" text-anchor="end">%s</text>`,
			left, left+plotWidth, c.y(v), c.y(v), left-6, c.y(v)+4, template.HTMLEscapeString(number(v)))
	}
	for _, v := range ticks(c.xMax, 6) {
		fmt.Fprintf(&b, `<text class="tick" x="%.1f" y="%d" text-anchor="middle">%s</text>`, c.x(v), top+plotHeight+16, number(v))
	}
	b.WriteString(c.body.String())
	fmt.Fprintf(&b, `<line class="axis" x1="%d" x2="%d" y1="%d" y2="%d"/>`, left, left+plotWidth, top+plotHeight, top+plotHeight)
	fmt.Fprintf(&b, `<text class="title" x="%d" y="%d" text-anchor="middle">%s</text>`, left+plotWidth/2, chartHeight-6, template.HTMLEscapeString(c.xTitle))
	fmt.Fprintf(&b, `<text class="title" transform="translate(12 %d) rotate(-90)" text-anchor="middle">%s</text></svg>`,
		top+plotHeight/2, template.HTMLEscapeString(c.yTitle))
	return template.HTML(b.String()) // every text in it was escaped above
}

// ticks returns about n round values from 0 to most.
func ticks(most float64, n int) (all []float64) {
	most = positive(most)
	step := math.Pow(10, math.Floor(math.Log10(most/float64(n))))
	for _, m := range [...]float64{1, 2, 5, 10} {
		if most/(step*m) <= float64(n)+0.5 {
			step *= m
			break
		}
	}
	for i := 0; float64(i)*step <= most*1.0001; i++ {
		all = append(all, math.Round(float64(i)*step*1e9)/1e9)
	}
	return all
}

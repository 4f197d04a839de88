package main

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/covey-cache/covey/gateway"
)

// progress shows how far a job is. Its methods are called from one goroutine.
type progress interface {
	show(gateway.Job)
	end(gateway.Job)
}

// newProgress returns a bar for a terminal and lines for anything else.
func (a *app) newProgress() progress {
	if f, ok := a.stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return newBar(f)
	}
	return &lines{w: a.stdout, last: time.Now()}
}

// silent shows nothing.
type silent struct{}

func (silent) show(gateway.Job) {}
func (silent) end(gateway.Job)  {}

// lines prints a line every second, and one at the end.
type lines struct {
	w    io.Writer
	last time.Time
}

func (l *lines) show(j gateway.Job) {
	if now := time.Now(); j.State == "running" && now.Sub(l.last) >= lineEvery {
		fmt.Fprintln(l.w, line(j, now))
		l.last = now
	}
}

func (l *lines) end(j gateway.Job) { fmt.Fprintln(l.w, line(j, j.Ended)) }

func line(j gateway.Job, now time.Time) string {
	state := j.State
	if j.Listing && state == "running" {
		state = "listing"
	}
	text := fmt.Sprintf("%s: %s of %s, %s", state, formatSize(j.BytesDone), formatSize(j.Bytes), files(j))
	if took := now.Sub(j.Started); took > 0 && j.BytesDone > 0 {
		rate := float64(j.BytesDone) / took.Seconds()
		text += fmt.Sprintf(", %s/s", formatSize(int64(rate)))
		if left := eta(j, rate); j.State == "running" && left >= 0 {
			text += fmt.Sprintf(", %v left", left)
		}
	}
	return text
}

func files(j gateway.Job) string {
	text := fmt.Sprintf("%d of %d files", j.FilesDone, j.Files)
	if j.FilesError > 0 {
		text += fmt.Sprintf(", %d failed", j.FilesError)
	}
	if j.Kind == "verify" {
		text += fmt.Sprintf(", %d bad blocks", j.BadBlocks)
	}
	return text
}

// eta is the time left at rate bytes a second, negative while the size of the
// whole is not known yet.
func eta(j gateway.Job, rate float64) time.Duration {
	if j.Listing || rate <= 0 {
		return -1
	}
	return time.Duration(float64(j.Bytes-j.BytesDone) / rate * float64(time.Second)).Round(time.Second)
}

// bar draws on a terminal. The library draws from a goroutine of its own, which
// reads the job through an atomic pointer.
type bar struct {
	all *mpb.Progress
	bar *mpb.Bar
	job atomic.Pointer[gateway.Job]
}

func newBar(w io.Writer) *bar {
	b := &bar{all: mpb.New(mpb.WithOutput(w), mpb.WithRefreshRate(pollEvery), mpb.WithWidth(64))}
	b.job.Store(&gateway.Job{State: "running", Listing: true, Started: time.Now()})
	b.bar = b.all.AddBar(0, mpb.AppendDecorators(decor.Any(func(decor.Statistics) string {
		j := b.job.Load()
		now := time.Now()
		if !j.Ended.IsZero() {
			now = j.Ended
		}
		return " " + line(*j, now)
	})))
	return b
}

func (b *bar) show(j gateway.Job) {
	b.job.Store(&j)
	b.bar.SetTotal(max(j.Bytes, 1), false)
	b.bar.SetCurrent(j.BytesDone)
}

// end leaves the bar as it stands and gives the terminal back.
func (b *bar) end(j gateway.Job) {
	b.show(j)
	if j.State == "done" {
		b.bar.SetTotal(-1, true) // complete at what it has, also when that is nothing
	} else {
		b.bar.Abort(false)
	}
	b.all.Wait()
}

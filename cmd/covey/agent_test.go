package main

import (
	"context"
	"log/slog"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// A signal that comes twice at once, as timeout(1) and sudo send it, is one: the
// agent still unmounts. One that comes later ends it.
func TestLeave(t *testing.T) {
	for _, c := range []struct {
		name    string
		signals []time.Duration // after the first
		needs   time.Duration   // to unmount
		fails   bool
		takes   time.Duration
	}{
		{name: "one signal", needs: time.Second, takes: time.Second},
		{name: "an echo", signals: []time.Duration{0, 10 * time.Millisecond}, needs: time.Second, takes: time.Second},
		{name: "a second one", signals: []time.Duration{0, 600 * time.Millisecond}, needs: 2 * time.Second, fails: true, takes: 600 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				signals, done := make(chan os.Signal, 2), make(chan error, 1)
				for _, after := range c.signals {
					time.AfterFunc(after, func() { signals <- syscall.SIGTERM })
				}
				time.AfterFunc(c.needs, func() { done <- context.Canceled })
				err := leave(nil, done, signals, slog.New(slog.DiscardHandler))
				if (err != nil) != c.fails {
					t.Errorf("leave: %v", err)
				}
				if got := time.Since(began); got != c.takes {
					t.Errorf("it took %v, want %v", got, c.takes)
				}
				time.Sleep(c.needs) // lets the timers end
			})
		})
	}
}

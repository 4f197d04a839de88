package main

import (
	"io"
	"log/slog"
)

// newLog returns the agent's log.
func newLog(w io.Writer, c *agentConfig) *slog.Logger {
	opts := &slog.HandlerOptions{Level: c.logLevel}
	if c.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

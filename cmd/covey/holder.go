package main

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/covey-cache/covey/mount"
	"github.com/covey-cache/covey/peer"
)

// holderCommand is the process that keeps an agent's mounts. Agents start it.
func (a *app) holderCommand() *cobra.Command {
	var socket string
	var grace time.Duration
	cmd := &cobra.Command{
		Use:    "holder --socket PATH",
		Short:  "keep an agent's mounts while it restarts (agents start it)",
		Hidden: true,
		Long: `holder keeps descriptors of an agent's mounts, so that an agent that is killed comes back
under its readers. It ends when its agent left in order, or when none has come back for
the grace; then readers get ENOTCONN.`,
		Example: "  covey holder --socket /var/lib/covey/holder.sock",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if socket == "" || grace <= 0 {
				return misuse("--socket is missing, or --grace is no time")
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM)
			defer stop()
			// It must outlive what ends its agent: a terminal's Ctrl-C, a session.
			signal.Ignore(os.Interrupt, syscall.SIGHUP)
			return mount.RunHolder(ctx, socket, grace, slog.New(slog.NewTextHandler(a.stderr, nil)))
		},
	}
	cmd.Flags().StringVar(&socket, "socket", "", "listen on `PATH`")
	cmd.Flags().DurationVar(&grace, "grace", mount.HolderGrace, "keep the mounts of an agent that is gone for `TIME`")
	return cmd
}

// holderOptions have an agent's mounts kept by a holder that listens in its state
// directory.
func holderOptions(state string) peer.HolderOptions {
	socket := filepath.Join(state, "holder.sock")
	return peer.HolderOptions{Socket: socket, Start: func() error { return startHolder(socket, filepath.Join(state, "holder.log")) }}
}

// startHolder starts a holder in a session of its own.
func startHolder(socket, logFile string) error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("start a holder: find this program: %w", err)
	}
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start a holder: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(exe, "holder", "--socket", socket)
	cmd.Args[0] = "covey"
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start a holder: %w", err)
	}
	// It ends after its agent as a rule; one that ends before is reaped.
	go func() { _ = cmd.Wait() }()
	return nil
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/covey-cache/covey/gateway"
)

// addClientFlags makes the flags of a command that asks an agent.
func addClientFlags(cmd *cobra.Command) { addSettings(cmd, "api") }

func addJSONFlag(cmd *cobra.Command) {
	cmd.Flags().Bool("json", false, "print JSON, which stays the same between versions")
}

func wantJSON(cmd *cobra.Command) bool {
	on, _ := cmd.Flags().GetBool("json")
	return on
}

// socket is where a client command asks.
func (a *app) socket(cmd *cobra.Command) (string, error) {
	l := merged(flagLayer(cmd), envLayer(a.getenv))
	v, ok := l["api"]
	if !ok {
		return defaultSocket(a.getenv), nil
	}
	path, err := parseAPI(v.words[0])
	if err != nil {
		return "", l.fault("api", err)
	}
	return path, nil
}

// client returns a client of the agent that the command means. The caller
// closes it.
func (a *app) client(cmd *cobra.Command) (*gateway.Client, error) {
	socket, err := a.socket(cmd)
	if err != nil {
		return nil, err
	}
	c, err := gateway.Dial(cmd.Context(), socket)
	if errors.Is(err, gateway.ErrNoAgent) && socket != systemSocket {
		if _, e := os.Stat(systemSocket); e == nil {
			return nil, fmt.Errorf("%w, or ask the system's with --api unix://%s", err, systemSocket)
		}
	}
	return c, err
}

// ask runs f with a client, until f returns or the user interrupts it.
func (a *app) ask(cmd *cobra.Command, f func(ctx context.Context, c *gateway.Client) error) error {
	c, err := a.client(cmd)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err = f(ctx, c)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return errors.New("interrupted")
	}
	return err
}

// printJSON prints one value, indented for people who read it anyway.
func (a *app) printJSON(v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	if _, err := fmt.Fprintf(a.stdout, "%s\n", text); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	return nil
}

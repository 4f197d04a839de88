package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/gateway"
	"github.com/covey-cache/covey/mount"
)

func (a *app) mountCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "mount SOURCE DIR",
		Short: "mount a data set on a directory",
		Long: `mount asks the agent to show a data set at an empty directory. When no agent runs, it
starts one in the background, alone in its mesh, with its cache and state in the XDG
directories; the agent stays when mount returns.

SOURCE is s3://bucket/prefix?endpoint=http://host:9000&region=us-east-1, file:///path or
a plain path.`,
		Example: "  covey mount s3://bucket/imagenet /mnt/imagenet\n  covey mount /nfs/corpus ~/corpus",
		Args:    exactly("SOURCE", "DIR"),
		RunE:    a.mount,
	}
	addClientFlags(cmd)
	addJSONFlag(cmd)
	return cmd
}

func (a *app) mount(cmd *cobra.Command, args []string) error {
	source, err := absSource(args[0])
	if err != nil {
		return misuse("%w", err)
	}
	dir, err := mountPoint(args[1])
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	client, err := a.client(cmd)
	if errors.Is(err, gateway.ErrNoAgent) {
		var socket string
		if socket, err = a.socket(cmd); err == nil {
			client, err = a.startAgent(ctx, socket)
		}
	}
	if err != nil {
		return err
	}
	defer client.Close()
	m, err := client.Mount(ctx, gateway.MountRequest{Source: source, Dir: dir})
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("mount %s on %s: interrupted", source, dir)
	}
	if err != nil {
		return err
	}
	if wantJSON(cmd) {
		return a.printJSON(m)
	}
	fmt.Fprintf(a.stdout, "%s mounted on %s\n", m.Source, m.Dir)
	return nil
}

// mountPoint makes DIR absolute and looks that it is there, before an agent is
// started for nothing.
func mountPoint(dir string) (string, error) {
	if dir == "" {
		return "", misuse("the directory is empty")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("mount on %s: %w", dir, err)
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		abs = real
	}
	info, err := os.Stat(abs)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("mount on %s: there is no such directory: make it with mkdir", abs)
	case errors.Is(err, syscall.ENOTCONN):
		return "", fmt.Errorf("mount on %s: the agent that mounted it is dead: run covey umount %s first", abs, abs)
	case err != nil:
		return "", fmt.Errorf("mount on %s: %w", abs, err)
	case !info.IsDir():
		return "", fmt.Errorf("mount on %s: it is not a directory: give an empty one", abs)
	}
	return abs, nil
}

func (a *app) umountCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "umount DIR",
		Short: "unmount a data set",
		Long: `umount asks the agent to unmount a directory. When no agent answers, or the agent that
mounted it is another one or dead, umount takes it off itself.`,
		Example: "  covey umount /mnt/imagenet",
		Args:    exactly("DIR"),
		RunE:    a.umount,
	}
	addClientFlags(cmd)
	return cmd
}

func (a *app) umount(cmd *cobra.Command, args []string) error {
	dir, err := mountedDir(args[0])
	if err != nil {
		return err
	}
	err = a.ask(cmd, func(ctx context.Context, c *gateway.Client) error { return c.Unmount(ctx, dir) })
	if !errors.Is(err, covey.ErrNotFound) && !errors.Is(err, covey.ErrUnavailable) {
		return err
	}
	if _, _, mounted := mount.Mounted(dir); !mounted {
		return fmt.Errorf("unmount %s: nothing is mounted there: covey mounts lists what the agent has", dir)
	}
	// A mount whose server is dead has nothing left to finish.
	_, statErr := os.Stat(dir)
	return mount.Umount(dir, errors.Is(statErr, syscall.ENOTCONN))
}

// mountedDir makes DIR absolute as the kernel knows it, without touching it
// when it is a mount: its server may be dead.
func mountedDir(dir string) (string, error) {
	abs, err := absPath(dir)
	if err != nil {
		return "", misuse("%w", err)
	}
	if _, _, mounted := mount.Mounted(abs); mounted {
		return abs, nil
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		return real, nil
	}
	return abs, nil
}

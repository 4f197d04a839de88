package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/gateway"
	"github.com/covey-cache/covey/mount"
)

// umountTimeout is how long the agent may take to unmount before it is done
// without it; an agent's whole leave takes less.
const umountTimeout = 10 * time.Second

// pingTimeout tells a server that hangs from one that is busy: statfs needs no
// origin and no disk.
const pingTimeout = 2 * time.Second

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
	cmd.Flags().Bool("rw", false, "let programs write (off by default)")
	cmd.Flags().StringP("options", "o", "", "`OPTION,...` of this mount: rw, allow_other, xattr, uid=N, gid=N, umask=OCTAL")
	cmd.Flags().String("profile", "", "how files are opened, `auto|large|small` (default: the agent's)")
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
	profile, err := cmd.Flags().GetString("profile")
	if err != nil {
		return err
	}
	if _, err := mount.ParseProfile(profile); err != nil {
		return misuse("--profile: %w", err)
	}
	options, err := mountOptions(cmd)
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
	m, err := client.Mount(ctx, gateway.MountRequest{Source: source, Dir: dir, Profile: profile, Options: options})
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

// mountOptions reads -o and --rw.
func mountOptions(cmd *cobra.Command) (gateway.MountOptions, error) {
	text, err := cmd.Flags().GetString("options")
	if err != nil {
		return gateway.MountOptions{}, err
	}
	o, err := gateway.ParseMountOptions(text)
	if err != nil {
		return o, misuse("-o: %w", err)
	}
	if rw, _ := cmd.Flags().GetBool("rw"); rw {
		o.RW = true
	}
	return o, nil
}

// mountPoint makes DIR absolute and looks that it can be mounted on, before an
// agent is started for nothing. A mount that a dead agent left is taken off.
func mountPoint(dir string) (string, error) {
	path, err := mountedDir(dir)
	if err != nil {
		return "", err
	}
	if _, _, mounted := mount.Mounted(path); mounted && errors.Is(ping(path), syscall.ENOTCONN) {
		if err := mount.Umount(path, true); err != nil {
			return "", fmt.Errorf("mount on %s: what a dead agent left there: %w", path, err)
		}
	}
	if kind, _, mounted := mount.Mounted(path); mounted {
		return "", fmt.Errorf("mount on %s: already a mount point (%s): unmount it or give another directory", path, kind)
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("mount on %s: there is no such directory: make it with mkdir", path)
	case err != nil:
		return "", fmt.Errorf("mount on %s: %w", path, err)
	case !info.IsDir():
		return "", fmt.Errorf("mount on %s: it is not a directory: give an empty one", path)
	}
	return path, nil
}

func (a *app) umountCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "umount DIR",
		Short: "unmount a data set",
		Long: `umount asks the agent to unmount a directory. When no agent answers, or the agent that
mounted it is another one or dead, umount takes it off itself.`,
		Example: "  covey umount /mnt/imagenet\n  covey umount --lazy /mnt/imagenet",
		Args:    exactly("DIR"),
		RunE:    a.umount,
	}
	cmd.Flags().Bool("lazy", false, "take the mount off at once; files that are open stay readable until they are closed")
	addClientFlags(cmd)
	return cmd
}

func (a *app) umount(cmd *cobra.Command, args []string) error {
	dir, err := mountedDir(args[0])
	if err != nil {
		return err
	}
	if lazy, _ := cmd.Flags().GetBool("lazy"); lazy {
		// The agent hears of it when the last file is closed.
		return mount.Umount(dir, true)
	}
	err = a.ask(cmd, func(ctx context.Context, c *gateway.Client) error {
		ctx, cancel := context.WithTimeout(ctx, umountTimeout)
		defer cancel()
		return c.Unmount(ctx, dir)
	})
	if !errors.Is(err, covey.ErrNotFound) && !errors.Is(err, covey.ErrUnavailable) {
		return err
	}
	if _, _, mounted := mount.Mounted(dir); !mounted {
		return fmt.Errorf("unmount %s: nothing is mounted there: covey mounts lists what the agent has", dir)
	}
	err = mount.Umount(dir, false)
	if errors.Is(err, syscall.EBUSY) && ping(dir) != nil {
		return mount.Umount(dir, true) // nobody is left to finish what is open
	}
	return err
}

// ping asks the server of a mount for its statfs, which the kernel never
// answers from memory as it does a stat: nil when it answers, ENOTCONN when it
// is dead, and an error of its own when it hangs.
func ping(dir string) error {
	answer := make(chan error, 1)
	go func() { answer <- unix.Statfs(dir, new(unix.Statfs_t)) }()
	select {
	case err := <-answer:
		return err
	case <-time.After(pingTimeout):
		return fmt.Errorf("the agent that serves %s hangs", dir)
	}
}

// mountedDir makes DIR absolute as the kernel knows it, without touching it
// when it is a mount: its server may be dead.
func mountedDir(dir string) (string, error) {
	abs, err := absPath(dir)
	if err != nil {
		return "", misuse("directory: %w", err)
	}
	if _, _, mounted := mount.Mounted(abs); mounted {
		return abs, nil
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		return real, nil
	}
	return abs, nil
}

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/covey-cache/covey/gateway"
	"github.com/covey-cache/covey/peer"
)

func (a *app) clusterCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "cluster",
		Short:   "make a cluster key, issue memberships, show the cluster",
		Example: "  covey cluster init > cluster.key",
		Args:    a.needVerb,
		RunE:    func(*cobra.Command, []string) error { return nil },
	}
	cmd.AddCommand(a.clusterInitCommand(), a.clusterIssueCommand(), a.clusterShowCommand())
	return cmd
}

func (a *app) clusterInitCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "init",
		Short: "print a new cluster key",
		Long: `init prints a new cluster key, one line. Whoever has it is a member: keep it in a
file that only the agents' user can read, and give the file to each with --cluster-key.`,
		Example: "  (umask 077; covey cluster init > cluster.key)",
		Args:    exactly(),
		RunE: func(*cobra.Command, []string) error {
			if _, err := fmt.Fprintln(a.stdout, peer.NewClusterKey().String()); err != nil {
				return fmt.Errorf("write the key: %w", err)
			}
			return nil
		},
	}
}

// clusterInfo is the answer of covey cluster show --json. What is not known is
// left out.
type clusterInfo struct {
	// Fingerprint tells keys apart without giving them away.
	Fingerprint string         `json:"fingerprint,omitempty"`
	KeyFile     string         `json:"key_file,omitempty"`
	PeerID      string         `json:"peer_id,omitempty"`
	Standalone  *bool          `json:"standalone,omitempty"`
	Members     []gateway.Peer `json:"members,omitempty"`
}

func (a *app) clusterShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show",
		Short: "show the fingerprint of a key, or the agent's cluster",
		Long: `With --cluster-key, show prints the fingerprint of that key, by which two hosts can be
compared; the key itself is never shown. Without, it asks the agent for its cluster.`,
		Example: "  covey cluster show --cluster-key cluster.key\n  covey cluster show --json",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			l := merged(flagLayer(cmd), envLayer(a.getenv))
			var info clusterInfo
			var err error
			if file := l.one("cluster-key", ""); file != "" {
				info, err = keyInfo(file)
			} else {
				info, err = a.memberInfo(cmd)
			}
			if err != nil {
				return err
			}
			if wantJSON(cmd) {
				return a.printJSON(info)
			}
			a.showCluster(info)
			return nil
		},
	}
	addSettings(cmd, "api", "cluster-key")
	addJSONFlag(cmd)
	return cmd
}

func keyInfo(file string) (clusterInfo, error) {
	key, err := readClusterKey(file, nil)
	if err != nil {
		return clusterInfo{}, err
	}
	// The key is 256 random bits, so 64 bits of its hash tell nothing of it.
	sum := sha256.Sum256([]byte("covey cluster key fingerprint\n" + key.String()))
	return clusterInfo{Fingerprint: hex.EncodeToString(sum[:8]), KeyFile: file}, nil
}

// readClusterKey reads a key file, and warns of one that others can read.
func readClusterKey(file string, log *slog.Logger) (*peer.ClusterKey, error) {
	key, err := peer.ReadClusterKey(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: make one with `covey cluster init`, or copy it from a member", err)
	}
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read cluster key %s: the file is empty: make a key with `covey cluster init`, or copy it from a member", file)
	}
	if err != nil {
		return nil, err
	}
	warnOfMode(file, "other users can read the cluster key; take their right away with chmod 600", log)
	return &key, nil
}

// warnOfMode warns of a secret that others can read.
func warnOfMode(file, warning string, log *slog.Logger) {
	if info, err := os.Stat(file); err == nil && log != nil && info.Mode().Perm()&0o077 != 0 {
		log.Warn(warning, "file", file, "mode", info.Mode().Perm().String())
	}
}

func (a *app) memberInfo(cmd *cobra.Command) (clusterInfo, error) {
	var info clusterInfo
	err := a.ask(cmd, func(ctx context.Context, c *gateway.Client) error {
		s, err := c.Status(ctx)
		if err != nil {
			return err
		}
		info.PeerID, info.Standalone = s.PeerID, &s.Standalone
		info.Members, err = c.Peers(ctx)
		return err
	})
	return info, err
}

func (a *app) showCluster(info clusterInfo) {
	switch {
	case info.Fingerprint != "":
		fmt.Fprintf(a.stdout, "%s  %s\n", info.Fingerprint, info.KeyFile)
	case *info.Standalone:
		fmt.Fprintf(a.stdout, "%s is alone: it was started without --cluster-key\n", info.PeerID)
	default:
		fmt.Fprintf(a.stdout, "%s  this agent\n", info.PeerID)
		for _, p := range info.Members {
			fmt.Fprintf(a.stdout, "%s  %s\n", p.ID, p.Host)
		}
	}
}

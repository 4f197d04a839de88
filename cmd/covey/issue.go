package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/peer"
)

// defaultIssue is how long a membership lasts unless said otherwise: long enough
// that issuing is no daily chore, short enough that a machine that was forgotten is
// out before long.
const defaultIssue = 30 * 24 * time.Hour

func (a *app) clusterIssueCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "issue [PEER]",
		Short: "make one agent a member without giving it the cluster key",
		Long: `issue prints a member record, one line, which an agent is given with --member-record in
place of the cluster key. It ends at its expiry, and can be taken back before: put the peer
ID into the file that agents with the key are given with --revoked.

With PEER, the ID of an agent as covey cluster show prints it, the record is good for that
agent alone and no secret. Without, a new identity is made and is part of the record: keep
it in a file that only the agent's user can read. The peer ID is told on standard error.`,
		Example: `  (umask 077; covey cluster issue --cluster-key cluster.key > node7.member)
  covey cluster issue --cluster-key cluster.key --expires 90d 12D3KooW... > node7.member`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return misuse("at most one PEER, not %d", len(args))
			}
			return nil
		},
		RunE: a.clusterIssue,
	}
	addSettings(cmd, "cluster-key")
	cmd.Flags().String("expires", "", "`TIME` that the record is good for, like 12h or 90d (default 30d)")
	return cmd
}

func (a *app) clusterIssue(cmd *cobra.Command, args []string) error {
	file := merged(flagLayer(cmd), envLayer(a.getenv)).one("cluster-key", "")
	if file == "" {
		return misuse("the key that signs is missing: give --cluster-key FILE")
	}
	life := defaultIssue
	if text, _ := cmd.Flags().GetString("expires"); text != "" {
		var err error
		if life, err = parseLife(text); err != nil {
			return misuse("--expires: %w", err)
		}
	}
	key, err := readClusterKey(file, nil)
	if err != nil {
		return err
	}
	id := ""
	if len(args) == 1 {
		id = args[0]
	}
	record, err := peer.IssueMember(*key, id, life)
	if errors.Is(err, covey.ErrInvalid) {
		return misuse("%w", err)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(a.stderr, "issued to %s until %s\n", record.Peer, record.Expires.Format(time.RFC3339))
	if _, err := fmt.Fprintln(a.stdout, record.String()); err != nil {
		return fmt.Errorf("write the member record: %w", err)
	}
	return nil
}

// parseLife reads a duration that may be in days.
func parseLife(text string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.Atoi(days)
		if err != nil || n <= 0 || n > int(peer.MaxIssue/(24*time.Hour)) {
			return 0, fmt.Errorf("%q: write it like 12h or 90d, at most %d days", text, peer.MaxIssue/(24*time.Hour))
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 || d > peer.MaxIssue {
		return 0, fmt.Errorf("%q: write it like 12h or 90d, at most %d days", text, peer.MaxIssue/(24*time.Hour))
	}
	return d, nil
}

// readMemberRecord reads a member record, and warns of one that others can read if
// there is a secret in it.
func readMemberRecord(file string, log *slog.Logger) (*peer.MemberRecord, error) {
	record, err := peer.ReadMemberRecord(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: have one made with `covey cluster issue`", err)
	case errors.Is(err, covey.ErrDenied):
		return nil, fmt.Errorf("%w: have another made with `covey cluster issue`", err)
	case err != nil:
		return nil, err
	}
	if record.HasIdentity() {
		warnOfMode(file, "other users can read the member record, which has a private key in it; take their right away with chmod 600", log)
	}
	return &record, nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/covey-cache/covey"
)

// The exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitMisuse = 2
)

// misuseError says that the command line, the environment or the config file is
// wrong, so that the same call can never work.
type misuseError struct{ err error }

func (e *misuseError) Error() string { return e.err.Error() }
func (e *misuseError) Unwrap() error { return e.err }

// misuse returns an error that ends the command with exit code 2.
func misuse(format string, args ...any) error {
	return &misuseError{err: fmt.Errorf(format, args...)}
}

func exitCode(err error) int {
	var m *misuseError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &m), errors.Is(err, covey.ErrInvalid):
		return exitMisuse
	}
	return exitFailed
}

// run executes one command line and reports its error in one line.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil {
		if cmd == root && len(args) > 0 && !strings.HasPrefix(args[0], "-") {
			err = a.needVerb(root, args) // and not a complaint of a flag behind the unknown verb
		}
		fmt.Fprintf(a.stderr, "%s: %s\n", cmd.CommandPath(), oneLine(err.Error()))
	}
	return exitCode(err)
}

// commands are the verbs, in the order in which help shows them.
func (a *app) commands() []*cobra.Command {
	return []*cobra.Command{
		a.agentCommand(),
		a.mountCommand(),
		a.umountCommand(),
		a.prefetchCommand(),
		a.statusCommand(),
		a.stagedCommand(),
		a.holderCommand(),
		a.peersCommand(),
		a.mountsCommand(),
		a.plansCommand(),
		a.locateCommand(),
		a.statCommand(),
		a.duCommand(),
		a.pinCommand(),
		a.unpinCommand(),
		a.evictCommand(),
		a.verifyCommand(),
		a.clusterCommand(),
		a.testnetCommand(),
		a.doctorCommand(),
		a.benchCommand(),
		a.versionCommand(),
		a.completionCommand(),
	}
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "covey",
		Short: "a peer-to-peer cache of training data for GPU clusters",
		Long: `covey shows a data set of an object store or file system as a directory, and keeps
what was read in a cache that all agents of a cluster share: each byte is read from
the origin once.`,
		Example: `  covey mount s3://bucket/imagenet /mnt/imagenet
  covey prefetch /mnt/imagenet
  covey status`,
		SilenceErrors: true, // run reports them, in one line
		SilenceUsage:  true,
		Args:          a.needVerb,
		RunE:          func(*cobra.Command, []string) error { return nil },
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return misuse("%w: see `%s --help`", err, cmd.CommandPath())
	})
	root.SetHelpCommand(a.helpCommand())
	cobra.EnableCommandSorting = false
	root.AddCommand(a.commands()...)
	return root
}

// needVerb refuses a call of a command that only holds others.
func (a *app) needVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return misuse("no command given: see `%s --help`", cmd.CommandPath())
	}
	cmd.SuggestionsMinimumDistance = 2
	hint := fmt.Sprintf("see `%s --help`", cmd.CommandPath())
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = fmt.Sprintf("did you mean `%s %s`?", cmd.CommandPath(), near[0])
	}
	return misuse("unknown command %q: %s", args[0], hint)
}

func (a *app) helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "show the help of a command",
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return misuse("no help on %q: there is no such command", strings.Join(args, " "))
			}
			found.InitDefaultHelpFlag()
			return found.Help()
		},
	}
}

// exactly wants one argument for each of the names.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		want := "no arguments"
		if len(names) > 0 {
			want = strings.Join(names, " ")
		}
		return misuse("%d arguments given, want %s: see `%s --help`", len(args), want, cmd.CommandPath())
	}
}

// oneLine makes text fit for one line of a terminal: control characters, which
// a name in an error may contain, become spaces.
func oneLine(text string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text))
}

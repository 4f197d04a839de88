package mount

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"

	"github.com/covey-cache/covey/origin"
	"github.com/covey-cache/covey/origin/origintest"
)

// The cases of go-fuse's posixtest that a mount is expected to fail, with why.
// Whatever is not here must pass; what is here must fail, so that the lists stay
// true. Only S3 has directories that cannot be renamed.
var (
	unlikeWritable = map[string]string{
		"Link":                       "no hard links: an object has one key (EPERM)",
		"LinkUnlinkRename":           "no hard links",
		"SymlinkReadlink":            "no symbolic links are made (EPERM)",
		"SetattrSymlink":             "no symbolic links are made",
		"OpenSymlinkRace":            "no symbolic links are made",
		"FcntlFlockLocksFile":        "it wants one process's locks to conflict with each other, as they do not on any local file system; locks are the kernel's own here",
		"FstatDeleted":               "a deleted file that is open goes on showing st_nlink 1",
		"NlinkZero":                  "a replaced file that is open goes on showing st_nlink 1",
		"ParallelFileOpen":           "an object cannot be opened for writing without O_TRUNC (EOPNOTSUPP)",
		"RenameOverwriteDestExist":   "st_ino is a hash of the path, so that it is the same on all hosts: a rename changes it",
		"RenameOverwriteDestNoExist": "st_ino is a hash of the path",
		"TruncateFile":               "an object cannot be opened for writing without O_TRUNC",
		"TruncateNoFile":             "an object can be cut to nothing only",
	}
	unlikeS3 = map[string]string{
		"FileBasic":     "S3 keeps no permissions",
		"OpenAt":        "S3 cannot rename a directory (EXDEV)",
		"RenameOpenDir": "S3 cannot rename a directory",
	}
	// readsOnly pass without making anything.
	readsOnly = []string{"FdLeak", "OpenAt", "ReadDirConsistency"}
)

const (
	posixCaseEnv = "COVEY_POSIX_CASE"
	posixDirEnv  = "COVEY_POSIX_DIR"
)

// posixCase runs one case on a directory and returns its outcome and output.
func posixCase(name, dir string) (outcome, output string) {
	c := exec.Command(os.Args[0], "-test.run", "^TestPosix$", "-test.v", "-test.timeout", "60s")
	c.Env = append(os.Environ(), posixCaseEnv+"="+name, posixDirEnv+"="+dir)
	out, err := c.CombinedOutput()
	switch {
	case err != nil:
		return "fail", string(out)
	case strings.Contains(string(out), "--- SKIP"):
		return "skip", string(out)
	}
	return "pass", string(out)
}

// TestPosix runs all of go-fuse's cases on mounts that may write: each in a process
// of its own, which is this test again, because a case that fails fails its test.
func TestPosix(t *testing.T) {
	if name := os.Getenv(posixCaseEnv); name != "" {
		posixtest.All[name](t, os.Getenv(posixDirEnv))
		return
	}
	for _, kind := range []string{"posix", "s3"} {
		t.Run(kind, func(t *testing.T) {
			url, opts := t.TempDir(), origin.Options{}
			if kind == "s3" {
				s := origintest.StartS3(t)
				if err := s.CreateBucket("posix-test"); err != nil {
					t.Fatal(err)
				}
				url, opts = s.URL("posix-test", ""), s.Options()
			}
			w := startWritable(t, url, opts, false)
			for i, name := range slices.Sorted(maps.Keys(posixtest.All)) {
				dir := w.path(fmt.Sprintf("case-%02d", i))
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				outcome, output := posixCase(name, dir)
				why := unlikeWritable[name]
				if kind == "s3" && why == "" {
					why = unlikeS3[name]
				}
				switch {
				case why == "" && outcome == "fail":
					t.Errorf("%s fails:\n%s", name, output)
				case why != "" && outcome == "pass" && !strings.HasPrefix(name, "RenameOverwriteDest"):
					// (Those two pass when the kernel still believes its old attributes.)
					t.Errorf("%s passes, although %s", name, why)
				}
				t.Logf("%-28s %s %s", name, outcome, why)
			}
		})
	}
}

// TestPosixReadOnly runs the cases on a mount that only reads. Those that make
// files cannot begin; the reading of what is there is in this package's own tests.
func TestPosixReadOnly(t *testing.T) {
	names := newFakeNames()
	names.file("f", "v1", 100)
	m := start(t, names, Options{})
	for _, name := range slices.Sorted(maps.Keys(posixtest.All)) {
		switch outcome, output := posixCase(name, m.dir); {
		case outcome == "pass" && !slices.Contains(readsOnly, name):
			t.Errorf("%s passes on a mount that only reads", name)
		case outcome == "fail" && !strings.Contains(output, "read-only file system"):
			t.Errorf("%s does not fail for EROFS:\n%s", name, output)
		}
	}
}

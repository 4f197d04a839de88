package mount

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/covey-cache/covey/origin"
)

// need returns the paths of programs, or skips.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not installed (apt-get install %s): this is not tested here", p, p)
		}
	}
}

// tool runs a program and returns its output; it must succeed.
func tool(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	c := exec.Command(name, args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GO111MODULE=on", "GOWORK=off", "GIT_CONFIG_COUNT=1",
		"GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*", "GIT_AUTHOR_NAME=t", "GIT_AUTHOR_EMAIL=t@example.org",
		"GIT_COMMITTER_NAME=t", "GIT_COMMITTER_EMAIL=t@example.org", "GIT_OPTIONAL_LOCKS=0")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestFio has fio write with checksums, and read them back once the files are
// objects.
func TestFio(t *testing.T) {
	need(t, "fio")
	for _, served := range []bool{false, true} {
		t.Run(fmt.Sprint("served ", served), func(t *testing.T) {
			w := startWritable(t, t.TempDir(), origin.Options{}, served)
			job := []string{"--name=v", "--directory=" + w.dir, "--size=24m", "--bs=52k", "--nrfiles=3", "--numjobs=2",
				"--ioengine=psync", "--verify=crc32c", "--verify_fatal=1", "--create_on_open=1", "--allow_file_create=1", "--group_reporting", "--randseed=7"}
			state := t.TempDir() // fio leaves its verify state where it runs
			tool(t, state, "fio", append(job, "--rw=write", "--do_verify=0")...)
			w.quiet()
			if files, err := os.ReadDir(w.dir); err != nil || len(files) != 6 {
				t.Fatalf("fio wrote %d files, %v", len(files), err)
			}
			tool(t, state, "fio", append(job, "--rw=read")...)
		})
	}
}

// TestGit checks a repository that is read through the mount, and builds the
// program in it.
func TestGit(t *testing.T) {
	need(t, "git", "go")
	source := t.TempDir()
	repo := filepath.Join(source, "repo")
	if err := os.Mkdir(repo, 0o755); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		"go.mod":  "module example.org/hello\n\ngo 1.26\n",
		"main.go": "package main\n\nimport \"example.org/hello/words\"\n\nfunc main() { print(words.Hello) }\n",
	}
	for i := range 50 {
		files[fmt.Sprintf("words/w%02d.go", i)] = fmt.Sprintf("package words\n\nconst W%02d = %q\n", i, strings.Repeat("w", 100*i))
	}
	files["words/hello.go"] = "package words\n\nconst Hello = \"hello\" + W00\n"
	for name, text := range files {
		path := filepath.Join(repo, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"init", "-q", "."}, {"add", "."}, {"commit", "-qm", "all"}, {"gc", "-q"}} {
		tool(t, repo, "git", args...)
	}
	tool(t, source, "git", "clone", "-q", "--no-hardlinks", "repo", "clone")
	w := startWritable(t, source, origin.Options{}, false)
	tool(t, w.path("clone"), "git", "fsck", "--full", "--strict")
	if out := tool(t, w.path("clone"), "git", "log", "--oneline"); !strings.Contains(out, "all") {
		t.Errorf("git log: %q", out)
	}
	program := filepath.Join(t.TempDir(), "hello")
	tool(t, w.path("clone"), "go", "build", "-buildvcs=false", "-o", program, ".")
	if out, err := exec.Command(program).CombinedOutput(); err != nil || string(out) != "hello" {
		t.Errorf("the program that was built: %q, %v", out, err)
	}
}

// TestSQLite reads a database through the mount, by queries and by its own check.
func TestSQLite(t *testing.T) {
	need(t, "python3")
	source := t.TempDir()
	const make = `
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("create table t (k integer primary key, v text)")
db.executemany("insert into t values (?, ?)", ((i, "v%d" % i * 20) for i in range(50000)))
db.execute("create index i on t (v)")
db.commit()
`
	const read = `
import sqlite3, sys
db = sqlite3.connect("file:%s?mode=ro" % sys.argv[1], uri=True)
assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
assert db.execute("select count(*), sum(k) from t").fetchone() == (50000, 1249975000)
assert db.execute("select k from t where v = ?", ("v4711" * 20,)).fetchall() == [(4711,)]
print("ok")
`
	tool(t, "", "python3", "-c", make, filepath.Join(source, "db"))
	for _, served := range []bool{false, true} {
		w := startWritable(t, source, origin.Options{}, served)
		if out := tool(t, "", "python3", "-c", read, w.path("db")); out != "ok\n" {
			t.Errorf("served %v: %q", served, out)
		}
	}
}

// TestRsync compares the mount with its source by checksums, and copies a tree
// into the mount.
func TestRsync(t *testing.T) {
	need(t, "rsync")
	source := t.TempDir()
	for i := range 60 {
		path := filepath.Join(source, fmt.Sprintf("d%d/e%d/f%d", i%3, i%7, i))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, noise(i*i*300, uint64(i)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	w := startWritable(t, source, origin.Options{}, false)
	if out := tool(t, "", "rsync", "-rcni", "--delete", source+"/", w.dir+"/"); out != "" {
		t.Errorf("the mount differs from its source:\n%s", out)
	}
	into := startWritable(t, t.TempDir(), origin.Options{}, false)
	tool(t, "", "rsync", "-r", source+"/", into.dir+"/")
	into.quiet()
	if out := tool(t, "", "rsync", "-rcni", "--delete", source+"/", into.dir+"/"); out != "" {
		t.Errorf("what was copied into a mount differs:\n%s", out)
	}
	got, err := into.atOrigin("d0/e0/f42")
	if err != nil || !bytes.Equal(got, noise(42*42*300, 42)) {
		t.Errorf("at the origin: %d bytes, %v", len(got), err)
	}
}

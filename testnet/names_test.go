package testnet_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/covey-cache/covey/peer"
	"github.com/covey-cache/covey/testnet"
)

// mountSource starts an agent that is alone with one source mounted.
func mountSource(t *testing.T, source string) *testnet.Process {
	t.Helper()
	m := newMesh(t, map[string]int{"f": 1})
	return m.agentWith(t, testnet.AgentSpec{Mounts: []peer.MountSpec{{Source: source, Dir: filepath.Join(m.dir, "odd")}}})
}

// shownTree lists what a mount shows: directories with a slash behind, links with
// their target, files with their content.
func shownTree(t *testing.T, root string) map[string]string {
	t.Helper()
	shown := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		name := strings.TrimPrefix(path, root+"/")
		switch {
		case d.IsDir():
			shown[name+"/"] = ""
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			shown[name] = "-> " + target
		default:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			shown[name] = string(b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return shown
}

func requireShown(t *testing.T, root string, want map[string]string) {
	t.Helper()
	got := shownTree(t, root)
	for name, content := range want {
		if is, ok := got[name]; !ok || is != content {
			t.Errorf("%q: shown %v with %d bytes %.60q, want %d bytes", name, ok, len(is), is, len(content))
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%q is shown and should not be", name)
		}
	}
}

// withDirs adds the directories above each name.
func withDirs(names map[string]string) map[string]string {
	all := map[string]string{}
	for name, content := range names {
		all[name] = content
		for i, c := range strings.TrimSuffix(name, "/") {
			if c == '/' {
				all[name[:i+1]] = ""
			}
		}
	}
	return all
}

// Keys that are no paths, or clash, show through a real mount as NAMES.md says,
// and none leads out of it.
func TestOddKeys(t *testing.T) {
	long := strings.Repeat("n", 255)
	files := []string{
		"plain", "sp ace+%41&?#", "back\\slash", "new\nline", "\x01control", "\"<quoted>'", "üñí/π", "Case", "case",
		"clash/x", long, strings.Repeat("d/", 200) + "x", "a/shown", "-rf", "~", "*",
		strings.Repeat(long[:250]+"/", 4) + long[:20], // 1,024 bytes
	}
	hidden := []string{
		"clash", "a//b", "a//", "/lead", "//", ".", "..", "../up", "up/../../../etc/passwd", "dot/./x", "dot/.",
		long + "n", "deep/" + long + "n/x",
	}
	want := map[string]string{"marker/": "", "up/": "", "dot/": "", "deep/": ""}
	for _, key := range files {
		want[key] = oddContent(key)
	}
	endpoint := serveOddBucket(t, append(slices.Concat(files, hidden), "marker/")...)
	p := mountSource(t, "s3://odd?endpoint="+endpoint+"&region=us-east-1")
	for range 2 {
		requireShown(t, p.Mount(), withDirs(want))
	}
	for _, name := range []string{"marker/x", "up/etc", "a/b", "dot/x", "lead", "deep/x", "nothing"} {
		if _, err := os.Lstat(filepath.Join(p.Mount(), name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v, want not found", name, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(p.Mount(), long+"n")); !errors.Is(err, syscall.ENAMETOOLONG) {
		t.Errorf("a name of 256 bytes: %v, want ENAMETOOLONG", err)
	}
	if got := scrape(t, p)["covey_dataset_hidden_keys_total"]; got == 0 {
		t.Error("the hidden keys are not counted")
	}
	requireMounted(t, p.Mount())
}

// What a directory can hold shows as it is: bytes that are no UTF-8, links that
// lead out, which the reader follows and nobody else, empty directories, and no
// pipe, which a reader would hang on.
func TestOddNamesOnPosix(t *testing.T) {
	root := t.TempDir()
	source, outside := filepath.Join(root, "source"), filepath.Join(root, "outside")
	long := strings.Repeat("n", 255)
	want := map[string]string{
		"\xff\xfe": "1", "new\nline": "2", long: "3", "deep/" + strings.Repeat("d/", 100) + "x": "4", "a:b*?": "5",
		"empty/": "", "relative": "-> deep", "dangling": "-> nowhere", "loop": "-> loop",
		"absolute": "-> " + outside, "escaping": "-> ../outside",
	}
	for name, content := range want {
		path := filepath.Join(source, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, link := strings.CutPrefix(content, "-> "); link {
			err = os.Symlink(target, path)
		} else if strings.HasSuffix(name, "/") {
			err = os.Mkdir(path, 0o755)
		} else {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(outside, []byte("outside"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(source, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := mountSource(t, source)
	for range 2 {
		requireShown(t, p.Mount(), withDirs(want))
	}
	// The kernel follows the links from where the mount is, for whoever reads.
	if got, err := os.ReadFile(filepath.Join(p.Mount(), "absolute")); err != nil || string(got) != "outside" {
		t.Errorf("through an absolute link: %q, %v", got, err)
	}
	if _, err := os.ReadFile(filepath.Join(p.Mount(), "escaping")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("through a link that names nothing beside the mount: %v, want not found", err)
	}
	if _, err := os.ReadFile(filepath.Join(p.Mount(), "loop")); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("through a loop: %v, want ELOOP", err)
	}
	requireMounted(t, p.Mount())
}

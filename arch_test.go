package covey_test

import (
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/covey-cache/covey"

// step is a folder's place in the import order: a package may import only
// packages of a higher step, and packages of its own folder. Folders of one
// step never import each other, so each can be understood, tested and replaced
// without the other.
var step = map[string]int{
	"cmd":        0,
	"testnet":    1,
	"peer":       2,
	"mount":      3,
	"gateway":    3,
	"loaders":    3,
	"fetch":      4,
	"dataset":    5,
	"blockstore": 6,
	"dht":        6,
	"origin":     6,
	"":           7, // the root package: shared words only
}

// fences say which folders may import a module, and why. What is fenced can be
// replaced by changing one folder.
var fences = []struct {
	prefix, why string
	folders     []string
}{
	{"github.com/libp2p/go-libp2p-kad-dht", "the DHT is one of two ways to find a holder", []string{"dht"}},
	{"github.com/libp2p/go-libp2p", "other packages name a peer with covey.PeerID", []string{"dht", "peer", "testnet"}},
	{"github.com/cockroachdb/pebble", "the index is the store's own business", []string{"blockstore"}},
	{"github.com/klauspost/compress", "codecs are the store's own business", []string{"blockstore"}},
	{"github.com/hanwen/go-fuse", "the kernel's door", []string{"mount"}},
	{"github.com/aws/", "a cloud SDK stays in its driver", []string{"origin"}},
	{"github.com/spf13/cobra", "flags in, exit code out", []string{"cmd"}},
}

type goPackage struct {
	ImportPath                         string
	Dir                                string
	Doc                                string
	Imports, TestImports, XTestImports []string
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Dir,Doc,Imports,TestImports,XTestImports", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []goPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < len(step)-4 {
		t.Fatalf("go list found only %d packages", len(all))
	}
	return all
}

// folder returns the top-level folder of a package of this module.
func folder(importPath string) (string, bool) {
	rest, ok := strings.CutPrefix(importPath, module)
	if !ok {
		return "", false
	}
	top, _, _ := strings.Cut(strings.TrimPrefix(rest, "/"), "/")
	return top, true
}

func TestImportOrder(t *testing.T) {
	for _, p := range listPackages(t) {
		from, _ := folder(p.ImportPath)
		at, known := step[from]
		if !known {
			t.Errorf("folder %q has no place in the import order; ARCHITECTURE.md must give the reason for it", from)
			continue
		}
		for _, list := range [][]string{p.Imports, p.TestImports, p.XTestImports} {
			for _, imported := range list {
				to, ours := folder(imported)
				if ours && to != from && step[to] <= at {
					t.Errorf("%s imports %s, which is not to its right in the import order", p.ImportPath, imported)
				}
			}
		}
	}
}

func TestFences(t *testing.T) {
	for _, p := range listPackages(t) {
		from, _ := folder(p.ImportPath)
		for _, imported := range append(append(p.Imports, p.TestImports...), p.XTestImports...) {
			for _, f := range fences {
				if !strings.HasPrefix(imported, f.prefix) {
					continue
				}
				if !slices.Contains(f.folders, from) {
					t.Errorf("%s imports %s; only %v may: %s", p.ImportPath, imported, f.folders, f.why)
				}
				break // the first, longest prefix decides
			}
		}
	}
}

// TestPackageDocs keeps one package comment a package: none leaves the reader
// alone, two contradict each other in time.
func TestPackageDocs(t *testing.T) {
	for _, p := range listPackages(t) {
		if p.Doc == "" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
		files, err := filepath.Glob(filepath.Join(p.Dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		var with []string
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if f.Doc != nil {
				with = append(with, filepath.Base(file))
			}
		}
		if len(with) > 1 {
			t.Errorf("%s has %d package comments: %v", p.ImportPath, len(with), with)
		}
	}
}

// TestFileLength keeps files to one noun each. Generated code is exempt.
func TestFileLength(t *testing.T) {
	const most = 600
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "bin" || d.Name() == "tools"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, ".pb.go"):
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if n := strings.Count(string(b), "\n"); n > most {
			t.Errorf("%s has %d lines: which second noun is in it?", path, n)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

package gateway

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"
)

var update = flag.Bool("update", false, "write openapi.yaml's schemas anew from the types")

// described are the types that the API sends and takes.
var described = []any{
	Status{}, FetchedBytes{}, Tier{}, Mount{}, Peer{}, MountRequest{}, PrefetchRequest{}, PathRequest{}, TierRequest{},
	Stat{}, TierPart{}, Du{}, DuSource{}, Pinned{}, Evicted{}, Job{}, Location{}, BlockLocation{},
	MountOptions{}, StagedFile{}, StagedRequest{},
	PlanRequest{}, PlanManifest{}, PlanRenewal{}, Plan{}, PlanRank{},
}

// TestOpenAPISchemas holds the description against the types: every field, its
// type, and its comment. With -update it writes them.
func TestOpenAPISchemas(t *testing.T) {
	comments := fieldComments(t)
	var b strings.Builder
	b.WriteString("    Error:\n      type: object\n      properties:\n        error: {type: string}\n")
	for _, v := range described {
		describe(t, &b, reflect.TypeOf(v), comments)
	}
	const mark = "\n  schemas:\n"
	text, err := os.ReadFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	head, have, ok := strings.Cut(string(text), mark)
	if !ok {
		t.Fatal("openapi.yaml has no schemas")
	}
	if have == b.String() {
		return
	}
	if !*update {
		t.Fatal("openapi.yaml does not say what the types are; run `go test ./gateway -run OpenAPI -update`")
	}
	if err := os.WriteFile("openapi.yaml", []byte(head+mark+b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

// describe writes the schema of one struct.
func describe(t *testing.T, b *strings.Builder, s reflect.Type, comments map[string]string) {
	fmt.Fprintf(b, "    %s:\n      type: object\n      properties:\n", s.Name())
	for i := range s.NumField() {
		f := s.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" {
			t.Errorf("%s.%s has no JSON name", s.Name(), f.Name)
		}
		fmt.Fprintf(b, "        %s:\n          %s\n", name, schemaOf(t, f.Type))
		if c := comments[s.Name()+"."+f.Name]; c != "" {
			fmt.Fprintf(b, "          description: %q\n", c)
		}
	}
}

func schemaOf(t *testing.T, f reflect.Type) string {
	switch f.Kind() {
	case reflect.String:
		return "type: string"
	case reflect.Bool:
		return "type: boolean"
	case reflect.Int, reflect.Int64, reflect.Uint64, reflect.Uint32:
		return "type: integer"
	case reflect.Pointer:
		return schemaOf(t, f.Elem())
	case reflect.Float64:
		return "type: number"
	case reflect.Slice:
		return "type: array\n          items: {" + oneSchema(t, f.Elem()) + "}"
	case reflect.Map:
		return "type: object\n          additionalProperties: {" + oneSchema(t, f.Elem()) + "}"
	}
	return oneSchema(t, f)
}

func oneSchema(t *testing.T, f reflect.Type) string {
	switch {
	case f == reflect.TypeFor[time.Time]():
		return "type: string"
	case f.Kind() == reflect.Struct:
		return fmt.Sprintf("$ref: %q", "#/components/schemas/"+f.Name())
	case f.Kind() == reflect.Slice:
		return "type: array, items: {" + oneSchema(t, f.Elem()) + "}"
	}
	return schemaOf(t, f)
}

// fieldComments are the comments of the package's struct fields.
func fieldComments(t *testing.T) map[string]string {
	t.Helper()
	comments := map[string]string{}
	for _, file := range sources(t) {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.TYPE {
				continue
			}
			for _, spec := range g.Specs {
				s, ok := spec.(*ast.TypeSpec).Type.(*ast.StructType)
				if !ok {
					continue
				}
				for _, field := range s.Fields.List {
					text := field.Doc.Text()
					if text == "" {
						text = field.Comment.Text()
					}
					for _, name := range field.Names {
						comments[spec.(*ast.TypeSpec).Name.Name+"."+name.Name] = strings.Join(strings.Fields(text), " ")
					}
				}
			}
		}
	}
	return comments
}

func sources(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, "_test.go") })
}

// call is one method of one path.
type call struct{ method, path string }

var (
	routePattern = regexp.MustCompile(`mux\.Handle\("(/api/v1/[^"]+)", h\.route(?:UpTo)?\(([^}]*)\}\)`)
	verbPattern  = regexp.MustCompile(`http\.Method(\w+):`)
)

// routed are the calls that the package's source registers.
func routed(t *testing.T) []call {
	t.Helper()
	calls := []call{{"GET", "/api/v1/openapi.yaml"}}
	for _, file := range sources(t) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range routePattern.FindAllSubmatch(text, -1) {
			for _, v := range verbPattern.FindAllSubmatch(m[2], -1) {
				calls = append(calls, call{strings.ToUpper(string(v[1])), string(m[1])})
			}
		}
	}
	return calls
}

// TestOpenAPIRoutes holds the description against the routes, both ways, and
// makes each call: none may be unknown.
func TestOpenAPIRoutes(t *testing.T) {
	var doc struct {
		Paths map[string]map[string]struct {
			Summary   string
			Responses map[string]any
		}
	}
	if err := yaml.Unmarshal(openAPI, &doc); err != nil {
		t.Fatal(err)
	}
	written := map[call]bool{}
	h := NewHandler(&fakeAgent{}, HandlerOptions{Socket: true})
	for path, methods := range doc.Paths {
		for method, m := range methods {
			c := call{strings.ToUpper(method), path}
			written[c] = true
			if m.Summary == "" || len(m.Responses) == 0 {
				t.Errorf("%s %s has no summary or no responses", c.method, c.path)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(c.method, strings.ReplaceAll(c.path, "{id}", "x"), nil))
			if w.Code == http.StatusMethodNotAllowed || bytes.Contains(w.Body.Bytes(), []byte("no such call")) {
				t.Errorf("%s %s is described and answered with %d %s", c.method, c.path, w.Code, w.Body)
			}
		}
	}
	calls := routed(t)
	if len(calls) < 20 {
		t.Errorf("found only %d routes in the source", len(calls))
	}
	for _, c := range calls {
		if !written[c] {
			t.Errorf("%s %s is not described", c.method, c.path)
		}
		delete(written, c)
	}
	for c := range written {
		t.Errorf("%s %s is described and not in the source", c.method, c.path)
	}
	for _, ref := range regexp.MustCompile(`#/components/(\w+)/(\w+)`).FindAllSubmatch(openAPI, -1) {
		if !bytes.Contains(openAPI, []byte("\n    "+string(ref[2])+":")) {
			t.Errorf("%s is not in the components", ref[0])
		}
	}
}

// TestOpenAPIServed asks the read-only door for the description.
func TestOpenAPIServed(t *testing.T) {
	w := httptest.NewRecorder()
	NewHandler(&fakeAgent{}, HandlerOptions{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/api/v1/openapi.yaml", nil))
	if w.Code != http.StatusOK || !bytes.Equal(w.Body.Bytes(), openAPI) || w.Header().Get("Content-Type") != "application/yaml" {
		t.Errorf("%d %s: %d bytes", w.Code, w.Header().Get("Content-Type"), w.Body.Len())
	}
}

package scenario

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/covey-cache/covey"
)

//go:embed shipped/*.yaml
var shipped embed.FS

// Shipped returns the names of the embedded scenarios, sorted.
func Shipped() []string {
	files, _ := fs.Glob(shipped, "shipped/*.yaml") // the pattern is well formed
	names := make([]string, len(files))
	for i, f := range files {
		names[i] = strings.TrimSuffix(path.Base(f), ".yaml")
	}
	slices.Sort(names)
	return names
}

// Load returns the shipped scenario of that name, or reads the file. Each of set
// is a KEY=VALUE that goes over what the scenario says, in every case: nodes=100
// or data.objects=50. Errors wrap [covey.ErrInvalid] but for those of reading.
func Load(name string, set ...string) (*Scenario, error) {
	b, err := shipped.ReadFile("shipped/" + name + ".yaml")
	if err != nil {
		b, err = readFile(name)
	}
	if err != nil {
		return nil, err
	}
	short := strings.TrimSuffix(path.Base(name), path.Ext(path.Base(name)))
	s, err := Parse(short, b, set...)
	if err != nil {
		return nil, fmt.Errorf("scenario %s: %w", name, err)
	}
	return s, nil
}

// maxFile bounds a scenario: a hundred times the longest that is shipped.
const maxFile = 256 << 10

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("scenario %q: neither a file nor one of %s: %w", name, strings.Join(Shipped(), ", "), covey.ErrInvalid)
	case err != nil:
		return nil, fmt.Errorf("scenario: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("scenario: %w", err)
	case len(b) > maxFile:
		return nil, fmt.Errorf("scenario %s: more than %d bytes: %w", name, maxFile, covey.ErrInvalid)
	}
	return b, nil
}

// document is a file as it is written.
type document struct {
	About string      `yaml:"about"`
	Cases []yaml.Node `yaml:"cases"`
	Case  `yaml:",inline"`
}

// Parse reads a scenario.
func Parse(name string, b []byte, set ...string) (*Scenario, error) {
	doc := document{Case: defaults()}
	if err := strict(b, &doc); err != nil {
		return nil, err
	}
	s := &Scenario{Name: name, About: strings.TrimSpace(doc.About)}
	if len(doc.Cases) == 0 {
		s.Cases = []Case{doc.Case}
	}
	for i := range doc.Cases {
		c, err := vary(doc.Case, &doc.Cases[i])
		if err != nil {
			return nil, err
		}
		s.Cases = append(s.Cases, c)
	}
	for i := range s.Cases {
		c := &s.Cases[i]
		for _, kv := range set {
			if err := c.set(kv); err != nil {
				return nil, err
			}
		}
		if err := c.validate(); err != nil {
			if c.Name != "" {
				err = fmt.Errorf("case %s: %w", c.Name, err)
			}
			return nil, err
		}
	}
	return s, nil
}

// vary returns the base with what a case says in its place.
func vary(base Case, n *yaml.Node) (Case, error) {
	v := struct {
		Name string `yaml:"name"`
		Case `yaml:",inline"`
	}{Case: base}
	// A node on its own knows no KnownFields: it goes through text once more.
	b, err := yaml.Marshal(n)
	if err == nil {
		err = strict(b, &v)
	}
	if err == nil && v.Name == "" {
		err = fmt.Errorf("a case without a name: %w", covey.ErrInvalid)
	}
	if err != nil {
		return Case{}, fmt.Errorf("case at line %d: %w", n.Line, err)
	}
	v.Case.Name = v.Name
	return v.Case, nil
}

// set takes KEY=VALUE, KEY with dots between the levels.
func (c *Case) set(kv string) error {
	key, value, ok := strings.Cut(kv, "=")
	if !ok || key == "" {
		return fmt.Errorf("setting %q: want KEY=VALUE: %w", kv, covey.ErrInvalid)
	}
	keys := strings.Split(key, ".")
	var b strings.Builder
	for i, k := range keys {
		fmt.Fprintf(&b, "%s%s:", strings.Repeat(" ", i), k)
		if i < len(keys)-1 {
			b.WriteByte('\n')
		}
	}
	fmt.Fprintf(&b, " %s\n", value)
	name := c.Name
	if err := strict([]byte(b.String()), c); err != nil {
		return fmt.Errorf("setting %q: %w", kv, err)
	}
	c.Name = name
	return nil
}

// goType is how yaml.v3 names types of this package in its errors, which nobody
// who writes a scenario should have to read.
var goType = regexp.MustCompile(` in(to)? type [a-z]+\.?[A-Za-z]*.*$|into [a-z]+\.?[A-Za-z]*$`)

// strict decodes one document of known fields, with errors of one line.
func strict(b []byte, v any) error {
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	err := d.Decode(v)
	if err == nil {
		if again := d.Decode(new(yaml.Node)); !errors.Is(again, io.EOF) {
			return fmt.Errorf("more than one YAML document: %w", covey.ErrInvalid)
		}
		return nil
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("nothing in it: %w", covey.ErrInvalid)
	}
	text := err.Error()
	var types *yaml.TypeError
	if errors.As(err, &types) && len(types.Errors) > 0 {
		text = types.Errors[0]
	}
	text = strings.TrimPrefix(text, "yaml: ")
	text = goType.ReplaceAllString(text, "")
	return fmt.Errorf("%s: %w", strings.ReplaceAll(text, "\n", " "), covey.ErrInvalid)
}

// defaults are those of every scenario: nodes with a 25 Gbit NIC in racks of a
// size that is usual, an S3 that answers like one near by.
func defaults() Case {
	return Case{
		Seed: 1, Nodes: 50, Zones: 1, Racks: 4,
		Data:   Data{Objects: 50, Size: 64 << 20, Block: 4 << 20},
		Epochs: 1, Share: Sharded, Order: Shuffled, Readers: 4,
		Rates: Rates{
			NIC:      25e9 / 8,
			SameRack: Duration(50 * time.Microsecond),
			SameZone: Duration(100 * time.Microsecond),
			Far:      Duration(500 * time.Microsecond),
		},
		Origin: Origin{Rate: 10e9, FirstByte: Duration(30 * time.Millisecond), Requests: 5000},
		Limit:  Duration(time.Hour),
	}
}

package peer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/covey-cache/covey"
)

func TestClusterKeyText(t *testing.T) {
	k := NewClusterKey()
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(k.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	back, err := ReadClusterKey(file)
	if err != nil || back != k {
		t.Errorf("ReadClusterKey: %v", err)
	}
	if strings.ContainsAny(k.String(), " \n") || k == NewClusterKey() {
		t.Error("text form has white space, or two keys are the same")
	}
	for _, format := range []string{"%v", "%s", "%+v", "%#v", "%x", "%q"} {
		if got := fmt.Sprintf(format, k); got != "cluster key (hidden)" {
			t.Errorf("%s yields %q", format, got)
		}
	}
}

func TestClusterKeyRefuses(t *testing.T) {
	good := NewClusterKey().String()
	for _, text := range []string{"", "x", "covey-cluster-1:", good + "A", good[:len(good)-1], "covey-cluster-2:" + good[16:], "covey-cluster-1:" + strings.Repeat("A", 43)} {
		_, err := ParseClusterKey(text)
		if !errors.Is(err, covey.ErrInvalid) {
			t.Errorf("ParseClusterKey(%q) = %v", text, err)
		} else if len(text) > 20 && strings.Contains(err.Error(), text[16:]) {
			t.Error("the key is in the error")
		}
	}
	if _, err := ReadClusterKey(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

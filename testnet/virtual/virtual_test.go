package virtual

import (
	"errors"
	"os/exec"
	"path/filepath"
	"testing"
)

// A program gets virtual time, keeps its flags, arguments, output and exit code,
// and hears nothing of package testing.
func TestRunInAProgram(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "program")
	if out, err := exec.Command("go", "build", "-o", bin, "./testdata/program").CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	out, err := exec.Command(bin, "-n", "30", "-test.v", "x").CombinedOutput()
	if err == nil || string(out[:4]) != "flag" {
		t.Errorf("a flag of package testing was taken before there was any: %v: %s", err, out)
	}
	out, err = exec.Command(bin, "-n", "30", "-", "-test.v", "x").CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("it ended with %v, want its own exit code 3", err)
	}
	want := "30h0m0s as it should be true 1 [- -test.v x]\nvirtual time was started before in this process\n"
	if string(out) != want {
		t.Errorf("it printed\n%s\nwant\n%s", out, want)
	}
}

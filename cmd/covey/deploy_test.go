package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestMountHelper has the fstab helper call a covey that writes down what it is
// asked, with what mount(8) gives it.
func TestMountHelper(t *testing.T) {
	helper, err := filepath.Abs("../../deploy/systemd/mount.covey")
	if err != nil {
		t.Fatal(err)
	}
	fake := filepath.Join(t.TempDir(), "covey")
	if err := os.WriteFile(fake, []byte("#!/bin/sh\nprintf '%s|' \"$@\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) (string, error) {
		c := exec.Command("sh", append([]string{helper}, args...)...)
		c.Env = append(os.Environ(), "COVEY="+fake)
		out, err := c.Output()
		return string(out), err
	}
	const source = "s3://bucket/a b?region=us-east-1&endpoint=http://h:1"
	for _, c := range []struct{ options, want string }{
		{"rw,allow_other,_netdev,x-systemd.requires=covey-agent.service", "mount|-o|rw,allow_other|--|" + source + "|/mnt/d e|"},
		{"defaults,nofail,noatime", "mount|--|" + source + "|/mnt/d e|"},
		{"ro,umask=077,uid=5,comment=x", "mount|-o|ro,umask=077,uid=5|--|" + source + "|/mnt/d e|"},
		{"", "mount|--|" + source + "|/mnt/d e|"},
		{"surprise", "mount|-o|surprise|--|" + source + "|/mnt/d e|"}, // covey says what is wrong
	} {
		if got, err := run(source, "/mnt/d e", "-s", "-o", c.options); err != nil || got != c.want {
			t.Errorf("%q: %q, %v; want %q", c.options, got, err, c.want)
		}
	}
	if got, err := run(source, "/mnt/d", "-f", "-o", "rw"); err != nil || got != "" {
		t.Errorf("a fake mount: %q, %v", got, err)
	}
	if _, err := run(source); err == nil {
		t.Error("no directory: taken")
	}
}

// TestUnits checks that the units only use settings and commands that there are,
// and has systemd read them where it is installed.
func TestUnits(t *testing.T) {
	units, err := filepath.Glob("../../deploy/systemd/*.service")
	if err != nil || len(units) != 2 {
		t.Fatalf("units: %v, %v", units, err)
	}
	// The paths of this machine: systemd looks whether programs exist.
	dir, bin := t.TempDir(), filepath.Join(t.TempDir(), "covey")
	if err := os.WriteFile(bin, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	commands := map[string]bool{}
	for _, c := range (&app{getenv: os.Getenv}).commands() {
		commands[c.Name()] = true
	}
	for _, unit := range units {
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		section := ""
		for i, line := range strings.Split(string(text), "\n") {
			line = strings.TrimSpace(line)
			switch {
			case line == "" || strings.HasPrefix(line, "#"):
			case strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]"):
				section = line
			case section == "" || !strings.Contains(line, "="):
				t.Errorf("%s:%d: %q", unit, i+1, line)
			}
			for _, key := range []string{"ExecStart=", "ExecStop="} {
				rest, ok := strings.CutPrefix(line, key)
				if !ok {
					continue
				}
				words := strings.Fields(rest)
				if words[0] != "/usr/bin/covey" || !commands[words[1]] {
					t.Errorf("%s:%d: no such command: %q", unit, i+1, rest)
				}
				for _, w := range words[2:] {
					if name, ok := strings.CutPrefix(w, "--"); ok {
						if _, known := findSetting(name); !known && name != "config" {
							t.Errorf("%s:%d: no such flag: %q", unit, i+1, w)
						}
					}
				}
			}
		}
		local := strings.ReplaceAll(string(text), "/usr/bin/covey", bin)
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(unit)), []byte(local), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	verifier, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Log("systemd-analyze is not installed: the units are not verified by systemd itself")
		return
	}
	c := exec.Command(verifier, "verify", "--man=no", filepath.Join(dir, "covey-agent.service"), filepath.Join(dir, "covey-mount@mnt-data.service"))
	if err := os.Rename(filepath.Join(dir, "covey-mount@.service"), filepath.Join(dir, "covey-mount@mnt-data.service")); err != nil {
		t.Fatal(err)
	}
	if out, err := c.CombinedOutput(); err != nil || strings.Contains(string(out), dir) {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

package main

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// load parses flags, environment and a config file as covey agent does.
func load(t *testing.T, env map[string]string, file string, args ...string) (*agentConfig, error) {
	t.Helper()
	all := map[string]string{"HOME": "/home/u", "XDG_STATE_HOME": "/xdg/state", "XDG_CACHE_HOME": "/xdg/cache", "XDG_RUNTIME_DIR": "/xdg/run"}
	for k, v := range env {
		all[k] = v
	}
	if file != "" {
		all["COVEY_CONFIG"] = filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(all["COVEY_CONFIG"], []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a := &app{getenv: func(name string) string { return all[name] }}
	var c *agentConfig
	cmd := &cobra.Command{SilenceErrors: true, SilenceUsage: true, RunE: func(cmd *cobra.Command, _ []string) (err error) {
		c, err = a.loadConfig(cmd)
		return err
	}}
	cmd.Flags().String("config", "", "")
	addSettings(cmd)
	cmd.SetArgs(args)
	return c, cmd.Execute()
}

func TestConfigDefaults(t *testing.T) {
	c, err := load(t, nil, "")
	want := &agentConfig{
		state: "/xdg/state/covey", cache: []cacheDir{{dir: "/xdg/cache/covey"}}, api: "/xdg/run/covey/agent.sock",
		listen: "127.0.0.1:7171", http: "127.0.0.1:7172", dataPlane: "tls", logFormat: "text", policy: policy{audit: 10_000},
	}
	if err != nil || !reflect.DeepEqual(c, want) {
		t.Errorf("defaults are %+v, %v, want %+v", c, err, want)
	}
	if c, err := load(t, nil, "", "--cluster-key", "/k"); err != nil || c.listen != "0.0.0.0:7171" {
		t.Errorf("with a key it listens on %+v, %v", c, err)
	}
}

// A switch is on by its flag alone, and takes a value like any other setting.
func TestConfigSwitch(t *testing.T) {
	for _, c := range []struct {
		file string
		args []string
		want bool
	}{
		{"", nil, false},
		{"", []string{"--immutable"}, true},
		{"", []string{"--immutable=true"}, true},
		{"immutable: true\n", nil, true},
		{"immutable: true\n", []string{"--immutable=false"}, false},
	} {
		if got, err := load(t, nil, c.file, c.args...); err != nil || got.policy.immutable != c.want {
			t.Errorf("%q %q: immutable %+v, %v", c.file, c.args, got, err)
		}
	}
}

func TestConfigOriginStrict(t *testing.T) {
	for _, c := range []struct {
		file string
		args []string
		want bool
	}{
		{"", nil, false},
		{"origin: strict\n", nil, true},
		{"origin: strict\n", []string{"--origin", "granted"}, false},
		{"", []string{"--origin-strict"}, true},
		{"origin: granted\n", []string{"--origin-strict=true"}, true},
	} {
		if got, err := load(t, nil, c.file, c.args...); err != nil || got.policy.strict != c.want {
			t.Errorf("%q %q: strict %+v, %v", c.file, c.args, got.policy, err)
		}
	}
	if _, err := load(t, nil, "", "--origin", "sometimes"); err == nil {
		t.Error("took an origin mode that does not exist")
	}
}

// Every setting must be heard from each of the three places, and an earlier
// place must hide a later one whole.
func TestConfigPrecedence(t *testing.T) {
	settings := []struct{ name, file, env, flag string }{
		{"state", "/f", "/e", "/g"},
		{"cache", "/f:1GiB", "/e:1GiB", "/g:1GiB"},
		{"listen", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"},
		{"join", "f:1", "e:1", "g:1"},
		{"cluster-key", "/f", "/e", "/g"},
		{"revoked", "/f", "/e", "/g"},
		{"verify-manifest", "/f", "/e", "/g"},
		{"audit", "1", "2", "3"},
		{"api", "unix:///f", "unix:///e", "unix:///g"},
		{"http", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"},
		{"mount", "s3://f?a=b=/f", "s3://e?a=b=/e", "s3://g?a=b=/g"},
		{"data-plane", "plain", "plain", "plain"},
		{"data-listen", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"},
		{"zone", "f", "e", "g"},
		{"rack", "f", "e", "g"},
		{"host", "f", "e", "g"},
		{"log-level", "debug", "warn", "error"},
		{"log-format", "json", "text", "json"},
	}
	var file strings.Builder
	env := map[string]string{}
	var flags []string
	for _, s := range settings {
		file.WriteString(s.name + ": \"" + s.file + "\"\n")
		env["COVEY_"+strings.ToUpper(strings.ReplaceAll(s.name, "-", "_"))] = s.env
		flags = append(flags, "--"+s.name, s.flag)
	}
	fromFile, err := load(t, nil, file.String())
	if err != nil {
		t.Fatal(err)
	}
	fromEnv, err := load(t, env, file.String())
	if err != nil {
		t.Fatal(err)
	}
	fromFlag, err := load(t, env, file.String(), flags...)
	if err != nil {
		t.Fatal(err)
	}
	want := func(dir, port, host string) agentConfig {
		audit, _ := strconv.Atoi(port)
		return agentConfig{
			policy: policy{verifyManifest: dir, audit: audit},
			state:  dir, cache: []cacheDir{{dir, 1 << 30}}, listen: "127.0.0.1:" + port, join: []string{host + ":1"},
			clusterKey: dir, membership: membership{revoked: dir}, api: dir, http: "127.0.0.1:" + port, mounts: []mountSpec{{source: "s3:/" + dir + "?a=b", dir: dir}},
			dataPlane: "plain", dataListen: "127.0.0.1:" + port, zone: host, rack: host, host: host,
		}
	}
	for got, base := range map[*agentConfig]agentConfig{
		fromFile: want("/f", "1", "f"), fromEnv: want("/e", "2", "e"), fromFlag: want("/g", "3", "g"),
	} {
		base.logLevel, base.logFormat = got.logLevel, got.logFormat
		if !reflect.DeepEqual(*got, base) {
			t.Errorf("got  %+v\nwant %+v", *got, base)
		}
	}
	if fromFile.logLevel.String() != "DEBUG" || fromEnv.logLevel.String() != "WARN" || fromFlag.logLevel.String() != "ERROR" {
		t.Errorf("log levels are %v, %v, %v", fromFile.logLevel, fromEnv.logLevel, fromFlag.logLevel)
	}
}

func TestConfigLists(t *testing.T) {
	c, err := load(t, map[string]string{
		"COVEY_JOIN":  "a:1, b:2,",
		"COVEY_MOUNT": "s3://x/a,b=/a;\n /src=/b\n",
	}, "cluster-key: /k\n")
	if err != nil || !reflect.DeepEqual(c.join, []string{"a:1", "b:2"}) ||
		!reflect.DeepEqual(c.mounts, []mountSpec{{source: "s3://x/a,b", dir: "/a"}, {source: "/src", dir: "/b"}}) {
		t.Errorf("from the environment: %+v, %v", c, err)
	}
	c, err = load(t, nil, "cluster-key: /k\njoin: [a:1, \"b:2,c:3\"]\nmount:\n  - s3://x/a;b=/a\n  - /src=/b\n")
	if err != nil || !reflect.DeepEqual(c.join, []string{"a:1", "b:2", "c:3"}) ||
		!reflect.DeepEqual(c.mounts, []mountSpec{{source: "s3://x/a;b", dir: "/a"}, {source: "/src", dir: "/b"}}) {
		t.Errorf("from the file: %+v, %v", c, err)
	}
	c, err = load(t, nil, "", "--cluster-key=/k", "--join=a:1,b:2", "--join=c:3", "--mount=/s,1;=/a", "--mount=/t=/b", "--cache=/c,d:1GiB", "--http=")
	if err != nil || len(c.join) != 3 || !reflect.DeepEqual(c.mounts, []mountSpec{{source: "/s,1;", dir: "/a"}, {source: "/t", dir: "/b"}}) ||
		c.cache[0].dir != "/c,d" || c.http != "" {
		t.Errorf("from flags: %+v, %v", c, err)
	}
	for _, empty := range []string{"# nothing\n", "---\n", "state:\n"} {
		if c, err := load(t, nil, empty); err != nil || c.state != "/xdg/state/covey" {
			t.Errorf("empty file %q: %+v, %v", empty, c, err)
		}
	}
}

// What is wrong must be refused as misuse, in words that say where it is.
func TestConfigFaults(t *testing.T) {
	for _, tc := range []struct {
		name, file, env string
		flags           []string
		says            string
	}{
		{name: "unknown key", file: "state: /s\nstaet: /x\n", says: `c.yaml: line 2: unknown key "staet"`},
		{name: "key twice", file: "state: /s\nstate: /x\n", says: `line 2: state is given twice`},
		{name: "nested", file: "state: {a: b}\n", says: `line 1: state has a value of the wrong kind`},
		{name: "list for one", file: "listen: [a, b]\n", says: `listen has a value of the wrong kind`},
		{name: "no mapping", file: "- a\n", says: "want a mapping"},
		{name: "no yaml", file: "a: [\n", says: "c.yaml: yaml:"},
		{name: "two documents", file: "state: /s\n---\nstate: /t\n", says: "more than one document"},
		{name: "size in file", file: "cache: /c:10G\n", says: `line 1: cache: cache "/c:10G": size "10G": unknown unit "G"`},
		{name: "size in environment", env: "/c:10Q", says: `COVEY_CACHE: cache "/c:10Q"`},
		{name: "one tier twice", flags: []string{"--cache=/a:1GiB", "--cache=/a/:2GiB"}, says: "--cache: /a is given twice: give each tier"},
		{name: "a tier within another", file: "cache: [\"/tmp:1GiB\", \"/tmp/b\"]\n", says: "line 1: cache: /tmp/b is within /tmp: give each tier"},
		{name: "a tier around another", env: "/tmp/b,/tmp", says: "COVEY_CACHE: /tmp/b is within /tmp: give each tier"},
		{name: "relative tier", flags: []string{"--cache=a:1GiB"}, says: `--cache: cache "a:1GiB": a is a relative path: write an absolute one`},
		{name: "tier without a directory", flags: []string{"--cache=:1GiB"}, says: `--cache: cache ":1GiB": the directory is missing`},
		{name: "tier on a disk that is not there", flags: []string{"--cache=/no-such-disk/covey:1GiB"}, says: "--cache: /no-such-disk/covey: there is no directory /no-such-disk: make it, or mount"},
		{name: "unit of no kind", flags: []string{"--cache=/a:10XB"}, says: `--cache: cache "/a:10XB": size "10XB": unknown unit "XB": write it like 512MiB`},
		{name: "policy", flags: []string{"--cache-policy=fifo"}, says: `--cache-policy: "fifo": want epoch, lru or lfu`},
		{name: "idle", flags: []string{"--idle-after=10"}, says: `--idle-after: "10": write a time of at least 1m`},
		{name: "data sets of no list", file: "datasets: x\n", says: "line 1: datasets wants a list of mappings"},
		{name: "data set of no mapping", file: "datasets:\n- x\n", says: "line 2: datasets: want a mapping"},
		{name: "data set without source", file: "datasets:\n- policy: lru\n", says: "line 2: datasets: the source is missing"},
		{name: "data set's key", file: "datasets:\n- source: /s\n  polcy: lru\n", says: `datasets: unknown key "polcy"`},
		{name: "data set's policy", file: "datasets:\n- {source: /s, policy: fifo}\n", says: `policy "fifo": want epoch, lru, lfu or ttl`},
		{name: "data set's time", file: "datasets:\n- {source: /s, policy: ttl}\n", says: `ttl goes with policy ttl`},
		{name: "data set's path", file: "datasets:\n- {source: /s, path: ../x, policy: lru}\n", says: "leads out of the source"},
		{name: "data set twice", file: "datasets:\n- {source: /s, path: a/, policy: lru}\n- {source: /s, path: a, policy: lfu}\n", says: "line 3: datasets: /s a is given twice"},
		{name: "mount without dir", flags: []string{"--mount=s3://b/p"}, says: `--mount: "s3://b/p": write it like SOURCE=DIR`},
		{name: "mount of nothing", flags: []string{"--mount==/d"}, says: "SOURCE=DIR"},
		{name: "mount on nothing", flags: []string{"--mount=/s="}, says: "SOURCE=DIR"},
		{name: "dir twice", flags: []string{"--mount=/s=/d", "--mount=/t=/d/"}, says: "given to two mounts"},
		{name: "join without key", flags: []string{"--join=a:1"}, says: "--join: joining needs the key"},
		{name: "join nowhere", flags: []string{"--cluster-key=/k", "--join=:1"}, says: "the host is missing"},
		{name: "join without port", flags: []string{"--cluster-key=/k", "--join=a"}, says: "HOST:PORT"},
		{name: "open without key", flags: []string{"--listen=0.0.0.0:7171"}, says: "--listen: 0.0.0.0:7171 can be reached"},
		{name: "open by no host", flags: []string{"--listen=:7171"}, says: "can be reached"},
		{name: "bad port", flags: []string{"--listen=127.0.0.1:70000"}, says: "from 0 to 65535"},
		{name: "bad http", flags: []string{"--http=7172"}, says: "--http: "},
		{name: "api is no URL", flags: []string{"--api=/run/a.sock"}, says: "unix:///run"},
		{name: "api is relative", flags: []string{"--api=unix://a.sock"}, says: "--api: "},
		{name: "plane's address", flags: []string{"--data-listen=127.0.0.1:1"}, says: "--data-listen: only the plain"},
		{name: "open plane", flags: []string{"--data-plane=plain", "--data-listen=0.0.0.0:1"}, says: "--data-listen: 0.0.0.0:1 can be reached"},
		{name: "plane", flags: []string{"--data-plane=quic"}, says: `"quic" is not known`},
		{name: "two memberships", flags: []string{"--cluster-key=/k", "--member-record=/m"}, says: "--member-record: the agent has a cluster key"},
		{name: "revoked without key", flags: []string{"--revoked=/r"}, says: "--revoked: only an agent that has the cluster key"},
		{name: "audit", flags: []string{"--audit=often"}, says: "--audit: "},
		{name: "level", flags: []string{"--log-level=loud"}, says: "--log-level: "},
		{name: "format", flags: []string{"--log-format=xml"}, says: "--log-format: "},
	} {
		env := map[string]string{"COVEY_CACHE": tc.env}
		_, err := load(t, env, tc.file, tc.flags...)
		var m *misuseError
		if !errors.As(err, &m) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want a misuse that says %q", tc.name, err, tc.says)
		}
	}
}

// How data sets are kept is a list of mappings in the file, and only there.
func TestConfigDatasets(t *testing.T) {
	c, err := load(t, nil, `
cache-policy: lfu
idle-after: 36h
datasets:
  - source: s3://bucket/imagenet
    policy: epoch
  - source: s3://bucket/imagenet
    path: /val/
    policy: ttl
    ttl: 12h
`)
	want := keeping{policy: "lfu", idleAfter: 36 * time.Hour, sets: []datasetSpec{
		{source: "s3://bucket/imagenet", policy: "epoch"},
		{source: "s3://bucket/imagenet", path: "val", policy: "ttl", ttl: 12 * time.Hour},
	}}
	if err != nil || !reflect.DeepEqual(c.keeping, want) {
		t.Errorf("got %+v, %v, want %+v", c.keeping, err, want)
	}
	if c, err := load(t, nil, "", "--idle-after=never"); err != nil || c.keeping.idleAfter >= 0 {
		t.Errorf("never is %+v, %v", c, err)
	}
}

func TestPaths(t *testing.T) {
	dir := t.TempDir()
	real := filepath.Join(dir, "real")
	if err := os.Mkdir(real, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	real, err := filepath.EvalSymlinks(real)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := absPath(filepath.Join(dir, "link", "new")); err != nil || got != filepath.Join(real, "new") {
		t.Errorf("absPath = %s, %v", got, err)
	}
	wd, _ := os.Getwd()
	for source, want := range map[string]string{"s3://b/p": "s3://b/p", "/a/../b": "/b", "data": filepath.Join(wd, "data")} {
		if got, err := absSource(source); err != nil || got != want {
			t.Errorf("absSource(%q) = %q, %v, want %q", source, got, err, want)
		}
	}
}

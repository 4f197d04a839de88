package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// systemSocket is where an agent listens that no user session started.
const systemSocket = "/run/covey/agent.sock"

// defaultSocket is where agents listen and clients ask when nobody says.
func defaultSocket(getenv func(string) string) string {
	if dir := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "covey", "agent.sock")
	}
	return systemSocket
}

// defaultState is where an agent keeps its identity and its log.
func defaultState(getenv func(string) string) (string, error) {
	return defaultDir(getenv, "XDG_STATE_HOME", "/var/lib/covey", ".local/state")
}

// defaultCache is where an agent keeps cached blocks.
func defaultCache(getenv func(string) string) (string, error) {
	return defaultDir(getenv, "XDG_CACHE_HOME", "/var/cache/covey", ".cache")
}

// defaultDir follows the XDG base directories: the variable, else for root the
// system's place, else the place below the home directory.
func defaultDir(getenv func(string) string, variable, system, belowHome string) (string, error) {
	if dir := getenv(variable); filepath.IsAbs(dir) {
		return filepath.Join(dir, "covey"), nil
	}
	if os.Geteuid() == 0 {
		return system, nil
	}
	home := getenv("HOME")
	if !filepath.IsAbs(home) {
		return "", fmt.Errorf("no place for %s: neither %s nor HOME is set: set one of them", system, variable)
	}
	return filepath.Join(home, belowHome, "covey"), nil
}

// parseAPI reads unix:///PATH and returns the path.
func parseAPI(s string) (string, error) {
	path, ok := strings.CutPrefix(s, "unix://")
	if !ok || !filepath.IsAbs(path) {
		return "", fmt.Errorf("api %q: write it like unix:///run/covey/agent.sock", s)
	}
	return filepath.Clean(path), nil
}

// absSource makes a source that is a plain path absolute; the agent works in
// another directory than its clients.
func absSource(source string) (string, error) {
	if source == "" {
		return "", fmt.Errorf("the source is empty: give a URL or a path")
	}
	if strings.Contains(source, "://") {
		return source, nil
	}
	return filepath.Abs(source)
}

// absPath makes a path absolute and resolves the links of the directories above
// it, as the kernel does. The path itself is not touched: it may be a mount
// whose agent is dead or hangs.
func absPath(path string) (string, error) {
	if path == "" {
		return "", fmt.Errorf("the path is empty")
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	above, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return abs, nil //nolint:nilerr // it does not exist, or may not be seen; whoever opens it says so better
	}
	return filepath.Join(above, filepath.Base(abs)), nil
}

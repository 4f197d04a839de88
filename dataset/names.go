package dataset

import (
	"strings"

	"github.com/covey-cache/covey"
)

// maxNameLen is the longest name Linux takes in one directory.
const maxNameLen = 255

// validName reports whether a key's part can be a file name: NAMES.md.
func validName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= maxNameLen &&
		!strings.ContainsAny(name, "\x00/")
}

// validPath reports whether a path could be shown at all. What it refuses does
// not exist in any data set.
func validPath(path string) bool {
	for name := range strings.SplitSeq(path, "/") {
		if !validName(name) {
			return false
		}
	}
	return true
}

// splitPath returns the directory ("" for the root) and the name in it.
func splitPath(path string) (dir, name string) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path
	}
	return path[:i], path[i+1:]
}

// joinPath is the inverse of splitPath.
func joinPath(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// dirFits reports whether a directory's key leaves room for a name behind it.
func dirFits(key string) bool { return len(key) < covey.MaxKeyLen }

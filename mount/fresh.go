package mount

import (
	"context"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/covey-cache/covey/dataset"
)

// The kernel believes a name for what is left of the data set's own belief in it,
// so that the two ages are one: a stat is behind the origin by one max-age at
// most, not by two.

// believe returns how long the kernel may believe an answer about a path.
func (t *tree) believe(path string) time.Duration {
	return min(t.entryAge, t.names.Believed(path))
}

// believeIn is believe for the entries of a directory's listing.
func (t *tree) believeIn(dir string) time.Duration {
	return min(t.entryAge, t.names.BelievedIn(dir))
}

// believeListing returns how long the kernel may believe the entries that an open
// directory yields now. Its listing is as old as when it began, whatever the data
// set has learnt since. The handle's lock is held.
func (t *tree) believeListing(fh uint64) time.Duration {
	d, ok := t.dirs.get(fh)
	if !ok || d.list == nil {
		return 0
	}
	age := d.list.age
	if !d.list.known {
		age = min(t.believeIn(d.node.path()), t.entryAge)
		if age == 0 {
			return 0 // nobody knows, as while the origin is away
		}
		age = t.entryAge
	}
	return max(0, age-time.Since(d.list.began))
}

// maxChanges bounds the changed names that wait to be told to the kernel. Beyond,
// the kernel finds out when its belief ends, as it would without being told.
const maxChanges = 4096

// changes tells the kernel of names that are another object by now, or none.
//
// Telling takes the directory's lock in the kernel, under which a look-up may wait
// for the very listing that found the change. So it happens in a goroutine of its
// own, and the one that lists only leaves a note.
type changes struct {
	notes chan string // paths
	tell  func(parent uint64, name string) fuse.Status
}

// note is a dataset.Watcher. A name that is new needs no telling: the kernel
// remembers no missing names of a data set that can change.
func (c *changes) note(path string, was, _ dataset.Entry) {
	if was.Kind == 0 {
		return
	}
	select {
	case c.notes <- path:
	default:
	}
}

// runChanges tells the kernel until ctx ends.
func (t *tree) runChanges(ctx context.Context) {
	defer t.names.Watch(t.changes.note)()
	for {
		select {
		case <-ctx.Done():
			return
		case path := <-t.changes.notes:
			t.tellChanged(path)
		}
	}
}

// tellChanged has the kernel forget a name, if it knows it. The node of the old
// version stays for whoever has it open.
func (t *tree) tellChanged(path string) {
	dir, name := t.nodes.root, path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = t.nodes.walk(path[:i]), path[i+1:]
	}
	if dir != nil {
		// ENOENT says that the kernel does not know the name.
		t.changes.tell(dir.id, name)
	}
}

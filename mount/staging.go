package mount

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxStaged bounds the files that are being written or wait for their upload:
// each costs two names, a descriptor and about 1 KiB. A node that writes a
// checkpoint of 1,000 shards uses a sixteenth.
const maxStaged = 16 << 10

// usedAge is how long the sum of what is staged is believed. Counting asks the
// file system for each file, and a limit of gigabytes is not missed by more than
// a disk writes in this time.
const usedAge = 50 * time.Millisecond

// The states of a staged file, as the journal and the status have them.
const (
	// StagedWriting is open, or was when its agent ended.
	StagedWriting = "writing"
	// StagedClosing was closed by its writer and is being uploaded, or is to be
	// by the next agent.
	StagedClosing = "closing"
	// StagedFailed could not be uploaded; who closed it was told.
	StagedFailed = "failed"
	// StagedInterrupted was still being written when its agent ended, so that
	// nobody can say whether it is complete.
	StagedInterrupted = "interrupted"
)

// Staged says what is known of one staged file. It is the journal's record, too.
type Staged struct {
	ID      string    `json:"id"`
	Source  string    `json:"source"`
	Path    string    `json:"path"`
	State   string    `json:"state"`
	Error   string    `json:"error,omitempty"`
	Created time.Time `json:"created"`
	Size    int64     `json:"size"`
	Mode    uint32    `json:"mode,omitempty"`
	// Exclusive says that the file was made with O_EXCL: its upload must not
	// replace anything.
	Exclusive bool `json:"exclusive,omitempty"`
	// Uploaded says that an upload succeeded, of what was written by then.
	Uploaded bool `json:"uploaded,omitempty"`
	// Removed says that its name is gone, and that only open handles keep it.
	Removed bool `json:"removed,omitempty"`
}

// errStagingFull says that too much waits for its upload.
var errStagingFull = errors.New("too much is staged")

// Staging is the directory, on the cache's file system, in which files are
// written before they are uploaded; all mounts of an agent share one. Each file
// has a journal record beside it, so that a file whose agent was killed is
// uploaded by the next, or reported. Nothing leaves it but by a finished upload,
// an unlink by its writer, or [Staging.Drop].
type Staging struct {
	dir   string
	limit int64
	log   *slog.Logger

	mu      sync.Mutex // leaf; guards all below, and the items' fields
	items   map[string]*stagedFile
	used    int64 // bytes on disk, as of counted
	counted time.Time
}

// stagedFile is one file and its record.
type stagedFile struct {
	s    *Staging
	file *os.File // nil for what an earlier agent left

	saving sync.Mutex // lets one record be written at a time; before Staging.mu
	info   Staged     // guarded by Staging.mu
}

// OpenStaging opens the directory, which it makes when it is missing, and reads
// what earlier agents left in it. limit is how many bytes may be staged at once:
// beyond, files cannot be made or grow. What cannot be read is left alone, and
// logged.
func OpenStaging(dir string, limit int64, log *slog.Logger) (*Staging, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the staging directory: %w", err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, fmt.Errorf("open the staging directory %s: %w", dir, err)
	}
	s := &Staging{dir: dir, limit: limit, log: log, items: map[string]*stagedFile{}}
	for _, name := range names {
		f, err := s.load(name)
		if err != nil {
			log.Warn("a record of a staged file cannot be read; it is left as it is", "file", name, "error", err)
			continue
		}
		s.items[f.info.ID] = f
	}
	return s, nil
}

func (s *Staging) load(name string) (*stagedFile, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	f := &stagedFile{s: s}
	if err := json.Unmarshal(text, &f.info); err != nil {
		return nil, err
	}
	if f.info.ID == "" || f.info.ID != strings.TrimSuffix(filepath.Base(name), ".json") {
		return nil, fmt.Errorf("it is the record of %q", f.info.ID)
	}
	st, err := os.Lstat(s.dataPath(f.info.ID))
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("its data is no regular file")
	}
	f.info.Size = st.Size()
	if f.info.State == StagedWriting {
		f.info.State = StagedInterrupted
	}
	return f, nil
}

func (s *Staging) dataPath(id string) string   { return filepath.Join(s.dir, id+".data") }
func (s *Staging) recordPath(id string) string { return filepath.Join(s.dir, id+".json") }

// create makes a file for a path of a source.
func (s *Staging) create(info Staged) (*stagedFile, error) {
	if err := s.room(0); err != nil {
		return nil, err
	}
	info.ID, info.State, info.Created = rand.Text(), StagedWriting, time.Now()
	f, err := os.OpenFile(s.dataPath(info.ID), os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	sf := &stagedFile{s: s, file: f, info: info}
	if err := sf.save(false); err != nil {
		f.Close()
		return nil, errors.Join(err, os.Remove(f.Name()))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.items[info.ID] = sf
	return sf, nil
}

// room is errStagingFull when n more bytes are more than the limit.
func (s *Staging) room(n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.items) >= maxStaged {
		return fmt.Errorf("%d files: %w", len(s.items), errStagingFull)
	}
	if time.Since(s.counted) > usedAge {
		s.used = 0
		for id := range s.items {
			var st unix.Stat_t
			if unix.Lstat(s.dataPath(id), &st) == nil {
				s.used += st.Blocks * 512
			}
		}
		s.counted = time.Now()
	}
	if s.used+n > s.limit || n == 0 && s.used >= s.limit {
		return fmt.Errorf("%d of %d bytes: %w", s.used, s.limit, errStagingFull)
	}
	s.used += n
	return nil
}

// save writes the record, durably when asked to.
func (f *stagedFile) save(durable bool) error {
	f.saving.Lock()
	defer f.saving.Unlock()
	f.s.mu.Lock()
	text, err := json.Marshal(f.info)
	id := f.info.ID
	f.s.mu.Unlock()
	if err != nil {
		return err
	}
	temp := f.s.recordPath(id) + ".new"
	w, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	if err == nil && durable {
		err = w.Sync()
	}
	if err = errors.Join(err, w.Close()); err == nil {
		err = os.Rename(temp, f.s.recordPath(id))
	}
	if err == nil && durable {
		err = f.s.syncDir()
	}
	return err
}

func (s *Staging) syncDir() error {
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// set changes the record, in memory and on disk. A record that cannot be written
// is logged: the old one then says less than is true, never that a file was
// uploaded that was not.
func (f *stagedFile) set(change func(*Staged)) {
	f.s.mu.Lock()
	change(&f.info)
	f.s.mu.Unlock()
	if err := f.save(false); err != nil {
		f.s.log.Error("the journal of staged files cannot be written", "dir", f.s.dir, "error", err)
	}
}

func (f *stagedFile) get() Staged {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	return f.info
}

// remove drops the file and its record, in this order backwards: a record without
// data is nothing, data without a record would be forgotten bytes.
func (f *stagedFile) remove() {
	f.s.mu.Lock()
	id := f.info.ID
	delete(f.s.items, id)
	f.s.counted = time.Time{}
	f.s.mu.Unlock()
	f.saving.Lock()
	defer f.saving.Unlock()
	for _, name := range []string{f.s.dataPath(id), f.s.recordPath(id)} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			f.s.log.Error("a staged file cannot be removed", "file", name, "error", err)
		}
	}
}

// List returns what is staged, oldest first.
func (s *Staging) List() []Staged {
	s.mu.Lock()
	list := make([]Staged, 0, len(s.items))
	for _, f := range s.items {
		if !f.info.Removed {
			list = append(list, f.info)
		}
	}
	s.mu.Unlock()
	for i := range list {
		if st, err := os.Lstat(s.dataPath(list[i].ID)); err == nil {
			list[i].Size = st.Size()
		}
	}
	slices.SortFunc(list, func(a, b Staged) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	return list
}

// ErrStagedBusy says that a mount has the file in its hands.
var ErrStagedBusy = errors.New("a mount is writing or uploading it")

// left returns a file that no mount has in hand, with its data open for reading.
func (s *Staging) left(id string) (*stagedFile, error) {
	s.mu.Lock()
	f := s.items[id]
	busy := f != nil && f.file != nil
	s.mu.Unlock()
	switch {
	case f == nil:
		return nil, fmt.Errorf("staged file %s: %w", id, fs.ErrNotExist)
	case busy:
		return nil, fmt.Errorf("staged file %s: %w", id, ErrStagedBusy)
	}
	return f, nil
}

// DropRemoved drops files that were removed under an agent before and that no
// handle keeps any more. It is for the time after mounts were resumed.
func (s *Staging) DropRemoved() {
	s.mu.Lock()
	var gone []*stagedFile
	for _, f := range s.items {
		if f.info.Removed && f.file == nil {
			gone = append(gone, f)
		}
	}
	s.mu.Unlock()
	for _, f := range gone {
		f.remove()
	}
}

var errStagedGone = errors.New("its staged file is gone")

// reclaim takes a file back that the agent before had in hand.
func (s *Staging) reclaim(id string) (*stagedFile, error) {
	f, err := s.left(id)
	if err != nil {
		return nil, err
	}
	data, err := os.OpenFile(s.dataPath(id), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	f.file = data
	s.mu.Unlock()
	f.set(func(i *Staged) { i.State, i.Error = StagedWriting, "" })
	return f, nil
}

// Retry uploads a file that was left in staging, by the given function, and takes
// it out of staging when that succeeds. One that fails stays, with the error.
func (s *Staging) Retry(id string, upload func(Staged, *os.File) error) error {
	f, err := s.left(id)
	if err != nil {
		return err
	}
	data, err := os.OpenFile(s.dataPath(id), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer data.Close()
	st, err := data.Stat()
	if err != nil {
		return err
	}
	f.set(func(i *Staged) { i.State, i.Error, i.Size = StagedClosing, "", st.Size() })
	if err := upload(f.get(), data); err != nil {
		f.set(func(i *Staged) { i.State, i.Error = StagedFailed, err.Error() })
		return err
	}
	f.remove()
	return nil
}

// Drop gives up a file that was left in staging, and its bytes.
func (s *Staging) Drop(id string) error {
	f, err := s.left(id)
	if err != nil {
		return err
	}
	f.remove()
	return nil
}

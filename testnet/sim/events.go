package sim

import (
	"bufio"
	"encoding/json"
	"io"
	"sync"
	"time"
)

// event is one line of the log. Nodes are numbered from 0; Peer and Block from 1,
// so that 0 means none.
type event struct {
	At    float64 `json:"at"` // seconds since the case began
	Kind  string  `json:"kind"`
	Node  int     `json:"node"`
	Peer  int     `json:"peer,omitempty"`
	Block int     `json:"block,omitempty"`
	Bytes int64   `json:"bytes,omitempty"`
	Took  float64 `json:"took,omitempty"`
	Error string  `json:"error,omitempty"`
	Text  string  `json:"text,omitempty"`
}

// events writes the log as lines of JSON.
//
// mu is a leaf lock and guards what follows it.
type events struct {
	mu  sync.Mutex
	buf *bufio.Writer
	enc *json.Encoder
	err error
}

func newEvents(out io.Writer) *events {
	if out == nil {
		return nil
	}
	buf := bufio.NewWriterSize(out, 1<<20)
	return &events{buf: buf, enc: json.NewEncoder(buf)}
}

// log writes an event, where there is a log.
func (w *world) log(e event) {
	l := w.events
	if l == nil {
		return
	}
	e.At = time.Since(w.began).Seconds()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.enc.Encode(e); err != nil && l.err == nil {
		l.err = err
	}
}

// flush ends the log and returns the first error of writing it.
func (l *events) flush() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.buf.Flush(); l.err == nil {
		l.err = err
	}
	return l.err
}

package origintest

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"sync"
	"time"
)

// The server counts twice. Its access log has one line for each request, but no
// size for an object that was streamed; its statsd datagrams carry the length of
// each object body that it began to send. Requests are taken from the log, bytes
// from the datagrams, and a sum of bytes counts only once both agree on the
// number of GETs, so that a lost datagram cannot make a figure look better.

// settleTimeout bounds the wait for datagrams; the server flushes every 100 ms.
const settleTimeout = 3 * time.Second

// LogEntry is one request of the server's access log.
type LogEntry struct {
	// Op is the server's name of it, such as s3_GetObject or s3_ListObjectsV2.
	Op     string
	Bucket string
	// Target is the request's path and query as they were sent.
	Target string
	// Status is the HTTP status; the server writes 200 for 206 too.
	Status int
}

var logLine = regexp.MustCompile(`(?m)^\S+ (\S+) \[[^\]]+\] \S+ \S+ \S+ (s3_\S+) .*? (/\S*) (\d{3}) `)

// Log returns the requests that the server has answered since it was first
// started, oldest first.
func (s *S3) Log() ([]LogEntry, error) {
	b, err := os.ReadFile(s.path("access.log"))
	if err != nil {
		return nil, fmt.Errorf("read the s3 server's log: %w", err)
	}
	var entries []LogEntry
	for _, m := range logLine.FindAllSubmatch(b, -1) {
		status, _ := strconv.Atoi(string(m[4])) // the pattern has three digits
		entries = append(entries, LogEntry{
			Op: string(m[2]), Bucket: string(m[1]), Target: string(m[3]), Status: status,
		})
	}
	return entries, nil
}

// GetCount returns how many object GETs the server answered with bytes.
func (s *S3) GetCount() (int64, error) {
	entries, err := s.Log()
	var n int64
	for _, e := range entries {
		if e.Op == "s3_GetObject" && e.Status == 200 {
			n++
		}
	}
	return n, err
}

// GetBytes returns the bytes of object bodies that the server set out to send,
// whether or not the client read them to their end. It waits for the server's
// counts to settle and fails when one of them was lost.
func (s *S3) GetBytes() (int64, error) {
	deadline := time.Now().Add(settleTimeout)
	for {
		want, err := s.GetCount()
		if err != nil {
			return 0, err
		}
		gets, size := s.counter.total()
		// A GET whose client went away is counted and may miss in the log. The
		// other way round a datagram is late, or lost.
		if gets >= want {
			return size, nil
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("s3 server logged %d GETs and counted the bytes of %d", want, gets)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// byteCounter adds up the server's statsd datagrams.
type byteCounter struct {
	conn *net.UDPConn
	done chan struct{}

	// mu guards the sums; a leaf lock.
	mu   sync.Mutex
	gets int64
	size int64
}

// counterBuffer holds the datagrams of about 60,000 GETs, in case the reader is
// not scheduled for seconds on a busy machine.
const counterBuffer = 8 << 20

func newByteCounter() (*byteCounter, error) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	if err := conn.SetReadBuffer(counterBuffer); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	c := &byteCounter{conn: conn, done: make(chan struct{})}
	go c.run()
	return c, nil
}

func (c *byteCounter) addr() string { return c.conn.LocalAddr().String() }

func (c *byteCounter) total() (gets, size int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gets, c.size
}

// close ends run and waits for it.
func (c *byteCounter) close() {
	_ = c.conn.Close() // it was only read from
	<-c.done
}

func (c *byteCounter) run() {
	defer close(c.done)
	buf := make([]byte, 64<<10)
	for {
		n, err := c.conn.Read(buf)
		if err != nil {
			return
		}
		for line := range bytes.Lines(buf[:n]) {
			c.add(line)
		}
	}
}

var readMetric = regexp.MustCompile(`^versitygw\.bytes_read,\S*status=20\d\S*:(\d+)\|c`)

func (c *byteCounter) add(line []byte) {
	m := readMetric.FindSubmatch(line)
	if m == nil {
		return
	}
	size, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gets++
	c.size += size
}

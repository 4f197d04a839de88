package memnet

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"
)

// pair connects two hosts.
func pair(t *testing.T, n *Network) (client, server net.Conn) {
	t.Helper()
	l, err := n.Host("10.0.0.1").Listen(t.Context(), "tcp", "10.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	client, err = n.Host("10.0.0.2").DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// The net package's own conformance tests for connections.
func TestConn(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		c1, c2 = pair(t, new(Network))
		return c1, c2, func() { c1.Close(); c2.Close() }, nil
	})
}

func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Network{Latency: 5 * time.Millisecond}
		started := time.Now()
		client, server := pair(t, n)
		if took := time.Since(started); took != 15*time.Millisecond {
			t.Errorf("dial took %s, want three trips", took)
		}
		started = time.Now()
		if _, err := client.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := server.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(started); took != n.Latency {
			t.Errorf("a byte took %s", took)
		}
	})
}

// What is written is read after the close, then comes the end; the window blocks
// a writer whose reader sleeps.
func TestCloseAndWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := pair(t, new(Network))
		done := make(chan error, 1)
		go func() {
			_, err := client.Write(make([]byte, 2*window))
			client.Close()
			done <- err
		}()
		synctest.Wait()
		select {
		case err := <-done:
			t.Fatalf("the write of two windows did not block: %v", err)
		default:
		}
		if n, err := io.Copy(io.Discard, server); n != 2*window || err != nil {
			t.Errorf("read %d bytes, %v", n, err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestCutAndMend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := new(Network)
		client, server := pair(t, n)
		a, b := n.Host("10.0.0.2"), n.Host("10.0.0.1")
		n.Cut(a, b)
		if _, err := client.Write([]byte("held")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 8)
		if err := server.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		var ne net.Error
		if _, err := server.Read(buf); !errors.As(err, &ne) || !ne.Timeout() {
			t.Errorf("read across a cut: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := a.DialContext(ctx, "tcp", server.LocalAddr().String()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial across a cut: %v", err)
		}
		if _, err := server.Write([]byte("y")); err != nil { // the other way is open
			t.Error(err)
		}
		if k, err := client.Read(buf); k != 1 || err != nil {
			t.Errorf("read the open way: %d, %v", k, err)
		}
		if err := server.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		go func() { time.Sleep(time.Second); n.Mend(a, b) }()
		if k, err := server.Read(buf); string(buf[:k]) != "held" || err != nil {
			t.Errorf("read after mending: %q, %v", buf[:k], err)
		}
	})
}

func TestKill(t *testing.T) {
	n := new(Network)
	client, server := pair(t, n)
	n.Host("10.0.0.1").Kill()
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read from the dead: %v", err)
	}
	if _, err := n.Host("10.0.0.2").DialContext(t.Context(), "tcp", server.LocalAddr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial to the dead: %v", err)
	}
}

func TestListenErrors(t *testing.T) {
	n := new(Network)
	h := n.Host("10.0.0.1")
	l, err := h.Listen(t.Context(), "tcp", "10.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Listen(t.Context(), "tcp", "10.0.0.1:80"); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second listener: %v", err)
	}
	if _, err := h.Listen(t.Context(), "tcp", "10.0.0.2:80"); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("listener at another host's address: %v", err)
	}
	l.Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after the close: %v", err)
	}
}

package peer

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// nicBits returns what the network interface behind a listen address carries, in
// bits a second, as the kernel says; of all interfaces the fastest when the
// address is unspecified. 0 when nothing is known: loopback and virtual
// interfaces have no speed.
func nicBits(listen string) uint64 {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return 0
	}
	at, err := netip.ParseAddr(host)
	any := host == "" || err == nil && at.IsUnspecified()
	interfaces, err := net.Interfaces()
	if err != nil {
		return 0
	}
	var fastest uint64
	for _, i := range interfaces {
		if any || has(i, at) {
			fastest = max(fastest, speed("/sys/class/net", i.Name))
		}
	}
	return fastest
}

// has reports whether an interface has the address.
func has(i net.Interface, at netip.Addr) bool {
	addrs, err := i.Addrs()
	if err != nil {
		return false
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr() == at {
			return true
		}
	}
	return false
}

// speed reads an interface's speed, which the kernel has in megabits a second,
// -1 or an error when there is none.
func speed(dir, name string) uint64 {
	b, err := os.ReadFile(filepath.Join(dir, name, "speed"))
	if err != nil {
		return 0
	}
	mbits, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || mbits <= 0 {
		return 0
	}
	return uint64(mbits) * 1e6
}

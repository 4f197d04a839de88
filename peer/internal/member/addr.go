package member

import (
	"net/netip"

	ma "github.com/multiformats/go-multiaddr"
)

// metadata are the addresses at which clouds serve a machine's credentials. All
// but the last are link-local, which is refused as a whole.
var metadata = []netip.Addr{
	netip.MustParseAddr("169.254.169.254"),
	netip.MustParseAddr("fd00:ec2::254"),
}

// AllowedAddr reports whether an address from a record, or from whatever else a
// peer said, may be dialled: one of ip4, ip6, dns, dns4, dns6, then tcp, and
// nothing more. Unspecified, multicast, link-local and metadata addresses are
// refused: a member must not be able to point another at a service of its own
// machine's cloud. A DNS name is checked again, by the same rule, when it has
// been resolved.
func AllowedAddr(a ma.Multiaddr) bool {
	if len(a) != 2 || a[1].Protocol().Code != ma.P_TCP {
		return false
	}
	switch a[0].Protocol().Code {
	case ma.P_DNS, ma.P_DNS4, ma.P_DNS6:
		return true
	case ma.P_IP4, ma.P_IP6:
		ip, ok := netip.AddrFromSlice(a[0].RawValue())
		return ok && AllowedIP(ip)
	}
	return false
}

// AllowedIP is the part of [AllowedAddr] that concerns the IP address.
func AllowedIP(ip netip.Addr) bool {
	ip = ip.Unmap()
	if ip.IsUnspecified() || ip.IsMulticast() || ip.IsLinkLocalUnicast() {
		return false
	}
	for _, m := range metadata {
		if ip == m {
			return false
		}
	}
	return true
}

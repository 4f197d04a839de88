package dht

import "slices"

// askers are the first peers that asked about an extent within crowdLife: enough
// to tell whether many do.
type askers struct {
	since stamp
	n     uint8
	peers [maxChildren]peerNum
	many  bool
}

// count takes in one more question.
func (k *askers) count(p peerNum, now stamp) {
	if k.n == 0 || now.since(k.since) > crowdLife {
		*k = askers{since: now}
	}
	switch {
	case slices.Contains(k.peers[:k.n], p):
	case int(k.n) == len(k.peers):
		k.many = true
	default:
		k.peers[k.n] = p
		k.n++
	}
}

package dht

// askers tells whether more than one peer asked about an extent within crowdLife.
type askers struct {
	since stamp
	first peerNum
	any   bool
	many  bool
}

// count takes in one more question.
func (k *askers) count(p peerNum, now stamp) {
	switch {
	case !k.any || now.since(k.since) > crowdLife:
		*k = askers{since: now, first: p, any: true}
	case p != k.first:
		k.many = true
	}
}

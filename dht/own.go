package dht

import "github.com/covey-cache/covey"

// learnOwn brings into the table what this peer itself holds of an extent. The
// store knows it better than any announcement: after a restart of many peers
// questions come before announcements do, and a home that overlooked its own
// disk would grant a read of the origin.
func (d *Directory) learnOwn(e covey.ExtentID, r *ring) {
	if d.own == nil {
		return
	}
	h, ok := d.own(e)
	if !ok || h.Have == 0 || h.Have.Len() != len(h.Digests) {
		return
	}
	d.table.have(d.self, h, false, r)
}

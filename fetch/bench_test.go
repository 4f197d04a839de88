package fetch

import "testing"

// A local hit is what every read of a warm cache pays above the store's own
// look-up.
func BenchmarkGetLocal(b *testing.B) {
	s := newMemStore()
	f := New(Options{Store: s, Directory: asker{home: newHome(), self: "self"}, Exchange: peerBytes{}, Origins: newMemOrigin()})
	e := extentOf("a", 64)
	for i := range 64 {
		s.fill(e, i)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			h, err := f.Get(b.Context(), e, i%64)
			if err != nil {
				b.Fatal(err)
			}
			h.Release()
		}
	})
}

package dataset

import "time"

// Believed returns for how long from now on what is known of a path will be
// believed without asking the origin: what is left of MaxAge since it was asked
// for. 0 when nothing is believed of it now, and without a limit (the longest
// duration) for an immutable data set.
//
// Whoever keeps an answer of Lookup no longer than this is never further behind the
// origin than MaxAge in all.
func (d *Dataset) Believed(path string) time.Duration {
	if d.opts.Immutable {
		return unlimited
	}
	k := d.known(path)
	if !k.have {
		return d.runLeft(k.run)
	}
	return d.left(k.at)
}

// BelievedIn is Believed for the entries that ReadDir yields of a directory.
func (d *Dataset) BelievedIn(dir string) time.Duration {
	if d.opts.Immutable {
		return unlimited
	}
	l, fresh, r := d.cached(dir)
	if fresh {
		return d.left(l.at)
	}
	return d.runLeft(r)
}

const unlimited = time.Duration(1<<63 - 1)

// runLeft is left for what a listing under way says, nil for none.
func (d *Dataset) runLeft(r *run) time.Duration {
	if r == nil {
		return 0
	}
	return d.left(r.at)
}

func (d *Dataset) left(at time.Time) time.Duration {
	return max(0, d.opts.MaxAge-time.Since(at))
}

package covey

import "errors"

// The error kinds that callers act upon. Each is wrapped with the operation and
// the thing it was done to; test with [errors.Is]. The table that turns them
// into errno values is in mount/errno.go.
var (
	// ErrNotFound says that the origin (or the store) was asked and does not
	// have it. It is never used for "could not find out".
	ErrNotFound = errors.New("not found")

	// ErrStale says that the object changed at the origin: the version asked
	// for no longer exists there.
	ErrStale = errors.New("changed at the origin")

	// ErrDenied says that the origin refused the credentials or the access, or
	// that a peer is not a member.
	ErrDenied = errors.New("access denied")

	// ErrThrottled says that the origin asked for a slower pace.
	ErrThrottled = errors.New("throttled by the origin")

	// ErrUnavailable says that nobody could be reached or answered in time;
	// trying again later may succeed.
	ErrUnavailable = errors.New("unavailable")

	// ErrCorrupt says that bytes were read and do not match what is known of
	// them.
	ErrCorrupt = errors.New("corrupt")

	// ErrFull says that a byte budget has no room. Reads go on without it.
	ErrFull = errors.New("no room in the cache")

	// ErrReadOnly says that a write was asked of something that only reads.
	ErrReadOnly = errors.New("read-only")

	// ErrInvalid says that the input itself is wrong and will not get better by
	// trying again: a malformed URL, name, frame or encoding.
	ErrInvalid = errors.New("invalid")
)

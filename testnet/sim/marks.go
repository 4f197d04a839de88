package sim

import "sync/atomic"

// mark is a state that a run should sometimes reach. A simulation whose faults
// never bring the mesh into a hard state proves nothing, so the tests demand
// that every mark is hit by some of their seeds.
type mark int

// The marks.
const (
	markGrant          mark = iota // read from the origin
	markFollow                     // waited at a peer that was reading, and got the block
	markFollowFailed               // waited at a peer that then had nothing
	markOverride                   // read from the origin without a grant
	markStoreFull                  // a block was not admitted
	markReplicaEvicted             // a replica gave way to a primary
	markCrashLost                  // a kill lost admitted blocks
	markWarmRestart                // a node came back with blocks
	markResetCall                  // a question ended with the death of the home
	markResetFetch                 // a transfer ended with the death of the sender
	markDialDead                   // a dead node was dialled
	markStall                      // a message was lost silently
	markProbed                     // a node was found again after it was given up
	markExpelled                   // a dead member's lease ended
	markJoined                     // a node joined while others read
	markLie                        // wrong bytes arrived
	markCorrupt                    // wrong bytes were noticed by their digest
	markClaimRefused               // a node was asked for what it had only claimed
	markNotFound                   // a holder did not have the block
	markThrottled                  // the origin answered 503
	markOutage                     // the origin refused
	markOutageHidden               // a read got its bytes while the origin was out
	markReadFailed                 // a read ended in an error
	markReadAgain                  // a block was read from the origin again
	markAvoidable                  // although a node in reach held it
	markCutRead                    // a read from the origin ended with its reader
	markBothSides                  // two sides of a partition read one block
	markSlowServed                 // a slow node sent a block
	markResumed                    // a block was finished by another than who began it
	marks
)

var markNames = [marks]string{
	"grant", "follow", "follow failed", "override", "store full", "replica evicted", "crash lost", "warm restart",
	"reset call", "reset fetch", "dial dead", "stall", "probed", "expelled", "joined",
	"lie", "corrupt", "claim refused", "not found", "throttled", "outage", "outage hidden",
	"read failed", "read again", "avoidable", "cut read", "both sides", "slow served", "resumed",
}

// String returns the mark's name.
func (m mark) String() string { return markNames[m] }

// markSet counts the marks.
type markSet [marks]atomic.Int64

func (s *markSet) hit(m mark) { s[m].Add(1) }

// hitUnlessOver is hit for what the end of the run brings about as well.
func (w *world) hitUnlessOver(m mark) {
	if w.ctx.Err() == nil {
		w.marks.hit(m)
	}
}

// counts returns those that were hit.
func (s *markSet) counts() map[string]int64 {
	hit := map[string]int64{}
	for m := range s {
		if n := s[m].Load(); n > 0 {
			hit[mark(m).String()] = n
		}
	}
	return hit
}

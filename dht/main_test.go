package dht

import (
	"encoding/binary"
	"testing"

	"github.com/zeebo/blake3"
	"go.uber.org/goleak"

	"github.com/covey-cache/covey"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testExtent returns the i-th of a fixed series of extents.
func testExtent(i int) covey.ExtentID {
	return blake3.Sum256(binary.LittleEndian.AppendUint64([]byte("extent"), uint64(i)))
}

package mux

import (
	"sync"

	"github.com/covey-cache/covey/peer/internal/wire"
)

// bufferLen holds a Found frame and the Data frame behind it, so that a short
// answer is one write.
const bufferLen = 2*wire.HeaderLen + 16 + wire.MaxData

// buffers are reused, because one is needed for every answer under way.
var buffers = sync.Pool{New: func() any { return new([bufferLen]byte) }}

func getBuffer() *[bufferLen]byte  { return buffers.Get().(*[bufferLen]byte) }
func putBuffer(b *[bufferLen]byte) { buffers.Put(b) }

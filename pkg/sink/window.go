package sink

// #include <stdlib.h>
// #include "shim.h"
import "C"

import (
	"unsafe"

	"github.com/bmpha/bmpha/pkg/record"
)

// window is the C window of one stream, for its test: a Go test cannot call C.
type window struct{ ring *C.bk_ring }

func newWindow(size uint32) window {
	w := window{(*C.bk_ring)(C.calloc(1, C.sizeof_bk_ring))}
	if w.ring == nil || C.bk_ring_init(w.ring, C.uint32_t(size)) != 0 {
		panic("no memory")
	}
	return w
}

func (w window) size() uint64     { return uint64(w.ring.mask) + 1 }
func (w window) base() uint64     { return uint64(w.ring.base) }
func (w window) next() uint64     { return uint64(w.ring.next) }
func (w window) hand(n uint64)    { w.ring.next += C.uint64_t(n) }
func (w window) ack(pos uint64)   { C.bk_ring_set(w.ring, C.uint64_t(pos)) }
func (w window) reset(pos uint64) { C.bk_ring_reset(w.ring, C.uint64_t(pos)) }

// carried returns what a record's report brings back of its stream and position.
func (w window) carried(stream uint32, pos uint64, stamped bool) (uint32, uint64, bool) {
	var bit C.int
	if stamped {
		bit = 1
	}
	opaque := C.bk_opaque(C.uint32_t(stream), C.uint64_t(pos), bit)
	return uint32(C.bk_opaque_stream(opaque)), uint64(C.bk_position(w.ring, opaque)), C.bk_opaque_stamped(opaque) != 0
}

func (w window) free() {
	C.bk_ring_free(w.ring)
	C.free(unsafe.Pointer(w.ring))
}

// crossed reads a record the way C does.
func crossed(r *record.Rec) record.Rec {
	c := (*C.bk_rec)(unsafe.Pointer(r))
	return record.Rec{
		Topic:  uint32(c.topic),
		KeyOff: uint32(c.key_off), KeyLen: uint32(c.key_len),
		HeaderOff: uint32(c.header_off), HeaderLen: uint32(c.header_len),
		ValueOff: uint32(c.value_off), ValueLen: uint32(c.value_len),
		MoreOff: uint32(c.more_off), MoreLen: uint32(c.more_len),
		Flags: uint32(c.flags), Route: uint32(c.route), Partition: int32(c.partition),
		Timestamp: int64(c.timestamp),
	}
}

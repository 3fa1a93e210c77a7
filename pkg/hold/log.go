package hold

import (
	"encoding/binary"
	"fmt"
)

// A Kind says what an entry of a log is.
type Kind uint8

const (
	Opened  Kind = iota // a session began; the body is the caller's description of it
	Message             // one BMP message, as received
	Closed              // the session ended
)

// An Entry is one element of a log.
type Entry struct {
	Kind    Kind
	Session uint32
	Pos     uint64 // position in the log, from 0, without gaps
	Arrival int64  // µs on the caller's clock, never decreasing along a log
	// Body points into the log and is valid until the entry is freed. It must
	// not be changed.
	Body []byte
}

// An entry in a chunk: arrival (8), session (4), length and kind (4), body.
// A header whose last word is sealed, or too little room for a header, ends the
// chunk. The reader finds the end in bytes that the writer no longer touches,
// so that it needs no lock.
const (
	headSize         = 16
	kindShift        = 30
	sealed    uint32 = 3 << kindShift
)

// MaxBody is the largest body of an entry, in bytes.
const MaxBody = 1<<kindShift - 1

type chunk struct {
	buf  []byte
	next *chunk
}

// A Cursor is a place in a Log. The zero Cursor is not valid; take one from
// Tail, and Sync it.
type Cursor struct {
	chunk *chunk
	off   int
	pos   uint64
}

// Pos returns the position of the entry that the cursor is at.
func (c *Cursor) Pos() uint64 { return c.pos }

// A Log is the ordered memory of one router. Close it to return its memory.
type Log struct {
	budget  *Budget
	charged int64 // bytes of chunks, owned by budget and guarded by its lock

	tail Cursor
	last *chunk
	used int    // bytes written of last
	end  uint64 // position after the newest entry
	body int64  // bytes of the bodies held
}

// NewLog returns an empty log that draws on b.
func NewLog(b *Budget) *Log {
	l := &Log{budget: b}
	b.join(l)
	return l
}

// Close drops what the log holds and returns its memory to the budget.
func (l *Log) Close() {
	for l.tail.chunk != nil {
		l.dropChunk()
	}
	l.last = nil
	l.tail.pos, l.body = l.end, 0
	l.budget.leave(l)
}

// Append adds an entry with a copy of body. It reports false, and changes
// nothing, when the budget has no room; for the end of a session, which had room
// for its beginning, there is room always. It panics if body is longer than
// MaxBody: whoever reads from the network bounds messages far below.
func (l *Log) Append(kind Kind, session uint32, arrival int64, body []byte) bool {
	if len(body) > MaxBody {
		panic(fmt.Sprintf("hold: a body of %d bytes", len(body)))
	}
	need := headSize + len(body)
	if l.last == nil || len(l.last.buf)-l.used < need {
		if !l.grow(need, kind == Closed) {
			return false
		}
	}
	b := l.last.buf[l.used : l.used+need]
	binary.LittleEndian.PutUint64(b, uint64(arrival))
	binary.LittleEndian.PutUint32(b[8:], session)
	binary.LittleEndian.PutUint32(b[12:], uint32(len(body))|uint32(kind)<<kindShift)
	copy(b[headSize:], body)
	l.used += need
	l.end++
	l.body += int64(len(body))
	return true
}

// grow puts a new chunk at the end. It is as large as what the log holds
// already, so that idle routers stay small and busy ones need few chunks.
// forced does without the budget's consent.
func (l *Log) grow(need int, forced bool) bool {
	size := max(need, minChunk, min(maxChunk, int(l.body)))
	c := l.budget.take(l, size, false)
	if c == nil && (forced || size > need) {
		c = l.budget.take(l, need, forced)
	}
	if c == nil {
		return false
	}
	if l.last == nil {
		l.tail.chunk, l.tail.off = c, 0
	} else {
		if len(l.last.buf)-l.used >= headSize {
			binary.LittleEndian.PutUint32(l.last.buf[l.used+12:], sealed)
		}
		l.last.next = c
	}
	l.last, l.used = c, 0
	return true
}

// Tail returns a cursor at the oldest entry.
func (l *Log) Tail() Cursor { return l.tail }

// End returns the position that the next entry will have.
func (l *Log) End() uint64 { return l.end }

// Len returns the number of entries held.
func (l *Log) Len() int { return int(l.end - l.tail.pos) }

// Bytes returns the bytes of the bodies held.
func (l *Log) Bytes() int64 { return l.body }

// Filled returns how much of the memory that the log could have by now it holds,
// in percent.
func (l *Log) Filled() int { return l.budget.filled(l) }

// Sync makes c valid again after the log was changed. Call it under the lock,
// before reading on with Next. A cursor that the tail has passed moves to the
// tail.
func (l *Log) Sync(c *Cursor) {
	if c.pos <= l.tail.pos {
		*c = l.tail
	}
}

// Next returns the entry at c and moves c behind it. It reports false when c has
// reached end, which is the log's End at the last Sync or an earlier position.
// It touches nothing of the log but the entries before end, see the package
// comment.
func (c *Cursor) Next(end uint64) (Entry, bool) {
	if c.pos >= end {
		return Entry{}, false
	}
	e, n := c.read()
	c.off += n
	c.pos++
	return e, true
}

// read decodes the entry at c, which must exist, and returns its size in bytes.
func (c *Cursor) read() (Entry, int) {
	if len(c.chunk.buf)-c.off < headSize || binary.LittleEndian.Uint32(c.chunk.buf[c.off+12:]) == sealed {
		c.chunk, c.off = c.chunk.next, 0
	}
	b := c.chunk.buf[c.off:]
	word := binary.LittleEndian.Uint32(b[12:])
	n := headSize + int(word&MaxBody)
	return Entry{
		Kind:    Kind(word >> kindShift),
		Session: binary.LittleEndian.Uint32(b[8:]),
		Pos:     c.pos,
		Arrival: int64(binary.LittleEndian.Uint64(b)),
		Body:    b[headSize:n:n],
	}, n
}

// Oldest returns the entry at the tail without moving anything.
func (l *Log) Oldest() (Entry, bool) {
	if l.tail.pos >= l.end {
		return Entry{}, false
	}
	c := l.tail
	e, _ := c.read()
	return e, true
}

// Free drops the oldest entry. It panics on an empty log.
func (l *Log) Free() {
	if l.tail.pos >= l.end {
		panic("hold: free of an empty log")
	}
	first := l.tail.chunk
	e, n := l.tail.read() // may step into the next chunk
	if l.tail.chunk != first {
		l.budget.give(l, first)
	}
	l.tail.off += n
	l.tail.pos++
	l.body -= int64(len(e.Body))
	if l.tail.pos == l.end {
		l.rewind()
	}
}

// rewind starts an empty log over, in its last chunk if that is small.
func (l *Log) rewind() {
	if len(l.last.buf) > 4*minChunk {
		l.dropChunk()
		l.last = nil
		return
	}
	l.tail.off, l.used = 0, 0
}

// dropChunk releases the chunk at the tail and moves the tail to the next.
func (l *Log) dropChunk() {
	c := l.tail.chunk
	l.tail.chunk, l.tail.off = c.next, 0
	l.budget.give(l, c)
}

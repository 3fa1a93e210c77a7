package hold

import (
	"fmt"
	"math/bits"
	"sync"
)

const (
	minChunk = 4 << 10
	maxChunk = 256 << 10
	// spareBytes bounds the memory that waits in free lists for its next use.
	spareBytes = 16 << 20
)

// A Budget is the memory that all logs of a process share. One half of it is
// divided evenly among the logs and guaranteed to each; the other half goes to
// whoever asks first. It is safe for concurrent use.
type Budget struct {
	mu     sync.Mutex
	limit  int64
	used   int64 // bytes of the chunks that logs hold
	shared int64 // bytes that logs hold above their guaranteed share
	logs   map[*Log]struct{}

	spare     [8][]*chunk // to use again, by power of two from minChunk
	spareUsed int64
}

// NewBudget returns a budget of limit bytes. It panics if limit is not positive:
// the configuration is checked before.
func NewBudget(limit int64) *Budget {
	if limit <= 0 {
		panic(fmt.Sprintf("hold: a budget of %d bytes", limit))
	}
	return &Budget{limit: limit, logs: make(map[*Log]struct{})}
}

// Used returns the bytes that logs hold now, their bookkeeping included.
func (b *Budget) Used() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// Limit returns the size of the budget in bytes.
func (b *Budget) Limit() int64 { return b.limit }

// Share returns the bytes that each log is guaranteed now. It shrinks when
// routers join; a log that then holds more keeps what it has.
func (b *Budget) Share() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.share()
}

func (b *Budget) share() int64 { return b.limit / 2 / int64(max(len(b.logs), 1)) }

func (b *Budget) join(l *Log) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.logs[l] = struct{}{}
	b.recount()
}

func (b *Budget) leave(l *Log) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.logs, l)
	b.used -= l.charged
	l.charged = 0
	b.recount()
}

func (b *Budget) filled(l *Log) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	room := max(0, b.share()-l.charged) + max(0, b.limit-b.limit/2-b.shared)
	if l.charged == 0 {
		return 0
	}
	return int(l.charged * 100 / (l.charged + room))
}

// recount follows a change of the guaranteed share.
func (b *Budget) recount() {
	share := b.share()
	b.shared = 0
	for l := range b.logs {
		b.shared += max(0, l.charged-share)
	}
}

// take gives l a chunk of at least n bytes, or nil when there is no room and it is
// not forced.
func (b *Budget) take(l *Log, n int, forced bool) *chunk {
	size := chunkSize(n)
	b.mu.Lock()
	defer b.mu.Unlock()
	share := b.share()
	over := max(0, l.charged+int64(size)-share) - max(0, l.charged-share)
	// An empty log gets one chunk whatever the share: a router without any
	// memory could never be heard.
	if !forced && l.charged > 0 && over > 0 && b.shared+over > b.limit-b.limit/2 {
		return nil
	}
	b.shared += over
	b.used += int64(size)
	l.charged += int64(size)
	if class := sizeClass(size); class < len(b.spare) {
		if free := b.spare[class]; len(free) > 0 {
			c := free[len(free)-1]
			free[len(free)-1] = nil
			b.spare[class] = free[:len(free)-1]
			b.spareUsed -= int64(size)
			return c
		}
	}
	return &chunk{buf: make([]byte, size)}
}

func (b *Budget) give(l *Log, c *chunk) {
	c.next = nil
	size := int64(len(c.buf))
	b.mu.Lock()
	defer b.mu.Unlock()
	share := b.share()
	b.shared -= max(0, l.charged-share) - max(0, l.charged-size-share)
	b.used -= size
	l.charged -= size
	if class := sizeClass(len(c.buf)); class < len(b.spare) && b.spareUsed+size <= spareBytes {
		b.spare[class] = append(b.spare[class], c)
		b.spareUsed += size
	}
}

// chunkSize rounds n up to a power of two, at least minChunk.
func chunkSize(n int) int {
	if n <= minChunk {
		return minChunk
	}
	return 1 << bits.Len(uint(n-1))
}

func sizeClass(size int) int { return bits.TrailingZeros(uint(size / minChunk)) }

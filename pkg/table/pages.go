package table

import (
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"
)

// chunkSize is how much memory is asked for at once.
const chunkSize = 1 << 20

// A memory hands out pieces of chunks that the garbage collector does not look
// into. They are not part of the heap, because the pace of the collector is
// set by the heap's size: a table of a gigabyte there would let as much
// garbage pile up elsewhere. Under the race detector, which sees nothing but
// the heap, they are part of it.
//
// What lies in a chunk points to nothing but chunks. Chunks are given back when
// the memory itself is garbage, so whoever holds a piece of a chunk holds the
// memory too.
type memory struct {
	mu     sync.Mutex
	free   [2 * maxWords]unsafe.Pointer // nodes by class; the first word is the next one
	rest   [2 * maxWords][]byte         // of the class's last chunk
	chunks *[][]byte
	used   atomic.Int64 // bytes of nodes in use
	mapped atomic.Int64 // bytes of chunks
}

func newMemory() *memory {
	m := &memory{chunks: new([][]byte)}
	runtime.AddCleanup(m, func(chunks *[][]byte) {
		for _, c := range *chunks {
			releaseChunk(c)
		}
	}, m.chunks)
	return m
}

// chunk returns fresh zeroed memory of at least n bytes, aligned for anything.
// The caller holds m.mu.
func (m *memory) chunk(n int) []byte {
	c := acquireChunk(n)
	*m.chunks = append(*m.chunks, c)
	m.mapped.Add(int64(n))
	return c[:n:n]
}

// grab is chunk for those who do not hold m.mu.
func (m *memory) grab(n int) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.chunk(n)
}

// node returns a node of a class and size, with whatever is in it.
func (m *memory) node(class, size int) unsafe.Pointer {
	m.used.Add(int64(size))
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.free[class]; p != nil {
		m.free[class] = *(*unsafe.Pointer)(p)
		return p
	}
	if len(m.rest[class]) < size {
		m.rest[class] = m.chunk(chunkSize)
	}
	p := unsafe.Pointer(&m.rest[class][0])
	m.rest[class] = m.rest[class][size:]
	return p
}

// put gives back a node.
func (m *memory) put(class, size int, p unsafe.Pointer) {
	m.used.Add(-int64(size))
	m.mu.Lock()
	defer m.mu.Unlock()
	*(*unsafe.Pointer)(p) = m.free[class]
	m.free[class] = p
}

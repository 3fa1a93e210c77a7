package table

import (
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"
)

const (
	// chunkSize is how much memory the nodes of one kind get at once.
	chunkSize = 1 << 18
	// Memory comes from the system in regions of regionSize, those after the
	// first few in huge ones.
	regionSize = 1 << 22
	hugeRegion = 1 << 25
	small      = 8 // regions
)

// A memory hands out pieces of regions that the garbage collector does not look
// into. They are not part of the heap, because the pace of the collector is
// set by the heap's size: a table of a gigabyte there would let as much
// garbage pile up elsewhere. Under the race detector, which sees nothing but
// the heap, they are part of it.
//
// What lies in a region points to nothing but regions. They are given back when
// the memory itself is garbage, so whoever holds a piece of one holds the
// memory too.
type memory struct {
	mu     sync.Mutex
	free   [2 * maxWords]unsafe.Pointer // nodes by class; the first word is the next one
	rest   [2 * maxWords][]byte         // of the class's last chunk
	region []byte                       // what is left of the last region
	all    *[][]byte                    // the regions
	used   atomic.Int64                 // bytes of nodes and sets in use
	taken  atomic.Int64                 // bytes of chunks and indexes
	limit  atomic.Int64                 // of taken; 0 is none
}

func newMemory() *memory {
	m := &memory{all: new([][]byte)}
	runtime.AddCleanup(m, func(all *[][]byte) {
		for _, r := range *all {
			releaseRegion(r)
		}
	}, m.all)
	return m
}

// charge counts n bytes and reports whether they are within the limit.
func (m *memory) charge(n int) bool {
	if taken, limit := m.taken.Add(int64(n)), m.limit.Load(); limit > 0 && taken > limit {
		m.taken.Add(-int64(n))
		return false
	}
	return true
}

// chunk returns zeroed memory of n bytes, aligned for anything, nil if the limit
// is reached; regions are made of whole chunks. The caller holds m.mu.
func (m *memory) chunk(n int) []byte {
	if !m.charge(n) {
		return nil
	}
	if len(m.region) < n {
		size, huge := regionSize, len(*m.all) >= small
		if huge {
			size = hugeRegion
		}
		r := acquireRegion(size, huge)
		*m.all = append(*m.all, r)
		m.region = usablePart(r, size)
	}
	c := m.region[:n:n]
	m.region = m.region[n:]
	return c
}

// grab is chunk for those who do not hold m.mu.
func (m *memory) grab(n int) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.chunk(n)
}

// node returns a node of a class and size, with whatever is in it, nil if the
// limit is reached.
func (m *memory) node(class, size int) unsafe.Pointer {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.free[class]; p != nil {
		m.used.Add(int64(size))
		m.free[class] = *(*unsafe.Pointer)(p)
		return p
	}
	if len(m.rest[class]) < size {
		c := m.chunk(chunkSize)
		if c == nil {
			return nil
		}
		m.rest[class] = c
	}
	m.used.Add(int64(size))
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

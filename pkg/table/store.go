package table

import (
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/cespare/xxhash/v2"
)

// A Store holds what the tables of a process share: memory, and each distinct
// set of path attributes once. It is safe for concurrent use. What it holds is
// released when neither it nor a table of it is referred to any more.
type Store struct {
	mem    *memory
	shards [shards]shard
	sets   atomic.Int64
}

// NewStore returns an empty store.
func NewStore() *Store {
	s := &Store{mem: newMemory()}
	for i := range s.shards {
		s.shards[i].mem = s.mem
		s.shards[i].index = make([]uint64, 16)
	}
	return s
}

// Bytes returns how much memory is taken from the system for routes and
// attributes. What is released is used again, not given back.
func (s *Store) Bytes() int64 {
	n := s.mem.taken.Load()
	for i := range s.shards {
		s.shards[i].mu.Lock()
		n += 8 * int64(len(s.shards[i].index))
		s.shards[i].mu.Unlock()
	}
	return n
}

// AttributeSets returns how many distinct sets of attributes there are, label
// stacks of several labels included.
func (s *Store) AttributeSets() int { return int(s.sets.Load()) }

// errStoreFull means that there is no room for another set of attributes.
var errStoreFull = errors.New("no room for more attribute sets")

// A handle names bytes in a store; 0 is no bytes at all. From the top: a zero
// bit, the shard, the position in the shard in units.
type handle uint32

const (
	shardBits = 6
	shards    = 1 << shardBits
	unitBits  = 31 - shardBits
	unit      = 16 // bytes

	blockUnits = 1 << 14 // in a block of a shard, 256 KiB
	header     = 12      // bytes before the content: references, tag, length
	maxContent = 1 << 16
)

// A shard holds the sets whose hash falls to it. Bytes are looked up under the
// lock; whoever owns a reference reads them without.
type shard struct {
	mem    *memory
	blocks atomic.Pointer[[]unsafe.Pointer]

	mu    sync.Mutex
	index []uint64 // tag and position; open addressing, linear probing, 0 is empty
	count int
	next  uint32   // first unit that was never used; unit 0 is not
	free  []uint32 // by length in units, the first of those released
	_     [64]byte // one shard's lock is not on another's cache line
}

func (sh *shard) at(pos uint32) unsafe.Pointer {
	return unsafe.Add((*sh.blocks.Load())[pos/blockUnits], int(pos%blockUnits)*unit)
}

// A set is what lies at a position.
type set struct {
	refs uint32 // in free ones the next free position
	tag  uint32 // the low half of the hash
	len  uint32
}

func units(n int) int { return (header + n + unit - 1) / unit }

func content(p unsafe.Pointer) []byte {
	return unsafe.Slice((*byte)(unsafe.Add(p, header)), (*set)(p).len)
}

// bytes returns what h names. It is valid as long as the reference is held.
func (s *Store) bytes(h handle) []byte {
	if h == 0 {
		return nil
	}
	return content(s.shards[h>>unitBits].at(uint32(h) & (1<<unitBits - 1)))
}

// intern returns a handle of b, with a reference to it for the caller.
func (s *Store) intern(b []byte) (handle, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if len(b) >= maxContent {
		return 0, errStoreFull
	}
	hash := xxhash.Sum64(b)
	n := hash >> (64 - shardBits)
	sh := &s.shards[n]
	tag := uint32(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	mask := uint32(len(sh.index) - 1)
	i := tag & mask
	for ; sh.index[i] != 0; i = (i + 1) & mask {
		if uint32(sh.index[i]>>32) != tag {
			continue
		}
		p := sh.at(uint32(sh.index[i]))
		if string(content(p)) == string(b) {
			if !increment(&(*set)(p).refs) {
				return 0, errStoreFull
			}
			return handle(uint32(n)<<unitBits | uint32(sh.index[i])), nil
		}
	}
	pos, ok := sh.room(units(len(b)))
	if !ok {
		return 0, errStoreFull
	}
	p := sh.at(pos)
	*(*set)(p) = set{refs: 1, tag: tag, len: uint32(len(b))}
	copy(content(p), b)
	sh.index[i] = uint64(tag)<<32 | uint64(pos)
	sh.count++
	if sh.count > len(sh.index)/4*3 {
		sh.grow()
	}
	s.sets.Add(1)
	return handle(uint32(n)<<unitBits | pos), nil
}

// increment adds a reference unless that many cannot be counted.
func increment(refs *uint32) bool {
	if atomic.AddUint32(refs, 1) > 1<<31 {
		atomic.AddUint32(refs, ^uint32(0))
		return false
	}
	return true
}

// retain adds a reference to h for a caller who holds one. It tells whether
// there can be another.
func (s *Store) retain(h handle) bool {
	if h == 0 {
		return true
	}
	p := s.shards[h>>unitBits].at(uint32(h) & (1<<unitBits - 1))
	return increment(&(*set)(p).refs)
}

// release drops a reference to h. The last one is dropped under the lock, so
// that nobody finds a set that is about to go.
func (s *Store) release(h handle) {
	if h == 0 {
		return
	}
	sh := &s.shards[h>>unitBits]
	pos := uint32(h) & (1<<unitBits - 1)
	p := (*set)(sh.at(pos))
	for {
		n := atomic.LoadUint32(&p.refs)
		if n == 1 {
			break
		}
		if atomic.CompareAndSwapUint32(&p.refs, n, n-1) {
			return
		}
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if atomic.AddUint32(&p.refs, ^uint32(0)) != 0 {
		return
	}
	sh.remove(p.tag, pos)
	n := units(int(p.len))
	for len(sh.free) <= n {
		sh.free = append(sh.free, 0)
	}
	p.refs, sh.free[n] = sh.free[n], pos
	s.sets.Add(-1)
}

// room returns the position of n free units.
func (sh *shard) room(n int) (pos uint32, ok bool) {
	if n < len(sh.free) && sh.free[n] != 0 {
		pos = sh.free[n]
		sh.free[n] = (*set)(sh.at(pos)).refs
		return pos, true
	}
	var blocks []unsafe.Pointer
	if p := sh.blocks.Load(); p != nil {
		blocks = *p
	}
	if sh.next == 0 || sh.next%blockUnits+uint32(n) > blockUnits || int(sh.next/blockUnits) == len(blocks) {
		if (len(blocks)+1)*blockUnits > 1<<unitBits {
			return 0, false
		}
		sh.next = uint32(len(blocks)) * blockUnits
		block := unsafe.Pointer(&sh.mem.grab(blockUnits * unit)[0])
		more := append(blocks[:len(blocks):len(blocks)], block)
		sh.blocks.Store(&more)
		if sh.next == 0 {
			sh.next = 1
		}
	}
	pos = sh.next
	sh.next += uint32(n)
	return pos, true
}

// grow doubles the index. The tags are all it takes.
func (sh *shard) grow() {
	old := sh.index
	sh.index = make([]uint64, 2*len(old))
	mask := uint32(len(sh.index) - 1)
	for _, e := range old {
		if e == 0 {
			continue
		}
		i := uint32(e>>32) & mask
		for sh.index[i] != 0 {
			i = (i + 1) & mask
		}
		sh.index[i] = e
	}
}

// remove takes an entry out of the index and moves up those that had to make
// way for it.
func (sh *shard) remove(tag, pos uint32) {
	e := uint64(tag)<<32 | uint64(pos)
	mask := uint32(len(sh.index) - 1)
	i := tag & mask
	for sh.index[i] != e {
		i = (i + 1) & mask
	}
	for j := i; ; {
		j = (j + 1) & mask
		if sh.index[j] == 0 {
			break
		}
		// What lies at j stays if its place is cyclically within (i, j].
		home := uint32(sh.index[j]>>32) & mask
		if (j-home)&mask < (j-i)&mask {
			continue
		}
		sh.index[i] = sh.index[j]
		i = j
	}
	sh.index[i] = 0
	sh.count--
}

// A label stack of one label, as nearly all are, is its own handle.
const oneLabel handle = 1 << 31

func (s *Store) internLabels(b []byte) (handle, error) {
	if len(b) == 3 {
		return oneLabel | handle(b[0])<<16 | handle(b[1])<<8 | handle(b[2]), nil
	}
	return s.intern(b)
}

func (s *Store) releaseLabels(h handle) {
	if h&oneLabel == 0 {
		s.release(h)
	}
}

// labels returns the stack that h names. A single label is written to buf.
func (s *Store) labels(h handle, buf *[4]byte) []byte {
	if h&oneLabel == 0 {
		return s.bytes(h)
	}
	binary.BigEndian.PutUint32(buf[:], uint32(h))
	return buf[1:]
}

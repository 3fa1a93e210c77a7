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
		index := make([]uint64, firstIndex)
		s.shards[i].index.Store(&index)
	}
	s.mem.taken.Store(8 * firstIndex * shards)
	return s
}

// SetLimit bounds Bytes from now on; 0 means no bound. At the limit what has been
// released is used again, and Apply refuses what needs more (ErrStoreFull). A
// limit below what is taken already takes nothing away. Memory is taken in pieces:
// below 32 MB there may be none for attributes. Peers, their messages and the
// process itself are not counted.
func (s *Store) SetLimit(bytes int64) { s.mem.limit.Store(bytes) }

// Bytes returns how much memory is taken from the system for routes and
// attributes. What is released is used again, not given back.
func (s *Store) Bytes() int64 { return s.mem.taken.Load() }

// InUse returns how much of Bytes routes and attributes are in at this time. The
// rest is there for others: the nodes of trees for trees with keys as long, the
// room of attributes for attributes.
func (s *Store) InUse() int64 { return s.mem.used.Load() }

// AttributeSets returns how many distinct sets of attributes there are, label
// stacks of several labels included.
func (s *Store) AttributeSets() int { return int(s.sets.Load()) }

// ErrStoreFull means that a route has found no room in the store: SetLimit's
// limit is reached, or that of what can be numbered, 32 GB of attributes.
var ErrStoreFull = errors.New("no room in the store of tables")

// A handle names bytes in a store; 0 is no bytes at all. From the top: a zero
// bit, the shard, the position in the shard in units.
type handle uint32

const (
	shardBits = 6
	shards    = 1 << shardBits
	unitBits  = 31 - shardBits
	unit      = 16 // bytes

	blockUnits = 1 << 14 // in a block of a shard, 256 KiB
	header     = 16      // bytes before the content: a set
	maxContent = 1 << 16

	firstIndex = 16 // entries
)

// A shard holds the sets whose hash falls to it. Bytes are looked up under the
// lock; whoever owns a reference reads them without.
type shard struct {
	mem    *memory
	blocks atomic.Pointer[[]unsafe.Pointer]
	// index is tag and position; open addressing, linear probing, 0 is empty. It
	// changes under the lock, entry by entry, and expect looks at it without.
	index atomic.Pointer[[]uint64]

	mu    sync.Mutex
	count int
	next  uint32   // first unit that was never used; unit 0 is not
	free  []uint32 // by length in units, the first of those released
	_     [64]byte // one shard's lock is not on another's cache line
}

func (sh *shard) at(pos uint32) unsafe.Pointer {
	return unsafe.Add((*sh.blocks.Load())[pos/blockUnits], int(pos%blockUnits)*unit)
}

// A set is what lies at a position, before its content.
type set struct {
	refs uint32 // in free ones the next free position
	len  uint32
	hash uint64
}

func units(n int) int { return (header + n + unit - 1) / unit }

func content(p unsafe.Pointer) []byte {
	return unsafe.Slice((*byte)(unsafe.Add(p, header)), (*set)(p).len)
}

// set returns what h, which is not 0, names. It is valid as long as the reference
// is held.
func (s *Store) set(h handle) *set {
	return (*set)(s.shards[h>>unitBits].at(uint32(h) & (1<<unitBits - 1)))
}

// bytes returns the content of what h names.
func (s *Store) bytes(h handle) []byte {
	if h == 0 {
		return nil
	}
	return content(unsafe.Pointer(s.set(h)))
}

// expect fetches the place in the index of bytes with a hash, which are about to
// be interned, and expectSet then what is there.
func (s *Store) expect(hash uint64) {
	index := *s.shards[hash>>(64-shardBits)].index.Load()
	fetch(unsafe.Pointer(&index[uint32(hash)&uint32(len(index)-1)]), 1)
}

func (s *Store) expectSet(hash uint64) {
	sh := &s.shards[hash>>(64-shardBits)]
	index := *sh.index.Load()
	tag, mask := uint32(hash), uint32(len(index)-1)
	for i, n := tag&mask, 0; n < 8; i, n = (i+1)&mask, n+1 {
		e := atomic.LoadUint64(&index[i])
		if e == 0 {
			return
		}
		if uint32(e>>32) == tag {
			fetch(sh.at(uint32(e)), 2)
			return
		}
	}
}

// intern returns a handle of b, with a reference to it for the caller.
func (s *Store) intern(b []byte, hash uint64) (handle, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if len(b) >= maxContent {
		return 0, ErrStoreFull
	}
	n := hash >> (64 - shardBits)
	sh := &s.shards[n]
	tag := uint32(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	index := *sh.index.Load()
	mask := uint32(len(index) - 1)
	i := tag & mask
	for ; index[i] != 0; i = (i + 1) & mask {
		if uint32(index[i]>>32) != tag {
			continue
		}
		p := sh.at(uint32(index[i]))
		if (*set)(p).hash == hash && string(content(p)) == string(b) {
			if !increment(&(*set)(p).refs) {
				return 0, ErrStoreFull
			}
			return handle(uint32(n)<<unitBits | uint32(index[i])), nil
		}
	}
	if sh.count >= len(index)/4*3 {
		if !sh.grow() && sh.count >= len(index)/16*15 {
			return 0, ErrStoreFull
		}
		index = *sh.index.Load()
	}
	pos, ok := sh.room(units(len(b)))
	if !ok {
		return 0, ErrStoreFull
	}
	p := sh.at(pos)
	*(*set)(p) = set{refs: 1, len: uint32(len(b)), hash: hash}
	copy(content(p), b)
	mask = uint32(len(index) - 1)
	for i = tag & mask; index[i] != 0; i = (i + 1) & mask {
	}
	atomic.StoreUint64(&index[i], uint64(tag)<<32|uint64(pos))
	sh.count++
	s.sets.Add(1)
	s.mem.used.Add(unit * int64(units(len(b))))
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
	return increment(&s.set(h).refs)
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
	sh.remove(uint32(p.hash), pos)
	n := units(int(p.len))
	sh.put(n, pos)
	s.sets.Add(-1)
	s.mem.used.Add(-unit * int64(n))
}

// put makes n units at a position free.
func (sh *shard) put(n int, pos uint32) {
	for len(sh.free) <= n {
		sh.free = append(sh.free, 0)
	}
	(*set)(sh.at(pos)).refs, sh.free[n] = sh.free[n], pos
}

// get returns the position of n free units that were used before.
func (sh *shard) get(n int) (pos uint32, ok bool) {
	if n >= len(sh.free) || sh.free[n] == 0 {
		return 0, false
	}
	pos = sh.free[n]
	sh.free[n] = (*set)(sh.at(pos)).refs
	return pos, true
}

// split returns the position of n units off a longer piece that is free.
func (sh *shard) split(n int) (pos uint32, ok bool) {
	for m := n + 1; m < len(sh.free); m++ {
		if pos, ok = sh.get(m); ok {
			sh.put(m-n, pos+uint32(n))
			return pos, true
		}
	}
	return 0, false
}

// room returns the position of n free units. Those of a longer piece are taken
// only when there is no more memory, because pieces never grow together again.
func (sh *shard) room(n int) (pos uint32, ok bool) {
	if pos, ok = sh.get(n); ok {
		return pos, true
	}
	var blocks []unsafe.Pointer
	if p := sh.blocks.Load(); p != nil {
		blocks = *p
	}
	if sh.next == 0 || sh.next%blockUnits+uint32(n) > blockUnits || int(sh.next/blockUnits) == len(blocks) {
		if (len(blocks)+1)*blockUnits > 1<<unitBits {
			return sh.split(n)
		}
		b := sh.mem.grab(blockUnits * unit)
		if b == nil {
			return sh.split(n)
		}
		if rest := sh.next % blockUnits; rest != 0 { // of the last block
			sh.put(int(blockUnits-rest), sh.next)
		}
		sh.next = uint32(len(blocks)) * blockUnits
		more := append(blocks[:len(blocks):len(blocks)], unsafe.Pointer(&b[0]))
		sh.blocks.Store(&more)
		if sh.next == 0 {
			sh.next = 1
		}
	}
	pos = sh.next
	sh.next += uint32(n)
	return pos, true
}

// grow doubles the index, if there is room. The tags are all it takes.
func (sh *shard) grow() bool {
	old := *sh.index.Load()
	if !sh.mem.charge(8 * len(old)) {
		return false
	}
	index := make([]uint64, 2*len(old))
	mask := uint32(len(index) - 1)
	for _, e := range old {
		if e == 0 {
			continue
		}
		i := uint32(e>>32) & mask
		for index[i] != 0 {
			i = (i + 1) & mask
		}
		index[i] = e
	}
	sh.index.Store(&index)
	return true
}

// remove takes an entry out of the index and moves up those that had to make
// way for it.
func (sh *shard) remove(tag, pos uint32) {
	e := uint64(tag)<<32 | uint64(pos)
	index := *sh.index.Load()
	mask := uint32(len(index) - 1)
	i := tag & mask
	for index[i] != e {
		i = (i + 1) & mask
	}
	for j := i; ; {
		j = (j + 1) & mask
		if index[j] == 0 {
			break
		}
		// What lies at j stays if its place is cyclically within (i, j].
		home := uint32(index[j]>>32) & mask
		if (j-home)&mask < (j-i)&mask {
			continue
		}
		atomic.StoreUint64(&index[i], index[j])
		i = j
	}
	atomic.StoreUint64(&index[i], 0)
	sh.count--
}

// A label stack of one label, as nearly all are, is its own handle.
const oneLabel handle = 1 << 31

func (s *Store) internLabels(b []byte) (handle, error) {
	if len(b) == 3 {
		return oneLabel | handle(b[0])<<16 | handle(b[1])<<8 | handle(b[2]), nil
	}
	return s.intern(b, xxhash.Sum64(b))
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

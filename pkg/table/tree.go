package table

import "unsafe"

// maxWords is the number of words of the longest key.
const maxWords = 4

// A key orders routes within one family as their prefixes do: route
// distinguisher, address without host bits, length, path identifier. How many
// words are used depends on the family; see layout.
type key [maxWords]uint64

// A value is what a table keeps of a route beside its key.
type value struct {
	attrs, labels handle
	sec, usec     uint32 // of the per-peer header
	arrival       int64  // microseconds
	gen           uint32 // of the RIB when the route was last heard of
	host          uint8  // host bits in the last byte of the prefix
	flags         uint8  // of the per-peer header
	state         uint8
	_             uint8
}

// Bits of value.state.
const (
	stateWithdrawn = 1 << iota // the route is gone and only kept
	stateTwoOctet              // AS_PATH has two-octet AS numbers
	stateClassic               // announced in the UPDATE's own field, not MP_REACH_NLRI
)

// fan is how many routes a leaf has, and children an inner node.
const fan = 64

// The nodes of a tree end with as many keys as it takes words for them: memory
// behind that is not theirs.
type leaf struct {
	next, prev *leaf
	n          int
	vals       [fan]value
	keys       [fan * maxWords]uint64
}

type inner struct {
	n    int
	kids [fan]unsafe.Pointer
	keys [fan * maxWords]uint64 // of kids[i] the lowest possible, without meaning for the first
}

// A tree is a B+ tree of routes in order. The zero value but for mem and words
// is empty. Any number of readers or one writer may use it.
type tree struct {
	mem    *memory
	words  int
	height int // inner nodes above each leaf
	root   unsafe.Pointer
	first  *leaf
	n      int // entries
	leaves int
	inners int
}

func leafSize(words int) int  { return int(unsafe.Offsetof(leaf{}.keys)) + 8*fan*words }
func innerSize(words int) int { return int(unsafe.Offsetof(inner{}.keys)) + 8*fan*words }

// bytes returns the memory of the nodes of t.
func (t *tree) bytes() int64 {
	return int64(t.leaves)*int64(leafSize(t.words)) + int64(t.inners)*int64(innerSize(t.words))
}

func (t *tree) newLeaf() *leaf {
	t.leaves++
	l := (*leaf)(t.mem.node(t.words-1, leafSize(t.words)))
	l.next, l.prev, l.n = nil, nil, 0
	return l
}

func (t *tree) freeLeaf(l *leaf) {
	t.leaves--
	t.mem.put(t.words-1, leafSize(t.words), unsafe.Pointer(l))
}

func (t *tree) newInner() *inner {
	t.inners++
	n := (*inner)(t.mem.node(maxWords+t.words-1, innerSize(t.words)))
	n.n = 0
	return n
}

func (t *tree) freeInner(n *inner) {
	t.inners--
	t.mem.put(maxWords+t.words-1, innerSize(t.words), unsafe.Pointer(n))
}

// less reports whether the key at a is below k.
func less(a []uint64, k *key) bool {
	for i, w := range a {
		if w != k[i] {
			return w < k[i]
		}
	}
	return false
}

func equal(a []uint64, k *key) bool {
	for i, w := range a {
		if w != k[i] {
			return false
		}
	}
	return true
}

// lower returns how many of the keys from index lo to n are below k, plus lo.
// Keys of one word are first compared a cache line apart: the lines are then
// fetched all at once, where a binary search would wait for one after the other.
func lower(keys *[fan * maxWords]uint64, lo, n, words int, k *key) int {
	if words == 1 {
		const line = 8
		k := k[0]
		i := 0
		for at := line; at < n; at += line {
			if keys[at&(fan-1)] < k {
				i = at
			}
		}
		i = max(i, lo)
		for i < n && keys[i&(fan-1)] < k {
			i++
		}
		return i
	}
	for lo < n {
		m := int(uint(lo+n) >> 1)
		if less(keys[m*words:(m+1)*words], k) {
			lo = m + 1
		} else {
			n = m
		}
	}
	return lo
}

// child returns the index of the child of n that k belongs to.
func (t *tree) child(n *inner, k *key) int {
	i := lower(&n.keys, 1, n.n, t.words, k)
	if i < n.n && equal(n.keys[i*t.words:(i+1)*t.words], k) {
		return i
	}
	return i - 1
}

// seek returns the place of the first entry that is not below k; l is nil if
// the tree is empty, and i may be l.n. Found tells whether it is k itself.
func (t *tree) seek(k *key) (l *leaf, i int, found bool) {
	p := t.root
	if p == nil {
		return nil, 0, false
	}
	for range t.height {
		n := (*inner)(p)
		p = n.kids[t.child(n, k)]
	}
	l = (*leaf)(p)
	i = lower(&l.keys, 0, l.n, t.words, k)
	return l, i, i < l.n && equal(l.keys[i*t.words:(i+1)*t.words], k)
}

// key copies the key of an entry.
func (t *tree) key(l *leaf, i int) (k key) {
	copy(k[:t.words], l.keys[i*t.words:(i+1)*t.words])
	return k
}

// A step is a node on the way to a leaf, and the child taken.
type step struct {
	n *inner
	i int
}

// maxHeight is more than any number of entries that can be counted needs.
const maxHeight = 24

// path returns the way to the leaf that k belongs to.
func (t *tree) path(k *key, steps *[maxHeight]step) *leaf {
	p := t.root
	for d := range t.height {
		n := (*inner)(p)
		i := t.child(n, k)
		steps[d] = step{n, i}
		p = n.kids[i]
	}
	return (*leaf)(p)
}

// insert makes an entry for k, which seek did not find but gave l and i for,
// and returns its value.
func (t *tree) insert(k *key, l *leaf, i int) *value {
	t.n++
	if l == nil {
		l = t.newLeaf()
		t.root, t.first = unsafe.Pointer(l), l
	}
	if l.n == fan {
		l, i = t.split(k, l, i)
	}
	w := t.words
	copy(l.keys[(i+1)*w:(l.n+1)*w], l.keys[i*w:l.n*w])
	copy(l.vals[i+1:l.n+1], l.vals[i:l.n])
	copy(l.keys[i*w:(i+1)*w], k[:w])
	l.n++
	return &l.vals[i]
}

// split makes room in a full leaf and returns where k goes now. A leaf that
// grows at its end is left full: prefixes often come in order.
func (t *tree) split(k *key, l *leaf, i int) (*leaf, int) {
	var steps [maxHeight]step
	t.path(k, &steps)
	w := t.words
	r := t.newLeaf()
	r.next, r.prev = l.next, l
	if l.next != nil {
		l.next.prev = r
	}
	l.next = r
	mid := fan / 2
	if i == fan {
		mid = fan
	}
	r.n = fan - mid
	copy(r.keys[:r.n*w], l.keys[mid*w:fan*w])
	copy(r.vals[:r.n], l.vals[mid:])
	l.n = mid
	var low key
	if mid == fan {
		low = *k
	} else {
		low = t.key(r, 0)
	}
	t.addChild(&steps, t.height-1, &low, unsafe.Pointer(r))
	if i > mid || i == fan {
		return r, i - mid
	}
	return l, i
}

// addChild enters a node that was split off to the right of the child at depth
// d of a path.
func (t *tree) addChild(steps *[maxHeight]step, d int, low *key, right unsafe.Pointer) {
	w := t.words
	for ; d >= 0; d-- {
		n, i := steps[d].n, steps[d].i+1
		if n.n < fan {
			n.add(i, w, low, right)
			return
		}
		mid := fan / 2
		if i == fan {
			mid = fan - 1
		}
		r := t.newInner()
		r.n = fan - mid
		copy(r.kids[:r.n], n.kids[mid:])
		copy(r.keys[:r.n*w], n.keys[mid*w:fan*w])
		n.n = mid
		up := *(*key)(r.keys[:maxWords]) // words beyond w are not looked at
		if i > mid {
			r.add(i-mid, w, low, right)
		} else {
			n.add(i, w, low, right)
		}
		low, right = &up, unsafe.Pointer(r)
	}
	root := t.newInner()
	root.n = 2
	root.kids[0], root.kids[1] = t.root, right
	copy(root.keys[w:2*w], low[:w])
	t.root = unsafe.Pointer(root)
	t.height++
}

func (n *inner) add(i, w int, low *key, kid unsafe.Pointer) {
	copy(n.kids[i+1:n.n+1], n.kids[i:n.n])
	copy(n.keys[(i+1)*w:(n.n+1)*w], n.keys[i*w:n.n*w])
	n.kids[i] = kid
	copy(n.keys[i*w:(i+1)*w], low[:w])
	n.n++
}

func (n *inner) drop(i, w int) {
	copy(n.kids[i:n.n-1], n.kids[i+1:n.n])
	copy(n.keys[i*w:(n.n-1)*w], n.keys[(i+1)*w:n.n*w])
	n.n--
}

// remove takes out entry i of l. Leaves that have become sparse are merged
// with a neighbour that is, too.
func (t *tree) remove(l *leaf, i int) {
	w := t.words
	k := t.key(l, i)
	copy(l.keys[i*w:(l.n-1)*w], l.keys[(i+1)*w:l.n*w])
	copy(l.vals[i:l.n-1], l.vals[i+1:l.n])
	l.n--
	t.n--
	if l.n > fan/4 {
		return
	}
	if t.height == 0 {
		if l.n == 0 {
			t.freeLeaf(l)
			t.root, t.first = nil, nil
		}
		return
	}
	var steps [maxHeight]step
	t.path(&k, &steps)
	p, at := steps[t.height-1].n, steps[t.height-1].i
	if l.n > 0 {
		if at+1 < p.n && l.n+(*leaf)(p.kids[at+1]).n <= fan*3/4 {
			at++
		} else if at == 0 || l.n+(*leaf)(p.kids[at-1]).n > fan*3/4 {
			return
		}
		// The leaf at goes into the one before.
		from, into := (*leaf)(p.kids[at]), (*leaf)(p.kids[at-1])
		copy(into.keys[into.n*w:(into.n+from.n)*w], from.keys[:from.n*w])
		copy(into.vals[into.n:into.n+from.n], from.vals[:from.n])
		into.n += from.n
		l = from
	}
	if l.prev != nil {
		l.prev.next = l.next
	} else {
		t.first = l.next
	}
	if l.next != nil {
		l.next.prev = l.prev
	}
	t.freeLeaf(l)
	p.drop(at, w)
	for d := t.height - 1; steps[d].n.n == 0; d-- {
		t.freeInner(steps[d].n)
		if d == 0 {
			t.root, t.height = nil, 0
			return
		}
		steps[d-1].n.drop(steps[d-1].i, w)
	}
	for t.height > 0 && (*inner)(t.root).n == 1 {
		n := (*inner)(t.root)
		t.root = n.kids[0]
		t.freeInner(n)
		t.height--
	}
}

// shift takes away the first leaf, whose entries the caller has done away
// with, from a tree that is not used otherwise any more.
func (t *tree) shift() {
	l := t.first
	t.first = l.next
	t.n -= l.n
	t.freeLeaf(l)
	if t.first == nil {
		t.freeInners(t.root, t.height)
		t.root, t.height = nil, 0
	}
}

func (t *tree) freeInners(p unsafe.Pointer, height int) {
	if height == 0 {
		return
	}
	n := (*inner)(p)
	for _, kid := range n.kids[:n.n] {
		t.freeInners(kid, height-1)
	}
	t.freeInner(n)
}

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
// behind that is not theirs. What is looked at together lies in as few cache
// lines as possible; nodes begin with one.
type leaf struct {
	next, prev *leaf
	n          int
	_          [line - 24]byte
	vals       [fan]value
	keys       [fan * maxWords]uint64
}

// line is the length of a cache line.
const line = 64

type inner struct {
	n int
	_ [line - 8]byte
	// entries are the children, each the lowest key that it can have, which is
	// without meaning for the first, and a pointer.
	entries [fan * (maxWords + 1)]uint64
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
	// What was found stays where it is as long as changes does, and in its leaf
	// as long as shape does.
	changes, shape uint64
}

func leafSize(words int) int  { return int(unsafe.Offsetof(leaf{}.keys)) + 8*fan*words }
func innerSize(words int) int { return int(unsafe.Offsetof(inner{}.entries)) + 8*fan*(words+1) }

// bytes returns the memory of the nodes of t.
func (t *tree) bytes() int64 {
	return int64(t.leaves)*int64(leafSize(t.words)) + int64(t.inners)*int64(innerSize(t.words))
}

// newLeaf returns nil if there is no room.
func (t *tree) newLeaf() *leaf {
	l := (*leaf)(t.mem.node(t.words-1, leafSize(t.words)))
	if l == nil {
		return nil
	}
	t.leaves++
	l.next, l.prev, l.n = nil, nil, 0
	return l
}

func (t *tree) freeLeaf(l *leaf) {
	t.leaves--
	t.mem.put(t.words-1, leafSize(t.words), unsafe.Pointer(l))
}

// newInner returns nil if there is no room.
func (t *tree) newInner() *inner {
	n := (*inner)(t.mem.node(maxWords+t.words-1, innerSize(t.words)))
	if n == nil {
		return nil
	}
	t.inners++
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

// above reports whether the key at a is above k.
func above(a []uint64, k *key) bool {
	for i, w := range a {
		if w != k[i] {
			return w > k[i]
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

// apart is how far the keys are from each other that are compared first: their
// cache lines are then fetched all at once, where a binary search would wait for
// one after the other.
const apart = 8

// lower returns how many of the n keys of l are below k.
func (t *tree) lower(l *leaf, k *key) int {
	n, i := l.n, 0
	if t.words == 1 {
		k := k[0]
		for at := apart; at < n; at += apart {
			if l.keys[at&(fan-1)] < k {
				i = at
			}
		}
		for i < n && l.keys[i&(fan-1)] < k {
			i++
		}
		return i
	}
	w := t.words
	for at := apart; at < n; at += apart {
		if less(l.keys[at*w:(at+1)*w], k) {
			i = at
		}
	}
	for i < n && less(l.keys[i*w:(i+1)*w], k) {
		i++
	}
	return i
}

// child returns the index of the child of n that k belongs to: the last whose key
// is not above k.
func (t *tree) child(n *inner, k *key) int {
	i := 0
	if t.words == 1 {
		k := k[0]
		for at := apart; at < n.n; at += apart {
			if n.entries[2*at&(2*fan-1)] <= k {
				i = at
			}
		}
		for i+1 < n.n && n.entries[2*(i+1)&(2*fan-1)] <= k {
			i++
		}
		return i
	}
	w := t.words
	for at := apart; at < n.n; at += apart {
		if !above(n.entries[at*(w+1):][:w], k) {
			i = at
		}
	}
	for i+1 < n.n && !above(n.entries[(i+1)*(w+1):][:w], k) {
		i++
	}
	return i
}

// kid returns where the pointer to child i of n is.
func (n *inner) kid(i, w int) *unsafe.Pointer {
	return (*unsafe.Pointer)(unsafe.Pointer(&n.entries[i*(w+1)+w]))
}

// seek returns the place of the first entry that is not below k; l is nil if
// the tree is empty, and i may be l.n. Found tells whether it is k itself.
func (t *tree) seek(k *key) (l *leaf, i int, found bool) {
	l = t.leaf(k)
	if l == nil {
		return nil, 0, false
	}
	i, found = t.within(l, k)
	return l, i, found
}

// leaf returns the leaf that k belongs to, nil if the tree is empty.
func (t *tree) leaf(k *key) *leaf {
	p := t.root
	for range t.height {
		n := (*inner)(p)
		p = *n.kid(t.child(n, k), t.words)
	}
	return (*leaf)(p)
}

// within is seek in the leaf that k belongs to.
func (t *tree) within(l *leaf, k *key) (i int, found bool) {
	i = t.lower(l, k)
	return i, i < l.n && equal(l.keys[i*t.words:(i+1)*t.words], k)
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
		p = *n.kid(i, t.words)
	}
	return (*leaf)(p)
}

// insert makes an entry for k, which seek did not find but gave l and i for,
// and returns its value; nil, and nothing has changed, if there is no room.
func (t *tree) insert(k *key, l *leaf, i int) *value {
	if l == nil {
		if l = t.newLeaf(); l == nil {
			return nil
		}
		t.root, t.first = unsafe.Pointer(l), l
		t.shape++
	} else if l.n == fan {
		if l, i = t.split(k, l, i); l == nil {
			return nil
		}
	}
	t.n++
	t.changes++
	w := t.words
	copy(l.keys[(i+1)*w:(l.n+1)*w], l.keys[i*w:l.n*w])
	copy(l.vals[i+1:l.n+1], l.vals[i:l.n])
	copy(l.keys[i*w:(i+1)*w], k[:w])
	l.n++
	return &l.vals[i]
}

// fresh are the inner nodes that a split takes, had before it changes anything.
type fresh struct {
	nodes [maxHeight + 1]*inner
	n     int
}

func (f *fresh) take() *inner {
	f.n--
	return f.nodes[f.n]
}

// reserve gets a node for each full one on a path from below, and one for a new
// root if all are.
func (t *tree) reserve(steps *[maxHeight]step, f *fresh) bool {
	need := 1
	for d := t.height - 1; d >= 0; d-- {
		if steps[d].n.n < fan {
			need--
			break
		}
		need++
	}
	for f.n < need {
		n := t.newInner()
		if n == nil {
			for f.n > 0 {
				t.freeInner(f.take())
			}
			return false
		}
		f.nodes[f.n] = n
		f.n++
	}
	return true
}

// split makes room in a full leaf and returns where k goes now, nil if there is
// no memory for it. A leaf that grows at its end is left full: prefixes often
// come in order.
func (t *tree) split(k *key, l *leaf, i int) (*leaf, int) {
	var steps [maxHeight]step
	t.path(k, &steps)
	w := t.words
	var f fresh
	if !t.reserve(&steps, &f) {
		return nil, 0
	}
	r := t.newLeaf()
	if r == nil {
		for f.n > 0 {
			t.freeInner(f.take())
		}
		return nil, 0
	}
	t.shape++
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
	t.addChild(&steps, t.height-1, &low, unsafe.Pointer(r), &f)
	if i > mid || i == fan {
		return r, i - mid
	}
	return l, i
}

// addChild enters a node that was split off to the right of the child at depth
// d of a path.
func (t *tree) addChild(steps *[maxHeight]step, d int, low *key, right unsafe.Pointer, f *fresh) {
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
		r := f.take()
		r.n = fan - mid
		copy(r.entries[:r.n*(w+1)], n.entries[mid*(w+1):fan*(w+1)])
		n.n = mid
		up := *(*key)(r.entries[:maxWords]) // words beyond w are not looked at
		if i > mid {
			r.add(i-mid, w, low, right)
		} else {
			n.add(i, w, low, right)
		}
		low, right = &up, unsafe.Pointer(r)
	}
	root := f.take()
	root.n = 2
	*root.kid(0, w), *root.kid(1, w) = t.root, right
	copy(root.entries[w+1:], low[:w])
	t.root = unsafe.Pointer(root)
	t.height++
}

func (n *inner) add(i, w int, low *key, kid unsafe.Pointer) {
	e := w + 1
	copy(n.entries[(i+1)*e:(n.n+1)*e], n.entries[i*e:n.n*e])
	copy(n.entries[i*e:i*e+w], low[:w])
	*n.kid(i, w) = kid
	n.n++
}

func (n *inner) drop(i, w int) {
	e := w + 1
	copy(n.entries[i*e:(n.n-1)*e], n.entries[(i+1)*e:n.n*e])
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
	t.changes++
	if l.n > fan/4 {
		return
	}
	if t.height == 0 {
		if l.n == 0 {
			t.shape++
			t.freeLeaf(l)
			t.root, t.first = nil, nil
		}
		return
	}
	var steps [maxHeight]step
	t.path(&k, &steps)
	p, at := steps[t.height-1].n, steps[t.height-1].i
	if l.n > 0 {
		if at+1 < p.n && l.n+(*leaf)(*p.kid(at+1, w)).n <= fan*3/4 {
			at++
		} else if at == 0 || l.n+(*leaf)(*p.kid(at-1, w)).n > fan*3/4 {
			return
		}
		// The leaf at goes into the one before.
		from, into := (*leaf)(*p.kid(at, w)), (*leaf)(*p.kid(at-1, w))
		copy(into.keys[into.n*w:(into.n+from.n)*w], from.keys[:from.n*w])
		copy(into.vals[into.n:into.n+from.n], from.vals[:from.n])
		into.n += from.n
		l = from
	}
	t.shape++
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
		t.root = *n.kid(0, w)
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
	for i := range n.n {
		t.freeInners(*n.kid(i, t.words), height-1)
	}
	t.freeInner(n)
}

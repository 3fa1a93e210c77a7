package relay

import "sync"

const (
	smallChunk = 4 << 10
	largeChunk = 64 << 10
	// spareBytes bounds the chunks that a target keeps for their next use.
	spareBytes = 16 << 20
)

// A chunk is a piece of a queue. buf[r:w] is what waits.
type chunk struct {
	next *chunk
	buf  []byte
	r, w int
}

// A budget is the memory of one target. It is safe for concurrent use.
type budget struct {
	mu      sync.Mutex
	changed *sync.Cond
	turn    uint64 // counts what may have made room
	limit   int64
	used    int64
	shared  int64 // bytes that accounts hold above their share
	members map[*account]struct{}
	spare   [2][]*chunk // small, large
	spared  int64
}

// An account is what one session holds of a budget, in bytes.
type account struct{ used int64 }

func newBudget(limit int64) *budget {
	b := &budget{limit: limit, members: make(map[*account]struct{})}
	b.changed = sync.NewCond(&b.mu)
	return b
}

func (b *budget) share() int64 { return b.limit / 2 / int64(max(len(b.members), 1)) }

func (b *budget) join(a *account) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.members[a] = struct{}{}
	b.recount()
}

// leave ends an account, which must hold nothing.
func (b *budget) leave(a *account) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.members, a)
	b.recount()
	b.bumpLocked()
}

// recount follows a change of the share.
func (b *budget) recount() {
	share := b.share()
	b.shared = 0
	for a := range b.members {
		b.shared += max(0, a.used-share)
	}
}

// take returns a chunk for n bytes or the first part of them, a small one where
// there is no room for a large one, or nil when there is no room; then turn is to
// be given to wait.
func (b *budget) take(a *account, n int) (c *chunk, turn uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > smallChunk && b.charge(a, largeChunk) {
		return b.chunk(1, largeChunk), 0
	}
	// A session that holds nothing gets a little whatever its share: else one of
	// very many could never send.
	if b.charge(a, smallChunk) || a.used == 0 && b.force(a, smallChunk) {
		return b.chunk(0, smallChunk), 0
	}
	return nil, b.turn
}

// ample reports whether an account has more than half of its share left. If not,
// turn is to be given to wait.
func (b *budget) ample(a *account) (yes bool, turn uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return a.used <= b.share()/2, b.turn
}

func (b *budget) charge(a *account, size int64) bool {
	share := b.share()
	over := max(0, a.used+size-share) - max(0, a.used-share)
	if over > 0 && b.shared+over > b.limit-b.limit/2 {
		return false
	}
	b.shared += over
	b.used += size
	a.used += size
	return true
}

func (b *budget) force(a *account, size int64) bool {
	b.shared += max(0, a.used+size-b.share())
	b.used += size
	a.used += size
	return true
}

func (b *budget) chunk(class, size int) *chunk {
	if free := b.spare[class]; len(free) > 0 {
		c := free[len(free)-1]
		free[len(free)-1] = nil
		b.spare[class] = free[:len(free)-1]
		b.spared -= int64(size)
		return c
	}
	return &chunk{buf: make([]byte, size)}
}

// give takes a chunk back.
func (b *budget) give(a *account, c *chunk) {
	size := int64(len(c.buf))
	c.next, c.r, c.w = nil, 0, 0
	b.mu.Lock()
	defer b.mu.Unlock()
	share := b.share()
	b.shared -= max(0, a.used-share) - max(0, a.used-size-share)
	b.used -= size
	a.used -= size
	if b.spared+size <= spareBytes {
		class := 0
		if size == largeChunk {
			class = 1
		}
		b.spare[class] = append(b.spare[class], c)
		b.spared += size
	}
	b.bumpLocked()
}

// wait returns when something has changed since turn was returned by take.
func (b *budget) wait(turn uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.turn == turn {
		b.changed.Wait()
	}
}

func (b *budget) bump() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bumpLocked()
}

func (b *budget) bumpLocked() {
	b.turn++
	b.changed.Broadcast()
}

// A queue is the bytes of one session that wait for one target, oldest first. Its
// owner's lock guards it.
type queue struct {
	budget     *budget
	account    account
	head, tail *chunk
	size       int64
	lent       bool // the head is being read
}

// add appends as much of b as there is room for.
func (q *queue) add(b []byte) (n int, turn uint64) {
	for len(b) > 0 {
		if q.tail == nil || q.tail.w == len(q.tail.buf) {
			var c *chunk
			if c, turn = q.budget.take(&q.account, len(b)); c == nil {
				return n, turn
			}
			if q.tail == nil {
				q.head = c
			} else {
				q.tail.next = c
			}
			q.tail = c
		}
		k := copy(q.tail.buf[q.tail.w:], b)
		q.tail.w += k
		q.size += int64(k)
		n += k
		b = b[k:]
	}
	return n, 0
}

// lend returns bytes from the front, which stay valid until taken.
func (q *queue) lend() []byte {
	q.lent = true
	return q.head.buf[q.head.r:q.head.w]
}

// taken ends a lend, of which the first n bytes are done with.
func (q *queue) taken(n int) {
	q.lent = false
	c := q.head
	c.r += n
	q.size -= int64(n)
	if c.r == c.w {
		q.drop()
	}
}

// drop frees the head.
func (q *queue) drop() {
	c := q.head
	q.head = c.next
	if q.head == nil {
		q.tail = nil
	}
	q.budget.give(&q.account, c)
}

// clear frees everything but what is lent, which taken must be called for, with 0,
// and clear again.
func (q *queue) clear() {
	q.size = 0
	if q.lent {
		for c := q.head.next; c != nil; {
			next := c.next
			q.budget.give(&q.account, c)
			c = next
		}
		q.head.next, q.tail = nil, q.head
		return
	}
	for q.head != nil {
		q.drop()
	}
}

// taken returns the bytes of the chunks that sessions hold.
func (b *budget) taken() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

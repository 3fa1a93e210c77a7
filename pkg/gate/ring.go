package gate

// A ring is a queue of marks that allocates only to grow.
type ring struct {
	buf  []mark // length is a power of two
	head int
	n    int
}

func (r *ring) push(m mark) {
	if r.n == len(r.buf) {
		grown := make([]mark, max(64, 2*len(r.buf)))
		for i := range r.n {
			grown[i] = r.buf[(r.head+i)&(len(r.buf)-1)]
		}
		r.buf, r.head = grown, 0
	}
	r.buf[(r.head+r.n)&(len(r.buf)-1)] = m
	r.n++
}

func (r *ring) front() (mark, bool) {
	if r.n == 0 {
		return mark{}, false
	}
	return r.buf[r.head], true
}

func (r *ring) pop() {
	r.head = (r.head + 1) & (len(r.buf) - 1)
	r.n--
}

func (r *ring) reset() { r.head, r.n = 0, 0 }

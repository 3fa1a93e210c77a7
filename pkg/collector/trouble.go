package collector

import "sync"

// A trouble is something that is wrong: it counts once it has lasted. When it is over
// it counts no more at once, or a member that has just started would be taken for
// better off.
type trouble struct {
	mu    sync.Mutex
	since int64 // 0: there is none
}

// step follows whether it is there at now, and reports since when it has been, 0 if
// it is not or not for longer than patience. Times are µs.
func (t *trouble) step(now int64, there bool, patience int64) (since int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case !there:
		t.since = 0
	case t.since == 0:
		t.since = now
	}
	if t.since == 0 || now-t.since < patience {
		return 0
	}
	return t.since
}

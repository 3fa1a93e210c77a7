package collector

import "sync"

// A reach follows whether the sink can be reached. It is patient: a broker that
// restarts is no reason to change roles. One that is back counts at once, or a
// member that has just started would be taken for better off.
type reach struct {
	mu    sync.Mutex
	since int64 // when it was last found out of reach, 0 if it is not
}

// step follows what is known at now and reports since when the sink has been out
// of reach, 0 if it is not or not for long. Times are µs.
func (r *reach) step(now int64, connected bool, patience int64) (since int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case connected:
		r.since = 0
	case r.since == 0:
		r.since = now
	}
	if r.since == 0 || now-r.since < patience {
		return 0
	}
	return r.since
}

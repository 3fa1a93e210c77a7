package collector

import "sync"

// A reach follows whether the sink can be reached, with patience both ways: a
// broker that restarts is no reason to change roles, and one that is back for a
// moment is none to change them again.
type reach struct {
	mu     sync.Mutex
	lost   bool
	since  int64 // when it began to be otherwise than lost says; 0: it is not
	outage int64 // when the one that made it lost began
}

// step follows what is known at now and reports since when the sink has been out
// of reach, 0 if it is not or not for long. Times are µs; patience is how long
// either has to last.
func (r *reach) step(now int64, connected bool, patience int64) (since int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case connected != r.lost:
		r.since = 0
	case r.since == 0:
		r.since = now
	}
	if r.since != 0 && now-r.since >= patience {
		r.lost = !connected
		if r.lost {
			r.outage = r.since
		}
		r.since = 0
	}
	if r.lost {
		return r.outage
	}
	return 0
}

package gate

import "math"

// A Vouch bounds a low-water mark: what it may vouch for is less than what the log says,
// while something that has come is not in the log, or may never come here. A bound is
// kept for each reason. The caller holds the lock of the Stream. The zero value is that
// of a router that was never heard.
type Vouch struct {
	// CaughtUp is when all that had come over the session was last known to be in the
	// log, and Behind that it is not now.
	CaughtUp int64
	Behind   bool

	// Heard is when the router's end of the session last gave a sign of life, which its
	// host does without the router; 0 if that is not known. What the router has said
	// since may be lost on a way that is broken, and others may have heard it. See Hear.
	Heard int64

	// What was said since kept, before a silence, may still come: until keptTill (0:
	// nothing may), or until burst after flows, when something was first read since (0:
	// not yet).
	kept, keptTill, flows int64
	took                  int64 // when something was last read

	// Late: entries before this position were read long after they may have come;
	// until they are sent, nothing after LateFrom is.
	Late     uint64
	LateFrom int64

	// Gap: what the router said from gapFrom on until a session opened is only in the
	// table dump of that session, which was whole at gapTill (0: not yet). gapFrom is 0
	// if no session came before.
	Gap              bool
	gapFrom, gapTill int64

	// Stopped is the bound when we stopped sending: 0 for none, -1 if there was
	// nothing to vouch for.
	Stopped int64
}

// lateLeast is how old something may be, in µs, that counts as read when it came: less
// than the margin, and more than the time between two looks at a session that says
// nothing.
const lateLeast = 400_000

// burst is how long, in µs, what TCP has kept takes to come once it flows.
const burst = 1_000_000

// Opened follows the opening of a session.
func (v *Vouch) Opened(at int64) {
	if !v.Gap {
		v.Gap, v.gapFrom = true, v.CaughtUp
		if v.Heard != 0 {
			v.gapFrom = min(v.gapFrom, v.Heard)
		}
		if v.keptTill != 0 {
			v.gapFrom = min(v.gapFrom, v.kept)
		}
	}
	v.gapTill = 0
	v.CaughtUp, v.Behind, v.Heard = at, false, 0
	v.keptTill, v.flows, v.took = 0, 0, at
}

// Hear follows that the router's end of the session gave a sign of life at that time.
// It is asked for one so often when it says nothing, and the session is ended when there
// was none for most. After a silence, what TCP has kept meanwhile does not come at once:
// its sender tries again at times twice as far apart each time, so within as long as the
// silence has lasted.
func (v *Vouch) Hear(at, every, most int64) {
	if silence := at - v.Heard; v.Heard != 0 && silence > every+every/2 {
		if v.keptTill == 0 {
			v.kept = v.Heard
		}
		v.keptTill, v.flows = max(v.keptTill, at+min(silence, most)), 0
		if v.took >= at {
			v.flows = at
		}
	}
	v.Heard = max(v.Heard, at)
}

// Took follows that something was put into the log, which now reaches from position
// from to end; all says that nothing was left.
func (v *Vouch) Took(now int64, from, end uint64, all bool) {
	if now-v.CaughtUp > lateLeast {
		if v.Late == 0 || from >= v.Late {
			v.LateFrom = v.CaughtUp
		}
		v.Late = end
	}
	if v.Behind = !all; all {
		v.CaughtUp = now
	}
	if v.took = now; v.keptTill != 0 && v.flows == 0 {
		v.flows = now
	}
}

// Bound returns m, or less: up to when the log, which begins at position from and by
// itself vouches up to m, can be vouched for. whole says that the table dump of the
// session is over. It reports false if there is nothing.
func (v *Vouch) Bound(now, m int64, from uint64, whole bool) (int64, bool) {
	b, ok := v.limit(now, m, from, whole)
	return min(m, b), ok
}

// limit is Bound, without m where nothing says less.
func (v *Vouch) limit(now, m int64, from uint64, whole bool) (b int64, ok bool) {
	b = math.MaxInt64
	if v.Late != 0 && from >= v.Late {
		v.Late = 0
	}
	if v.Late != 0 {
		b = min(b, v.LateFrom)
	}
	if v.Behind {
		b = min(b, v.CaughtUp)
	}
	if v.Heard != 0 {
		b = min(b, v.Heard)
	}
	if v.keptTill != 0 && (now >= v.keptTill || v.flows != 0 && now >= v.flows+burst) {
		v.keptTill = 0
	}
	if v.keptTill != 0 {
		b = min(b, v.kept)
	}
	if !v.Gap {
		return b, true
	}
	if whole && v.gapTill == 0 {
		v.gapTill = now
	}
	if v.gapTill != 0 && min(m, b) >= v.gapTill {
		v.Gap = false
		return b, true
	}
	return min(b, v.gapFrom), v.gapFrom != 0
}

// Stop notes what may be vouched for at the end of sending, when the log vouches up to
// m, or not at all.
func (v *Vouch) Stop(now, m int64, known bool, from uint64, whole bool) {
	b, ok := v.limit(now, m, from, whole)
	switch {
	case !known || !ok:
		v.Stopped = -1
	case b < math.MaxInt64:
		v.Stopped = b
	default:
		v.Stopped = 0
	}
}

// StoppedAt is Bound for one that has stopped.
func (v *Vouch) StoppedAt(m int64) (int64, bool) {
	if v.Stopped > 0 {
		m = min(m, v.Stopped)
	}
	return m, v.Stopped >= 0
}

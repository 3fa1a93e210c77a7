package sim

// unbound takes bounds of the mark away, by a built-in mistake.
func (st *stream) unbound() {
	if st.p.w.opt.Defect == MarkWithinDump {
		st.Gap = false
	}
}

// stop follows the end of sending.
func (st *stream) stop(now int64) {
	st.unbound()
	m, known := st.gate.Mark(now)
	from, _ := st.gate.Positions()
	st.Stop(now, m, known, from, st.course.Whole(now, st.Behind))
}

// mark is up to when all that the router said is in Kafka.
func (st *stream) mark() (int64, bool) {
	now := st.p.local()
	st.peek(now)
	m, ok := st.gate.Mark(now)
	if !ok {
		return m, ok
	}
	if st.gate.Wanted() {
		st.unbound()
		from, _ := st.gate.Positions()
		return st.Bound(now, m, from, st.course.Whole(now, st.Behind))
	}
	return st.StoppedAt(m)
}

// peek looks whether something has come that is not in the log, and when the router's
// host was last heard.
func (st *stream) peek(now int64) {
	if st.conn == nil {
		return
	}
	if st.Behind = st.input.len() > 0; !st.Behind {
		st.CaughtUp = now
	}
	c := st.conn
	if !c.begun {
		return
	}
	at := c.heard() + st.p.skew
	switch st.p.w.opt.Defect {
	case SilenceUnheard:
	case BurstUnawaited:
		st.Heard = max(st.Heard, at)
	default:
		st.Hear(at, probeEvery, keepAlive)
	}
}

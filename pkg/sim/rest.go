package sim

import (
	"fmt"

	"github.com/bmpha/bmpha/pkg/election"
)

// checkAtRest checks what must hold at the end.
func (w *world) checkAtRest() {
	w.checkLiveness()
	for i, r := range w.routers {
		w.checkLoss(r, w.kafka.parts[i])
	}
	for _, p := range w.procs {
		for _, st := range p.streams {
			w.res.Received += st.received
		}
	}
}

func (w *world) checkLiveness() {
	active := 0
	for _, nd := range w.nodes {
		if nd.proc == nil {
			w.violate("I6: no collector runs on %s", nd.name)
			return
		}
		if role, _, _ := nd.proc.el.Role(); role == election.Active {
			active++
		}
	}
	if active != 1 {
		w.violate("I6: %d collectors are active at rest", active)
	}
	for _, r := range w.routers {
		senders := 0
		for _, nd := range w.nodes {
			st := nd.proc.streams[r.id]
			held, _, _ := st.gate.Held()
			if st.gate.Wanted() {
				senders++
				if st.conn == nil {
					w.violate("I6: %s is to send for router %d and does not hear it", nd.name, r.id)
				}
			}
			if held > 0 || st.gate.Outstanding() > 0 {
				w.violate("I6: %s holds %d entries of router %d at rest, %d records under way, wanted %v, %s",
					nd.name, held, r.id, st.gate.Outstanding(), st.gate.Wanted(), st.gate.State())
			}
		}
		if senders != 1 {
			w.violate("I6: router %d has %d senders at rest", r.id, senders)
		}
		if n := w.kafka.parts[r.id].pending.len(); n > 0 {
			w.violate("I6: %d records of router %d are in no transaction that has ended, or behind one, at rest", n, r.id)
		}
	}
}

// excuse reports whether there is an excuse for a loss. Runs with a single fault
// have none, unless no one was left to send.
func (w *world) excuse(r *router) (string, bool) {
	if len(w.faults) <= 1 && !w.has(ForceAllStandby) && !w.has(StopAll) && !(r.endless && w.has(KafkaRejects)) {
		return "", false
	}
	for _, p := range w.procs {
		if p.streams[r.id].gate.Counters().Dropped > 0 {
			return "a full standby dropped", true
		}
	}
	if r.lagged != "" && !w.opt.Lag {
		return "the sender lagged by more than the margin", true
	}
	return "", false
}

// burst reports whether a loss of change v is one that a mark does not prevent: it was
// to come after a silence.
func (w *world) burst(r *router, v uint32) (string, bool) {
	return "the sender stopped between a silence and the words that it kept", len(w.faults) > 1 && r.burst(v)
}

// excused notes a finding that the design allows for.
func (w *world) excused(why, format string, args ...any) {
	w.res.Excused[why]++
	w.res.excuses = append(w.res.excuses, why+": "+fmt.Sprintf(format, args...))
	w.tracef("excused (%s): "+format, append([]any{why}, args...)...)
}

const behind = "of two senders the one behind spoke last"

// checkLoss checks I1 and I8.
func (w *world) checkLoss(r *router, k *partition) {
	fail := func(seam bool, v uint32, format string, args ...any) {
		why, ok := w.excuse(r)
		if !ok {
			why, ok = w.burst(r, v)
		}
		switch {
		case ok || !seam:
		case w.comesLate():
			why, ok = "a host that was cut off recalls nothing", true
		case !w.opt.Behind && (len(w.faults) > 1 || r.endless):
			why, ok = behind, true
		}
		if ok {
			w.excused(why, format, args...)
			return
		}
		w.violate(format, args...)
	}
	if !r.coalesce {
		for v := 1; v < len(r.history); v++ {
			h := &r.history[v]
			if h.all && !h.skipped && k.copiesOf(uint32(v)) == 0 && w.keptBy(h) && !r.openedWithin(h.at, 30*sec) {
				fail(false, uint32(v), "I1: change %d of router %d, said at %.4f s to all, never reached Kafka", v, r.id, float64(h.at)/1e6)
				break
			}
		}
	}
	for i, v := range r.word {
		pk := uint32(i)
		if k.newest[pk] < v && r.left[pk] >= v {
			if has, want := k.value(pk), r.value(pk); has != want {
				fail(r.beside[pk], v, "I1: the last word about %x of router %d, %d, was left out, and is %d, but Kafka has %d", pk, r.id, v, want, has)
				return
			}
			continue
		}
		if k.newest[pk] < v {
			fail(false, v, "I1: the last word about %x of router %d, %d, never reached Kafka, the newest there is %d", pk, r.id, v, k.newest[pk])
			return
		}
	}
	for i, v := range r.table {
		pk, c := uint32(i), &k.table[i]
		if v == 0 || c.version != 0 && r.left[pk] >= v && content(pk, c.version) == content(pk, v) {
			continue
		}
		if c.version != v {
			fail(true, v, "I8: %x of router %d is %d in the router and %d in the consumer's table", pk, r.id, v, c.version)
			return
		}
	}
	for pk, c := range &k.table {
		if c.version != 0 && r.table[pk] == 0 {
			fail(true, r.word[pk], "I8: %x of router %d is withdrawn and %d in the consumer's table", pk, r.id, c.version)
			return
		}
	}
}

// keptBy reports whether a collector that received it runs to the end.
func (w *world) keptBy(h *said) bool {
	for _, nd := range w.nodes {
		if p := nd.proc; p != nil && p.number < 64*len(h.by) && h.by[p.number/64]&(1<<(p.number%64)) != 0 {
			return true
		}
	}
	return false
}

func (r *router) openedWithin(at, d int64) bool {
	for _, o := range r.opens {
		if o > at && o <= at+d {
			return true
		}
	}
	return false
}

// value is what the router has of a prefix at rest, 0 for nothing.
func (r *router) value(k uint32) byte {
	if v := r.table[k]; v != 0 {
		return content(k, v)
	}
	return 0
}

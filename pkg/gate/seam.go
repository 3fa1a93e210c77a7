package gate

import (
	"github.com/bmpha/bmpha/pkg/hold"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/seam"
)

// scan is a place up to which a log was listed.
type scan struct {
	on     bool
	cur    hold.Cursor
	codec  Codec
	origin record.Origin
}

// Awaits reports whether the stream is wanted and only waits for Join before it
// starts. One of which something is still under way, which may reach Kafka or not,
// does not yet.
func (s *Stream) Awaits() bool { return s.awaits && s.state == Holding && !s.busy }

// Again makes a stream that sends stop and wait for Join once more: what it sends
// does not arrive, and another may send meanwhile.
func (s *Stream) Again() {
	if !s.want || s.awaits || !s.cfg.Await {
		return
	}
	s.awaits, s.plan, s.ahead = true, nil, nil // what was scanned until now stays so
	s.doubts++
	s.breaks++
	if s.state == Sending {
		s.stop()
	}
}

// Waits reports whether the stream Awaits, or will when what is under way has come to
// its end.
func (s *Stream) Waits() bool { return s.awaits }

// Scan lists the records of the next entries in own, until entries and records are
// most together: from where the last Scan ended, or from the tail if that has passed
// it. b is memory to encode into. It reports whether all is listed that there is, or
// that own takes. A stream is scanned into the same own until Join.
func (s *Stream) Scan(own *seam.Own, b *record.Batch, most int) bool {
	c := &s.scan
	tail := s.log.Tail()
	if !c.on || c.cur.Pos() < tail.Pos() || own.Full() && tail.Pos() == c.cur.Pos() {
		*c = scan{on: true, cur: tail, origin: record.Origin{Instance: s.cfg.Instance}}
		if s.tail != nil {
			c.codec = s.tail.Clone()
		}
		own.Reset(tail.Pos())
	}
	s.log.Sync(&c.cur)
	end := s.log.End()
	for n := 0; n < most && !own.Full(); n += 1 + b.Len() {
		e, ok := c.cur.Next(end)
		if !ok {
			return true
		}
		b.Reset()
		c.origin.Session, c.origin.Message = e.Session, e.Pos
		c.codec, _ = s.records(c.codec, b, &c.origin, &e, e.Arrival) // an error is told of when it is sent
		own.Entry()
		for i := range b.Len() {
			if w, ok := s.cfg.Identify(&e, b, i); ok {
				own.Add(w, e.Arrival)
			} else {
				own.AddBare()
			}
		}
	}
	return own.Full()
}

// Rest forgets how far the stream was scanned.
func (s *Stream) Rest() { s.scan = scan{} }

// From returns the position of the oldest entry: from there on a Plan is needed.
func (s *Stream) From() uint64 {
	tail := s.log.Tail()
	return tail.Pos()
}

// Sent returns the position before which everything that is held is in Kafka, from
// here.
func (s *Stream) Sent() uint64 { return s.sent }

// aheadMost is for how long, in µs, what others have sent is taken for that when it
// comes here as well: a session may be that far behind.
const aheadMost = 60_000_000

// Join lets a stream that Awaits start. What the plan says is in Kafka is left out,
// what it doubts is flagged as replayed, and what is Ahead when it comes; without a
// plan all that was held is.
func (s *Stream) Join(p *seam.Plan) {
	s.scan = scan{}
	if !s.awaits {
		return
	}
	s.awaits = false
	s.plan = p
	if p == nil {
		return
	}
	s.ahead, s.aheadTill = p.Ahead, s.lastSeen+aheadMost
	s.n.Skipped += uint64(p.Skipped)
	s.n.Doubtful += uint64(p.Doubtful)
}

// passed lets go of a plan once the tail is behind it.
func (s *Stream) passed() {
	if s.plan == nil {
		return
	}
	if tail := s.log.Tail(); tail.Pos() >= s.plan.End() {
		s.plan, s.started = nil, nil
	}
}

// fillPlanned is Fill for an entry that the plan covers. b holds from records of
// earlier entries.
func (s *Stream) fillPlanned(b *record.Batch, e *hold.Entry, wall int64) {
	records, skipped, doubt := s.using.Entry(e.Pos)
	if doubt {
		s.flag()
	}
	if records > 0 && skipped == records {
		s.codec = s.past(s.codec, e)
		return
	}
	from := b.Len()
	s.encode(b, e, e.Arrival+wall)
	if skipped == 0 || b.Len()-from != records {
		return
	}
	kept := from
	for i := range records {
		if !s.using.Skip(e.Pos, i) {
			b.Recs[kept] = b.Recs[from+i]
			kept++
		}
	}
	b.Recs = b.Recs[:kept]
}

// doubtAhead flags the records of an entry, from from on, that others have sent.
func (s *Stream) doubtAhead(b *record.Batch, e *hold.Entry, from int) {
	for i := from; i < b.Len(); i++ {
		if w, ok := s.cfg.Identify(e, b, i); ok && s.coming.Take(w) {
			b.Flag(i, record.FlagReplayed)
			s.replayed++
		}
	}
}

// flag marks what is encoded next as possibly in Kafka already.
func (s *Stream) flag() {
	if s.origin.Flags&record.FlagReplayed == 0 {
		s.origin.Flags |= record.FlagReplayed
		s.replayed++
	}
}

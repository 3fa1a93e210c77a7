package gate

// A Ground tells whether what a router said in sessions before can be taken as
// sent, so that what it says again need not be sent again. The stream's owner
// keeps one for each router and tells it of sessions. The zero value says no.
//
// It holds only if nothing else can have been sent in between: this stream alone
// has sent since before the last session ended, and the sessions up to then had
// said all that the router had to say. If another collector has been the sender
// for a moment, Kafka may have a later word than the one that the router now
// repeats. Nor must anything have been lost since the last whole session began,
// or another have sent at the same time: what it had under way may have come
// behind what was said until then.
type Ground struct {
	holds  bool
	number uint64 // when the last session ended
	doubts uint64 // when it began
	began  uint64 // number when it began
}

// Opened follows the beginning of a session.
func (g *Ground) Opened(s *Stream) { g.holds, g.doubts, g.began = g.Holds(s), s.doubts, s.breaks }

// Closed follows the end of a session. whole says that it had said all about the
// router's routes, its dump being over; one of which the ground holds need not
// have, for what it had not said again yet is as it was.
func (g *Ground) Closed(s *Stream, whole bool) {
	number, alone := s.Unbroken()
	whole = whole && alone && s.doubts == g.doubts
	if whole && number == g.began {
		s.beside = false // all of it was sent from here, behind what was said beside another
	}
	g.holds = whole && !s.beside || g.Holds(s)
	g.number = number
}

// Holds reports whether what was said in sessions before is in Kafka, or will be
// from here, with nothing else behind it. That is what the stream was last told of
// its role; a process that stood still may not have been told yet, so the lease
// has to be looked at as well.
func (g *Ground) Holds(s *Stream) bool {
	number, alone := s.Unbroken()
	return g.holds && alone && number == g.number
}

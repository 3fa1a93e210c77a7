package relay

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bmpha/bmpha/pkg/table"
)

const (
	// stepRoutes is how many routes a replay makes at a time: messages of the
	// session wait for as long as that takes.
	stepRoutes = 256
	// tableWithin is how long a session is waited for to say whether it has a
	// table, before it is reset.
	tableWithin = 30 * time.Second
)

// A Stream is one session of a router, on its way to all targets. Write, Apply,
// Join and Table must not be called concurrently, which is all that the goroutine
// that reads the session does; all other methods may be called at any time.
//
// Most targets get the bytes of the session as they come, from Write. One that is
// replayed gets whole messages, from Apply, until it has been told all that the
// table had. Then Join, called before the next Write, says what of the next message
// has been written before, and it gets bytes like the others.
type Stream struct {
	relay   *Relay
	id      uint64
	router  netip.AddrPort
	reset   func()
	opened  time.Time
	links   []atomic.Pointer[link] // one for each target, changed under mu
	aborted atomic.Bool
	closed  atomic.Bool // set under mu

	// mu puts the steps of replays and the messages of the session in one order. It
	// comes before the locks of the relay, of targets and of links.
	mu     sync.Mutex
	table  *table.Table
	tabled bool                // Table was called
	each   func(*table.Change) // of the Apply under way
	tell   func(*table.Change) // s.change
	framed []*link             // that Apply has to do with
	out    []byte
}

// Write copies b for each target that has the session from its beginning. It
// waits only while the relay is paused (or was a moment ago) and a buffer is full:
// until there is room, the pause is over, or Abort. After Abort it returns false.
func (s *Stream) Write(b []byte) bool {
	for i := range s.links {
		if s.aborted.Load() {
			break
		}
		s.links[i].Load().write(b)
	}
	return !s.aborted.Load()
}

// Table says what the session is replayed from: t, which has just been opened for
// it and into which all of its messages are going to be applied, by Apply. nil says
// that there is no table, or none any more because it lacks something or the bytes
// cannot be followed; what was being replayed is then lost. Until it has been
// called, a session that is to be replayed waits for it for a while.
func (s *Stream) Table(t *table.Table) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.table, s.tabled = t, true
	if t != nil {
		return
	}
	for i := range s.links {
		if l := s.links[i].Load(); l.replay != nil {
			l.replay = nil
			l.failed(errNoTable)
		}
	}
}

// Apply is Table.Apply of the stream's table and must be called in its place, with
// every message of the session in order. It does not wait for a target. each must
// not call the Stream. Without a table it does nothing.
func (s *Stream) Apply(msg []byte, arrival int64, each func(*table.Change)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.table == nil {
		return nil
	}
	s.framed = s.framed[:0]
	for i := range s.links {
		if l := s.links[i].Load(); l.replay != nil {
			s.framed = append(s.framed, l)
		}
	}
	if len(s.framed) == 0 {
		return s.table.Apply(msg, arrival, each)
	}
	s.each = each
	err := s.table.Apply(msg, arrival, s.tell)
	for _, l := range s.framed {
		s.out = l.replay.Message(s.out[:0], msg, err)
		l.pass(s.out)
	}
	return err
}

// change is what Apply has the table call.
func (s *Stream) change(c *table.Change) {
	if s.each != nil {
		s.each(c)
	}
	for _, l := range s.framed {
		l.replay.Change(c)
	}
}

// Join lets targets that have been replayed get bytes as they come, from the next
// Write on. partial is what has been written and not been applied: the beginning of
// a message, as a rule. It costs next to nothing when there is none to join.
func (s *Stream) Join(partial []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.links {
		l := s.links[i].Load()
		if l.replay == nil || !l.replay.Done() {
			continue
		}
		l.replay = nil
		l.pass(partial)
		l.mu.Lock()
		l.framed = false
		l.mu.Unlock()
	}
}

// An outcome is how a session that was lost starts over.
type outcome byte

const (
	toReset outcome = iota
	replayed
	notYet
	over
)

// again begins to replay the session for a target that has lost it, if it can.
func (s *Stream) again(lost *link) outcome {
	r := s.relay
	if !r.o.Replay {
		return toReset
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed.Load():
		return over
	case s.table == nil && !s.tabled && time.Since(s.opened) < tableWithin:
		return notYet
	case s.table == nil:
		return toReset
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return over
	}
	for i := range s.links {
		if s.links[i].Load() != lost {
			continue
		}
		l := lost.target.open(s, lost.header, lost)
		s.links[i].Store(l)
		lost.replay, lost.buf = nil, nil
		lost.replaced.Store(true)
		lost.release()
		r.links.Go(l.run)
	}
	return replayed
}

// Abort ends a Write that waits, at once, and makes later ones do nothing. Close
// must still be called.
func (s *Stream) Abort() {
	s.aborted.Store(true)
	s.relay.bump()
}

// Close ends the session. It does not wait: what is buffered is delivered, then
// the connections are closed. A replay ends where it is, and no step of one looks
// at the table any more. Further calls do nothing.
func (s *Stream) Close() {
	s.mu.Lock()
	was := s.closed.Swap(true)
	s.mu.Unlock()
	if was {
		return
	}
	s.Abort()
	for i := range s.links {
		if l := s.links[i].Load(); l != nil {
			l.end()
		}
	}
}

// Drained says whether everything written so far has reached the host of the
// first target: the connection is up, nothing is buffered or to be replayed, and
// nothing is left in the kernel's send queue. Without targets it is true. It costs
// about a system call.
func (s *Stream) Drained() bool { return len(s.links) == 0 || s.links[0].Load().drained() }

package relay

import (
	"net/netip"
	"sync/atomic"
)

// A Stream is one session of a router, on its way to all targets. Write must not
// be called concurrently; all other methods may be called at any time.
type Stream struct {
	relay   *Relay
	id      uint64
	router  netip.AddrPort
	reset   func()
	links   []*link // one for each target
	aborted atomic.Bool
	closed  atomic.Bool
}

// Write copies b for each target that has the session from its beginning. It
// waits only while the relay is paused (or was a moment ago) and a buffer is full:
// until there is room, the pause is over, or Abort. After Abort it returns false.
func (s *Stream) Write(b []byte) bool {
	for _, l := range s.links {
		if s.aborted.Load() {
			break
		}
		l.write(b)
	}
	return !s.aborted.Load()
}

// Abort ends a Write that waits, at once, and makes later ones do nothing. Close
// must still be called.
func (s *Stream) Abort() {
	s.aborted.Store(true)
	s.relay.bump()
}

// Close ends the session. It does not wait: what is buffered is delivered, then
// the connections are closed. Further calls do nothing.
func (s *Stream) Close() {
	if s.closed.Swap(true) {
		return
	}
	s.Abort()
	for _, l := range s.links {
		l.end()
	}
}

// Drained says whether everything written so far has reached the host of the
// first target: the connection is up, nothing is buffered, and nothing is left in
// the kernel's send queue. Without targets it is true. It costs about a system
// call.
func (s *Stream) Drained() bool { return len(s.links) == 0 || s.links[0].drained() }

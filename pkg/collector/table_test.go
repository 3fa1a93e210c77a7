package collector

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
)

func tables(t TableOptions) func(*Options) {
	return func(o *Options) { o.Table = &t }
}

// A spoken is what a router says about one peer.
type spoken struct{}

func (spoken) peer() []byte {
	addr := netip.MustParseAddr("10.0.0.1")
	return bmp.AppendPeerHeader(nil, 0, 0, 0, addr, 65001, addr, time.Unix(1e9, 0))
}

func (f spoken) up(port uint16) []byte {
	local := netip.MustParseAddr("10.0.0.254")
	return bmp.AppendPeerUp(nil, f.peer(), local, 179, port,
		bgp.AppendOpen(nil, 65000, 90, local, bgp.AppendCapAS4(nil, 65000)),
		bgp.AppendOpen(nil, 65001, 90, netip.MustParseAddr("10.0.0.1"), bgp.AppendCapAS4(nil, 65001)), nil)
}

func (f spoken) route(prefix string) []byte {
	attrs := bgp.AppendNextHop(bgp.AppendASPath(bgp.AppendOrigin(nil, 0), 65001), netip.MustParseAddr("192.0.2.1"))
	return bmp.AppendRouteMonitoring(nil, f.peer(), bgp.AppendUpdate(nil, nil, attrs, bgp.AppendPrefix(nil, netip.MustParsePrefix(prefix))))
}

func (f spoken) end() []byte {
	return bmp.AppendRouteMonitoring(nil, f.peer(), bgp.AppendEndOfRIB(nil, bgp.AFIIPv4, bgp.SAFIUnicast))
}

// heard is a router that c sends for.
func heard(c *Collector) *router {
	r := c.router(someRouter.String(), someRouter, false)
	c.fwd.lease.Store(1 << 62)
	r.mu.Lock()
	r.stream.SetWanted(true, 1, false)
	r.mu.Unlock()
	return r
}

// Those who build a table forget what they had at each Peer Up that they are told of.
// So what follows it is told again, whatever Kafka has, in this session and those
// after it.
func TestRedumpAfterPeerUp(t *testing.T) {
	var f spoken
	c := still(t, tables(TableOptions{Diff: true}))
	r := heard(c)
	r.mu.Lock()
	defer r.mu.Unlock()
	say := func(s *session, what string, msg []byte, told bool) {
		t.Helper()
		body, news := c.learn(r, s, msg, c.clock.now())
		if is := news && len(body) == len(msg); is != told {
			t.Errorf("session %d: %s told: %t", s.id, what, is)
		}
	}
	open := func(id uint32) *session {
		s := &session{id: id, accepted: c.clock.now()}
		c.openTable(r, s)
		return s
	}
	a, b := f.route("10.1.0.0/16"), f.route("10.2.0.0/16")
	s := open(1)
	say(s, "Peer Up", f.up(1000), true)
	say(s, "a", a, true)
	say(s, "b", b, true)
	say(s, "End-of-RIB", f.end(), true)
	c.closeTable(r, true)

	s = open(2)
	say(s, "Peer Up", f.up(1000), false)
	say(s, "a", a, false)
	c.closeTable(r, true)

	s = open(3) // of another BGP session, and cut short
	say(s, "Peer Up", f.up(1001), true)
	say(s, "a", a, true)
	c.closeTable(r, true)

	s = open(4)
	say(s, "Peer Up", f.up(1001), false)
	say(s, "a", a, false)
	say(s, "b", b, true)
	c.closeTable(r, true)

	s = open(5)
	c.fwd.lease.Store(0) // it is not certain who sends
	say(s, "Peer Up", f.up(1001), true)
	c.fwd.lease.Store(1 << 62)
	say(s, "a", a, true)
	c.closeTable(r, true)

	s = open(6)
	say(s, "Peer Up", f.up(1001), false)
	say(s, "a", a, false)
	say(s, "b", b, true)
}

// A table that is given up within a dump of which something was left out ends the
// session: of the next one nothing is.
func TestGivenUpWithinRedump(t *testing.T) {
	var f spoken
	c := still(t, tables(TableOptions{Diff: true}))
	r := heard(c)
	one, two := net.Pipe()
	defer two.Close()
	say := func(s *session, msgs ...[]byte) error {
		s.buf = slices.Concat(msgs...)
		_, err := c.take(r, s)
		return err
	}
	open := func(id uint32) *session {
		r.mu.Lock()
		defer r.mu.Unlock()
		s := &session{id: id, accepted: c.clock.now(), conn: one}
		c.openTable(r, s)
		return s
	}
	a, b := f.route("10.1.0.0/16"), f.route("10.2.0.0/16")
	s := open(1)
	if err := say(s, f.up(1000), a, f.end()); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	c.closeTable(r, true)
	r.mu.Unlock()
	s = open(2)
	if err := say(s, f.up(1000), a); err != nil {
		t.Fatal(err)
	}
	c.store.SetLimit(1)
	r.mu.Lock()
	_, end := r.stream.Positions()
	r.mu.Unlock()
	many := make([][]byte, 0, 100)
	for i := range 100 {
		many = append(many, f.route(fmt.Sprintf("10.3.%d.0/24", i)))
	}
	if err := say(s, append(append(many, b), f.end())...); !errors.Is(err, errAborted) {
		t.Errorf("the session goes on: %v", err)
	}
	if _, now := r.stream.Positions(); now-end > 100 {
		t.Errorf("%d entries: the End-of-RIB is among them", now-end)
	}
	s = open(3)
	if err := say(s, f.up(1000), a, b, f.end()); err != nil {
		t.Errorf("without a table from the beginning: %v", err)
	}
}

// Who takes over does not tell at once of the routes of a router that it has lost
// long ago: the sender before may have heard it, and may go on.
func TestGoneAfterTakeover(t *testing.T) {
	var f spoken
	c := still(t, tables(TableOptions{RIB: true}))
	r := heard(c)
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &session{id: 1, accepted: c.clock.now()}
	c.openTable(r, s)
	c.learn(r, s, f.up(1000), c.clock.now())
	c.learn(r, s, f.route("10.1.0.0/16"), c.clock.now())
	const wait = 1000
	r.facts.closedAt = c.clock.now()
	r.turned = r.facts.closedAt + 10*wait
	c.expire(r, r.turned+wait-1, wait)
	if r.routes.Routes() != 1 {
		t.Error("told at once")
	}
	c.expire(r, r.turned+wait, wait)
	if n, _, _ := r.stream.Held(); r.routes.Routes() != 0 || n != 3 {
		t.Errorf("%d routes are left, %d entries", r.routes.Routes(), n)
	}
}

// When there is hardly room left, the router with the largest table loses it, not
// the one that happens to need some.
func TestLargestTableMakesRoom(t *testing.T) {
	for _, open := range []bool{false, true} {
		t.Run(fmt.Sprintf("with a session %t", open), func(t *testing.T) {
			var f spoken
			c := still(t, tables(TableOptions{Memory: 1 << 40}))
			var rs []*router
			for i, n := range []int{10, 3000, 20} {
				r := c.router(fmt.Sprintf("r%d", i), someRouter, false)
				s := &session{id: uint32(i), accepted: c.clock.now()}
				r.mu.Lock()
				c.openTable(r, s)
				c.learn(r, s, f.up(1000), 0)
				for j := range n {
					c.learn(r, s, f.route(fmt.Sprintf("10.%d.%d.0/24", j>>8, j&0xff)), 0)
				}
				if open {
					r.session = s
				}
				r.mu.Unlock()
				rs = append(rs, r)
			}
			c.makeRoom()
			kept := func() (list []bool) {
				for _, r := range rs {
					r.mu.Lock()
					if open {
						c.learn(r, r.session, f.route("10.255.0.0/24"), 0)
					}
					list = append(list, r.routes.Table != nil)
					r.mu.Unlock()
				}
				return list
			}
			if got := kept(); !slices.Equal(got, []bool{true, true, true}) {
				t.Errorf("with room for all: %v", got)
			}
			c.o.Table.Memory = c.store.InUse()
			c.makeRoom()
			c.makeRoom() // room is being made: nobody else has to go
			if got := kept(); !slices.Equal(got, []bool{true, false, true}) {
				t.Errorf("without: %v", got)
			}
			c.releaseLeft()
			if c.store.InUse() > c.o.Table.Memory/2 {
				t.Errorf("%d of %d bytes are in use", c.store.InUse(), c.o.Table.Memory)
			}
			for _, r := range rs {
				r.mu.Lock()
				r.session = nil
				r.mu.Unlock()
			}
		})
	}
}

// TestLearnAllocates: a message of which the table knows the routes costs no memory.
func TestLearnAllocates(t *testing.T) {
	var f spoken
	c := still(t, tables(TableOptions{Diff: true}))
	r := heard(c)
	s := &session{id: 1, accepted: c.clock.now()}
	r.mu.Lock()
	defer r.mu.Unlock()
	c.openTable(r, s)
	now := c.clock.now()
	c.learn(r, s, f.up(1000), now)
	msg := f.route("198.51.100.0/24")
	c.learn(r, s, msg, now)
	if n := testing.AllocsPerRun(1000, func() { c.learn(r, s, msg, now) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

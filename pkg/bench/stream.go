package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/replay"
)

// A load is what the routers of a throughput run send in one session each: a
// tenth to warm up, and then the rest, which is measured.
type load struct {
	warm, rest flow
}

// A flow is a part of a load.
type flow struct {
	streams  [][]byte // by router
	messages int
	bytes    int
	// records is what both daemons make of it: one for each route, for the
	// Initiation and for each Peer Up, and one for the opening of the session.
	records uint64
}

// newLoad divides n measured Route Monitoring messages among routers.
func newLoad(routers, n int) (*load, error) {
	l := &load{}
	for i := range routers {
		each := n / routers
		b := replay.Big(each+each/10, uint64(42+i), false)
		rest := len(b)
		l.warm.records++
		f := &l.warm
		for at, count := 0, 0; at < len(b); count++ {
			if count == 5+each/10 { // behind the Initiation and the Peer Ups
				rest, f = at, &l.rest
			}
			size := int(binary.BigEndian.Uint32(b[at+1:]))
			routes, err := countRoutes(b[at : at+size])
			if err != nil {
				return nil, fmt.Errorf("count the routes of message %d: %w", count, err)
			}
			f.records += routes
			f.messages++
			f.bytes += size
			at += size
		}
		l.warm.streams = append(l.warm.streams, b[:rest])
		l.rest.streams = append(l.rest.streams, b[rest:])
	}
	return l, nil
}

// countRoutes counts the records that a message of the generator makes.
func countRoutes(msg []byte) (n uint64, err error) {
	if bmp.Type(msg) != bmp.TypeRouteMonitoring {
		return 1, nil
	}
	rm, err := bmp.ParseRouteMonitoring(msg)
	if err != nil {
		return 0, err
	}
	u, err := bgp.ParseUpdate(rm.Update)
	if err != nil {
		return 0, err
	}
	count := func(w bgp.Prefixes) {
		for w.Next() {
			n++
		}
		err = w.Err()
	}
	count(bgp.Routes(u.NLRI, 0, bgp.Family{AFI: 1, SAFI: 1}, false, bgp.LabelStack))
	attrs := u.Attributes()
	for err == nil && attrs.Next() {
		if a := attrs.Attr(); a.Type == bgp.AttrMPReach {
			r, parseErr := bgp.ParseMPReach(a)
			if parseErr != nil {
				return n, parseErr
			}
			count(bgp.Routes(r.NLRI, 0, r.Family, false, bgp.LabelStack))
		}
	}
	return n, err
}

// routerAddr is the source address of router i: each has its own, as in a
// network.
func routerAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 1, byte(1 + i)}) }

// A feeder is the routers' connections to one or more daemons.
type feeder struct {
	conns [][]net.Conn // by router, then by daemon
}

// connect opens the sessions one after the other. Each router begins with its part
// of p at once, as routers do; an idle pmbmpd takes half a second for each session
// that has nothing to say. It returns when all is written.
func connect(ctx context.Context, p *flow, daemons ...*daemon) (*feeder, error) {
	f := &feeder{}
	w := newWriters(len(p.streams) * len(daemons))
	for i := range p.streams {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(routerAddr(i), 0))}
		var conns []net.Conn
		for _, to := range daemons {
			c, err := d.DialContext(ctx, "tcp", to.addr)
			if err != nil {
				f.close()
				return nil, errors.Join(fmt.Errorf("connect router %d to %s: %w", i, to.kind, err), w.wait())
			}
			conns = append(conns, c)
			w.write(c, p.streams[i])
		}
		f.conns = append(f.conns, conns)
	}
	if err := w.wait(); err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

// send writes a flow as fast as it is read, and returns when the kernel has it
// all.
func (f *feeder) send(p *flow) error {
	w := newWriters(len(f.conns) * len(f.conns[0]))
	for i, conns := range f.conns {
		for _, c := range conns {
			w.write(c, p.streams[i])
		}
	}
	return w.wait()
}

// writers write to several connections at the same time.
type writers struct {
	all  sync.WaitGroup
	errs chan error
}

func newWriters(most int) *writers { return &writers{errs: make(chan error, most)} }

func (w *writers) write(c net.Conn, b []byte) {
	w.all.Go(func() {
		if _, err := c.Write(b); err != nil {
			w.errs <- fmt.Errorf("send as router %s: %w", c.LocalAddr(), err)
		}
	})
}

func (w *writers) wait() error {
	w.all.Wait()
	close(w.errs)
	return <-w.errs
}

func (f *feeder) close() {
	for _, conns := range f.conns {
		for _, c := range conns {
			c.Close()
		}
	}
}

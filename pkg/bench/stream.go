package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/replay"
)

// A load is what the routers of a throughput run send.
type load struct {
	streams  [][]byte
	messages int
	bytes    int
	// records is what both daemons make of it: one for each route, for the
	// Initiation and for each Peer Up, and one for the opening of the session.
	records uint64
}

// newLoad divides a stream of n Route Monitoring messages among routers.
func newLoad(routers, n int) (*load, error) {
	l := &load{}
	for i := range routers {
		b := replay.Big(n/routers, uint64(42+i), false)
		l.streams = append(l.streams, b)
		l.bytes += len(b)
		l.records++
		for at := 0; at < len(b); {
			size := int(binary.BigEndian.Uint32(b[at+1:]))
			routes, err := countRoutes(b[at : at+size])
			if err != nil {
				return nil, fmt.Errorf("count the routes of message %d: %w", l.messages, err)
			}
			l.records += routes
			l.messages++
			at += size
		}
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

// dial opens all sessions, but sends nothing: routers of this kind of test are
// strangers to a daemon until the first message.
func dial(ctx context.Context, routers int, daemons ...*daemon) (*feeder, error) {
	f := &feeder{}
	for i := range routers {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(routerAddr(i), 0))}
		var conns []net.Conn
		for _, to := range daemons {
			c, err := d.DialContext(ctx, "tcp", to.addr)
			if err != nil {
				f.close()
				return nil, fmt.Errorf("connect router %d to %s: %w", i, to.kind, err)
			}
			conns = append(conns, c)
		}
		f.conns = append(f.conns, conns)
	}
	return f, nil
}

// send writes the whole load as fast as it is read, and returns when the kernel
// has it all.
func (f *feeder) send(l *load) error {
	var all sync.WaitGroup
	errs := make(chan error, len(f.conns)*len(f.conns[0]))
	for i, conns := range f.conns {
		for _, c := range conns {
			all.Go(func() {
				if _, err := c.Write(l.streams[i]); err != nil {
					errs <- fmt.Errorf("router %d: %w", i, err)
				}
			})
		}
	}
	all.Wait()
	close(errs)
	return <-errs
}

func (f *feeder) close() {
	for _, conns := range f.conns {
		for _, c := range conns {
			c.Close()
		}
	}
}

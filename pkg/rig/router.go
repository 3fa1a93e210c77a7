package rig

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// A Neighbor is a BGP peer that a router waits for; a Speaker plays it.
type Neighbor struct {
	Addr netip.Addr
	AS   uint32
}

// RouterOptions say how a real router is set up. Everything has a default but
// the neighbours and the collectors.
type RouterOptions struct {
	Dir        string       // where it keeps configuration and log; "" is a temporary folder
	AS         uint32       // 65000 by default
	ID         netip.Addr   // BGP identifier, 192.0.2.1 by default
	Addrs      []netip.Addr // where it speaks BGP, a new address in 127.1.0.0/16 by default
	Neighbors  []Neighbor   // external: AS differs from the router's
	Collectors []string     // host:port of each BMP collector, which need not listen yet

	// Source is the address that collectors see the BMP sessions come from, and
	// so the router's address; the first of Addrs by default.
	Source netip.Addr
	// StatsEvery is the interval of Statistics Reports, 15 s by default, to the
	// second. GoBGP takes no less than 15 s.
	StatsEvery time.Duration
}

// A Router is a real BGP router without a kernel to route for: an ordinary
// process on loopback addresses, no root and no network namespace needed. Each
// of its BMP sessions runs through a Proxy.
//
// Restart keeps its addresses; the neighbours have to come again.
type Router interface {
	Server
	// BGP is where it takes BGP sessions: the first of its addresses, host:port.
	BGP() string
	// Address is the source address of its BMP sessions.
	Address() netip.Addr
	// Link is the way of the BMP session to collector i, to cut or slow it.
	Link(i int) *Proxy
	// Table returns the routes that it has from its neighbours, all of them and
	// not the best only, as its BMP tells them.
	Table(ctx context.Context) (Table, error)
}

// A Route is what identifies one route of a router and what is compared.
type Route struct {
	Peer    netip.Addr // the neighbour that it came from
	Prefix  netip.Prefix
	NextHop netip.Addr
	ASPath  string // AS numbers with a space between, as the router's BMP writes them
}

// A Table is a set of routes.
type Table map[Route]bool

// Diff returns the routes that only t has and those that only other has.
func (t Table) Diff(other Table) (only, missing []Route) {
	for r := range t {
		if !other[r] {
			only = append(only, r)
		}
	}
	for r := range other {
		if !t[r] {
			missing = append(missing, r)
		}
	}
	return only, missing
}

// routers counts, so that each gets an address of its own.
var routers atomic.Uint32

// router is what FRR and GoBGP share.
type router struct {
	o     RouterOptions
	dir   folder
	port  int
	links []*Proxy
}

func newRouter(name string, o RouterOptions) (*router, error) {
	if o.AS == 0 {
		o.AS = 65000
	}
	if !o.ID.IsValid() {
		o.ID = netip.AddrFrom4([4]byte{192, 0, 2, 1})
	}
	if len(o.Addrs) == 0 {
		n := routers.Add(1)
		o.Addrs = []netip.Addr{netip.AddrFrom4([4]byte{127, 1, byte(n >> 8), byte(n)})}
	}
	if !o.Source.IsValid() {
		o.Source = o.Addrs[0]
	}
	if o.StatsEvery < time.Second {
		o.StatsEvery = 15 * time.Second
	}
	r := &router{o: o}
	var err error
	if r.port, err = FreePort(o.Addrs[0].String()); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	if r.dir, err = makeFolder(o.Dir, name); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	for _, c := range o.Collectors {
		// It waits before a refusal: GoBGP comes again at once after a connection
		// that was taken and closed.
		p, err := NewProxyFrom(c, o.Source)
		if err != nil {
			r.release()
			return nil, fmt.Errorf("start %s: %w", name, err)
		}
		r.links = append(r.links, p)
	}
	return r, nil
}

func (r *router) release() error {
	for _, p := range r.links {
		p.Close()
	}
	return r.dir.remove()
}

// BGP is the first address, host:port.
func (r *router) BGP() string {
	return net.JoinHostPort(r.o.Addrs[0].String(), strconv.Itoa(r.port))
}

// Address is the source of the BMP sessions.
func (r *router) Address() netip.Addr { return r.o.Source }

// Link is the way to collector i.
func (r *router) Link(i int) *Proxy { return r.links[i] }

// asPath joins AS numbers.
func asPath(as ...uint32) string {
	s := make([]string, len(as))
	for i, n := range as {
		s[i] = strconv.FormatUint(uint64(n), 10)
	}
	return strings.Join(s, " ")
}

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/bmpha/bmpha/pkg/rig"
	"github.com/bmpha/bmpha/pkg/verify"
)

// A realRouter is FRR or GoBGP with neighbours that talk all the time.
type realRouter struct {
	rig.Router
	neighbors []*neighbor
	stop      context.CancelFunc
	talking   sync.WaitGroup
}

// A neighbor announces and withdraws a few routes again and again.
type neighbor struct {
	o        rig.SpeakerOptions
	rng      *rand.Rand
	prefixes [2][]netip.Prefix // IPv4, IPv6
	again    chan struct{}     // asks for a new session

	mu     sync.Mutex
	silent bool
	err    error // of the last session that could not be made
}

const (
	neighborsOfEach = 2
	prefixesOfEach  = 300 // of each neighbour and family
	perTalk         = 3   // prefixes in an UPDATE
	talkEvery       = 40 * time.Millisecond
)

func startReal(ctx context.Context, seed uint64, number int, start func(context.Context, rig.RouterOptions) (rig.Router, error), collectors []string) (*realRouter, error) {
	o := rig.RouterOptions{Collectors: collectors}
	for i := range neighborsOfEach {
		o.Neighbors = append(o.Neighbors, rig.Neighbor{Addr: netip.AddrFrom4([4]byte{127, 2, byte(10 + number), byte(i + 1)}), AS: uint32(65001 + i)})
	}
	router, err := start(ctx, o)
	if err != nil {
		return nil, err
	}
	r := &realRouter{Router: router}
	ctx, r.stop = context.WithCancel(context.WithoutCancel(ctx))
	for i, n := range o.Neighbors {
		one := &neighbor{
			o: rig.SpeakerOptions{Router: router.BGP(), Local: n.Addr, AS: n.AS, ID: netip.AddrFrom4([4]byte{192, 0, 2, byte(11 + i)})},
			// Neighbours share half of their prefixes.
			rng: rand.New(rand.NewPCG(seed, uint64(i))), again: make(chan struct{}, 1),
		}
		for j := range prefixesOfEach {
			k := j + i*prefixesOfEach/2
			one.prefixes[0] = append(one.prefixes[0], netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(k >> 8), byte(k)}), 32))
			one.prefixes[1] = append(one.prefixes[1], netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0xff, 14: byte(k >> 8), 15: byte(k)}), 128))
		}
		r.neighbors = append(r.neighbors, one)
		r.talking.Go(func() { one.run(ctx) })
	}
	return r, nil
}

// run keeps a session and talks, until ctx ends.
func (n *neighbor) run(ctx context.Context) {
	for ctx.Err() == nil {
		wait, cancel := context.WithTimeout(ctx, time.Minute)
		s, err := rig.Speak(wait, n.o)
		cancel()
		n.mu.Lock()
		n.err = err
		n.mu.Unlock()
		if err != nil {
			continue
		}
		n.talk(ctx, s)
	}
}

func (n *neighbor) talk(ctx context.Context, s *rig.Speaker) {
	defer s.Drop() // without a word, as a neighbour that dies
	for family := range n.prefixes {
		if n.announce(s, family, n.prefixes[family]...) != nil {
			return
		}
	}
	tick := time.NewTicker(talkEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.Done():
			return
		case <-n.again:
			return
		case <-tick.C:
		}
		n.mu.Lock()
		silent := n.silent
		n.mu.Unlock()
		if silent {
			continue
		}
		family := n.rng.IntN(2)
		from := n.rng.IntN(prefixesOfEach - perTalk)
		some := n.prefixes[family][from : from+perTalk]
		var err error
		if n.rng.IntN(4) == 0 {
			err = s.Withdraw(some...)
		} else {
			err = n.announce(s, family, some...)
		}
		if err != nil {
			return
		}
	}
}

func (n *neighbor) announce(s *rig.Speaker, family int, p ...netip.Prefix) error {
	hop := n.o.ID
	if family == 1 {
		hop = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: n.o.ID.As4()[3]})
	}
	return s.Announce(rig.Attributes{NextHop: hop, ASPath: []uint32{n.o.AS, 64500 + n.rng.Uint32N(30)}, MED: 1 + n.rng.Uint32N(20)}, p...)
}

// flap takes a neighbour's session down and up again.
func (r *realRouter) flap() {
	select {
	case r.neighbors[0].again <- struct{}{}:
	default: // already asked
	}
}

// hush makes the neighbours say nothing more, with their sessions up.
func (r *realRouter) hush() {
	for _, n := range r.neighbors {
		n.mu.Lock()
		n.silent = true
		n.mu.Unlock()
	}
}

func (r *realRouter) close() error {
	r.stop()
	r.talking.Wait()
	return r.Router.Close()
}

// print returns what the router's own command prints of its table.
func (r *realRouter) print(ctx context.Context) (text []byte, err error) {
	for _, family := range []string{"ipv4", "ipv6"} {
		var b []byte
		switch router := r.Router.(type) {
		case *rig.FRR:
			b, err = router.VTY(ctx, "show bgp "+family+" unicast json")
		case *rig.GoBGP:
			b, err = router.Show(ctx, "global", "rib", "-a", family, "-j")
		default:
			err = errors.New("a router of an unknown kind")
		}
		if err != nil {
			return nil, err
		}
		text = append(append(text, b...), '\n')
	}
	return text, nil
}

// flag is how bmpha verify is told of a text of print.
func (r *realRouter) flag() string {
	if _, ok := r.Router.(*rig.FRR); ok {
		return "--frr"
	}
	return "--gobgp"
}

func (r *realRouter) parse(text []byte) (tables []verify.Table, err error) {
	if r.flag() == "--frr" {
		tables, err = verify.ParseFRR(newText(text))
	} else {
		tables, err = verify.ParseGoBGP(newText(text))
	}
	if err != nil {
		return nil, fmt.Errorf("table of %s: %w", r.Address(), err)
	}
	if !slices.ContainsFunc(tables, func(t verify.Table) bool { return len(t.Paths) > 0 }) {
		return nil, fmt.Errorf("table of %s: no routes", r.Address())
	}
	return tables, nil
}

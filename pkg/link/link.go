// Package link lets the collectors of a cluster hear each other directly, beside
// what they tell each other through Redis.
//
// Between each two collectors there is one TCP connection, which the one with the
// smaller name opens. Over it each says to the other whatever its caller gives to
// [Link.Say]; what it means is the caller's.
//
// What it promises:
//
//   - Only who knows the secret is heard. Both ends prove it by challenge and
//     response over both ends' words of greeting (nonces, names, cluster) and their
//     roles; every frame after that has a number and a MAC under a key of its
//     direction and connection, so that nothing can be injected, replayed, left out or
//     changed unnoticed. Content is authenticated, not secret: who listens on the
//     network can read it, and can try secrets at home, so that the secret should be
//     a long random one.
//   - Greetings and frames are bounded, a greeting has little time, and few strangers
//     are listened to at once; the newest push the oldest out, so that holding
//     connections open keeps nobody out.
//   - The death of a process is told within milliseconds: its kernel ends the
//     connection, and then refuses the one that is tried at once. Nothing is said of a
//     peer whose kernel still accepts (the process stands still), that does not answer
//     (its host or the network is gone), with which there was no connection, or that
//     said goodbye. A connection that this end gave up says nothing either. And a
//     refusal counts only at an address where that very process has answered: who was
//     connected to tries the address that the peer advertises, and warns if nobody is
//     there.
//   - Whoever does not read gets the latest words only: what is waiting does not
//     grow.
//
// Refusals are the network's word, not the peer's: a firewall that begins to answer
// with resets or rejections, in the peer's name, to the connection and to the next one,
// is taken for the peer's death. The caller has to believe the peer's later words more.
package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A Peer is another collector.
type Peer struct {
	Name     string
	Instance uint64 // of its process
	Address  string // host:port where it listens; "": it has no link
}

// Options say who this collector is and who is to be told what.
type Options struct {
	Name     string // unlike all others in the cluster
	Instance uint64 // of this process
	Cluster  string // the same on all, and nobody else is talked to
	Listen   string // IP:port or :port; port 0 is any
	// Advertise is the host:port told to the others; empty: where we listen, which has
	// an IP then.
	Advertise string
	Secret    []byte // the same on all; not kept back from those who read memory
	// Heartbeat is how often the caller speaks; the link measures round trips and
	// tries to connect about as often. Expiry is the caller's time after which who is
	// silent is gone; the link gives a connection up after twice that.
	Heartbeat, Expiry time.Duration

	// Heard is called for whatever a peer says, in order for each peer, by one
	// goroutine for each connection. body is only valid during the call, which holds
	// up nobody but this peer.
	Heard func(peer Peer, body []byte)
	// Dead is called when a peer's process is known to have ended, once for each
	// instance, by a goroutine of the peer's own.
	Dead func(name string, instance uint64)
	Log  *slog.Logger // nil: nothing is logged
}

const (
	// patience is the time that connecting may take, and then greeting. Who does not
	// manage is tried again; nothing depends on how long it is.
	patience     = time.Second
	minBackoff   = 2 * time.Millisecond // between attempts to connect
	maxStrangers = 16                   // connections that have not proved themselves
	farewell     = 250 * time.Millisecond
)

// A Link is one collector's end of all connections. Its methods are safe for
// concurrent use. Run it once, or Close it.
type Link struct {
	o         Options
	log       *slog.Logger
	listener  net.Listener
	advertise string
	start     time.Time
	rejected  atomic.Uint64
	warned    atomic.Int64 // when a stranger was last logged, since start

	wg sync.WaitGroup

	mu        sync.Mutex
	ctx       context.Context // of Run; nil before
	leaving   bool
	peers     map[string]*peer
	conns     map[*conn]struct{}
	strangers []net.Conn // the oldest first
	said      []byte     // last, or nil
	saidAt    time.Time
}

// New listens, so that what Advertise returns is true before anybody is told; nobody
// is answered before Run.
func New(o Options) (*Link, error) {
	l := &Link{
		o: o, log: o.Log, start: time.Now(),
		peers: map[string]*peer{}, conns: map[*conn]struct{}{},
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	switch {
	case len(o.Secret) == 0:
		return nil, errors.New("link: no secret")
	case o.Name == "" || len(o.Name) > maxText || len(o.Cluster) > maxText || len(o.Advertise) > maxText:
		return nil, fmt.Errorf("link: expected names of 1 to %d bytes", maxText)
	case o.Heartbeat <= 0 || o.Expiry <= 0:
		return nil, errors.New("link: expected times for heartbeat and expiry")
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // a refusal or a reset is what it seems
	listener, err := lc.Listen(context.Background(), "tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("link: listen on %s: %w", o.Listen, err)
	}
	l.listener, l.advertise = listener, o.Advertise
	if l.advertise == "" {
		l.advertise = listener.Addr().String()
		if at, err := netip.ParseAddrPort(l.advertise); err != nil || at.Addr().IsUnspecified() {
			listener.Close()
			return nil, fmt.Errorf("link: listen on %s: does not tell the others where to connect; expected an address to advertise", o.Listen)
		}
	}
	return l, nil
}

// Advertise returns the host:port where the others are to connect.
func (l *Link) Advertise() string { return l.advertise }

// Addr returns where it listens.
func (l *Link) Addr() net.Addr { return l.listener.Addr() }

// Rejected returns how many connections ended before they had proved to come from a
// member of the cluster.
func (l *Link) Rejected() uint64 { return l.rejected.Load() }

// Close stops listening if Run is not called after all.
func (l *Link) Close() error { return l.listener.Close() }

// Run connects and listens to the others until ctx ends, and says goodbye then, so
// that no one takes this process for dead. It returns when nothing of it runs any
// more.
func (l *Link) Run(ctx context.Context) {
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	l.mu.Lock()
	l.ctx = inner
	for _, p := range l.peers {
		l.wg.Go(func() { l.attend(inner, p) })
	}
	l.mu.Unlock()
	l.wg.Go(func() { l.accept(inner) })
	<-ctx.Done()
	l.leave()
	cancel()
	l.listener.Close()
	l.mu.Lock()
	for _, c := range l.strangers {
		c.Close()
	}
	l.mu.Unlock()
	l.wg.Wait()
}

// leave says goodbye to everybody.
func (l *Link) leave() {
	l.mu.Lock()
	l.leaving = true // no new connections
	conns := slices.Collect(maps.Keys(l.conns))
	l.mu.Unlock()
	t := time.NewTimer(farewell)
	defer t.Stop()
	for _, c := range conns {
		c.sayBye()
	}
	for _, c := range conns {
		select {
		case <-c.ended:
		case <-t.C:
			t.Reset(0) // for the rest of them
		}
		c.end(errLeaving)
	}
}

// Peers says who is there, by the last look at Redis, or before. Peers that are not
// in the list are kept for as long as there is a connection.
func (l *Link) Peers(peers []Peer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	listed := make(map[string]bool, len(peers))
	for _, want := range peers {
		if want.Name == l.o.Name || want.Address == "" || len(want.Name) > maxText || len(want.Address) > maxText {
			continue
		}
		listed[want.Name] = true
		p := l.peer(want.Name)
		if p.want == want {
			continue
		}
		p.want = want
		if p.lost.Name != "" && p.lost.Instance != want.Instance {
			p.lost = Peer{} // its name has gone to another process
		}
		p.urge()
	}
	for name, p := range l.peers {
		if !listed[name] && p.conn == nil {
			p.want, p.lost, p.gone = Peer{}, Peer{}, true
			delete(l.peers, name)
			p.urge()
		}
	}
}

// peer returns the peer of that name, and starts to attend to it. The caller holds
// l.mu.
func (l *Link) peer(name string) *peer {
	p := l.peers[name]
	if p == nil {
		p = &peer{name: name, wake: make(chan struct{}, 1)}
		l.peers[name] = p
		if l.ctx != nil && !l.leaving {
			l.wg.Go(func() { l.attend(l.ctx, p) })
		}
	}
	return p
}

// Say tells body, of at most 4 MiB, to everybody who is connected, and to those who
// connect within a heartbeat. It does not wait; body is copied. What a peer has not
// been sent yet is replaced.
func (l *Link) Say(body []byte) error {
	if len(body) > maxBody {
		return fmt.Errorf("link: say %d bytes: expected at most %d", len(body), maxBody)
	}
	body = append(make([]byte, 0, len(body)), body...)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.said, l.saidAt = body, time.Now()
	for c := range l.conns {
		c.say(body)
	}
	return nil
}

// A PeerStatus is how things stand with a peer.
type PeerStatus struct {
	Peer
	Connected bool
	Since     time.Time     // of the connection, or of its end; zero: there was none
	Heard     time.Time     // last; zero: never
	RoundTrip time.Duration // the last that was measured, 0: none yet
	// Error is why there is no connection, or why the last one ended; while there is
	// one, why the peer's death would be noticed late.
	Error string
}

// Status returns all peers, by name.
func (l *Link) Status() []PeerStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]PeerStatus, 0, len(l.peers))
	for _, p := range l.peers {
		s := PeerStatus{Peer: p.want, Since: p.since, Error: p.err}
		s.Name = p.name
		if p.lost.Name != "" {
			s.Peer = p.lost
		}
		if c := p.conn; c != nil {
			s.Peer, s.Connected = c.peer, true
		}
		if heard := p.heard.Load(); heard != 0 {
			s.Heard = l.start.Add(time.Duration(heard))
		}
		s.RoundTrip = time.Duration(p.trip.Load())
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b PeerStatus) int { return strings.Compare(a.Name, b.Name) })
	return all
}

package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
)

// A peer is what is known of another collector. The lock of its Link is for all but
// what is atomic.
type peer struct {
	name string
	wake chan struct{} // of attend: something has changed

	want  Peer // by the last look at Redis
	gone  bool // nobody attends to it any more
	conn  *conn
	since time.Time // of conn, or of the end of the last one
	err   string

	// lost is the peer whose kernel has ended the connection, until it is known what
	// has become of it.
	lost  Peer
	proof proof

	left uint64 // instance that has said goodbye

	heard atomic.Int64 // when, since Link.start
	trip  atomic.Int64
}

// A proof says where a peer has answered. Only there a refusal says something of it.
type proof struct {
	peer Peer
	at   netip.AddrPort
}

// urge wakes attend.
func (p *peer) urge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

var (
	errLeaving  = errors.New("this collector is leaving")
	errBye      = errors.New("left by its own will")
	errSilent   = errors.New("nothing was heard for twice the expiry")
	errReplaced = errors.New("the peer has connected again")
	errCluster  = errors.New("of another cluster")
	errName     = errors.New("another name")
	errTurn     = errors.New("not its turn to connect")
	errTaken    = errors.New("another process of that name is connected")
	errOther    = errors.New("another process of that name answers")
)

// attend connects to p where that is our part, and finds out what has become of it
// after a connection has ended.
func (l *Link) attend(ctx context.Context, p *peer) {
	var last time.Time // attempt
	backoff := time.Duration(0)
	var asked question
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		l.mu.Lock()
		gone := p.gone || l.leaving // or the end of a new connection would look like a death
		lost, target, c := p.lost, p.want, p.conn
		ours := l.o.Name < p.name
		var at []netip.AddrPort
		if lost.Name != "" && p.proof.peer == lost {
			at = []netip.AddrPort{p.proof.at}
		}
		asks := c != nil && c.peer.Address != "" && p.proof.peer != c.peer
		idle := c != nil || lost.Name == "" && (!ours || target.Address == "" || target.Instance == p.left)
		l.mu.Unlock()
		if gone || ctx.Err() != nil {
			return
		}
		if asks {
			if asked.of != c {
				asked.turn(c)
			}
			if wait := time.Until(asked.next); wait > 0 {
				timer.Reset(wait)
				select {
				case <-ctx.Done():
				case <-timer.C:
				case <-p.wake:
				}
				continue
			}
			l.ask(ctx, p, &asked)
			continue
		}
		if idle {
			select {
			case <-ctx.Done():
			case <-p.wake:
			}
			continue
		}
		// At once after a connection that has lasted, and then less and less often. One
		// that ends as soon as it is made must not keep both ends busy.
		since := time.Since(last)
		if since > 2*patience {
			backoff = 0
		}
		if since < backoff {
			timer.Reset(backoff - since)
			select {
			case <-ctx.Done():
			case <-timer.C:
			case <-p.wake:
			}
			continue
		}
		last = time.Now()
		backoff = max(min(2*backoff, max(l.o.Heartbeat, minBackoff), patience), minBackoff)
		if lost.Name != "" {
			target = lost
		}
		if err := l.connect(ctx, p, target, lost, at, !ours); err != nil && ctx.Err() == nil {
			l.failed(p, err)
		}
	}
}

// A question is whether the peer of a connection that it has made answers where it
// says that it listens.
type question struct {
	of     *conn
	failed int       // times, of this peer
	warned bool      // of it
	next   time.Time // when it is asked again
}

// turn goes on to another connection.
func (q *question) turn(c *conn) {
	if q.of == nil || q.of.peer != c.peer {
		*q = question{}
	}
	q.of, q.next = c, time.Time{}
}

// ask puts it. As long as the answer is missing, the peer's death would not be seen.
func (l *Link) ask(ctx context.Context, p *peer, q *question) {
	const most = time.Minute // between two
	c := q.of
	err := l.connect(ctx, p, c.peer, Peer{}, nil, true)
	if ctx.Err() != nil {
		return
	}
	q.next = time.Now().Add(min(max(l.o.Heartbeat, minBackoff)<<min(q.failed, 16), most))
	text := ""
	if err != nil {
		q.failed++
		text = fmt.Sprintf("connected, but its own address %s does not answer: %v", c.peer.Address, err)
	}
	l.mu.Lock()
	stands := p.conn == c
	if stands && (err == nil || q.failed > 1) { // the first may just have come before the end of c
		p.err = text
	}
	l.mu.Unlock()
	switch {
	case !stands:
	case err == nil && q.warned:
		q.warned = false
		l.log.Info("link: the address of a collector answers now", "peer", p.name, "address", c.peer.Address)
	case q.failed > 1 && !q.warned:
		q.warned = true
		l.log.Warn("link: the address that a collector advertises does not answer; its death would be noticed late", "peer", p.name, "address", c.peer.Address, "error", err)
	}
}

// failed notes why there is no connection.
func (l *Link) failed(p *peer, err error) {
	text := err.Error()
	l.mu.Lock()
	same := p.err == text
	p.err = text
	l.mu.Unlock()
	if !same {
		l.log.Info("link: no connection", "peer", p.name, "error", text)
	}
}

// connect tries to reach target once, at the address where it has answered before, if
// there is one. Of lost, if it is not zero, it tells the death where that is certain.
// With probe there is no connection afterwards, since the peer opens it.
func (l *Link) connect(ctx context.Context, p *peer, target, lost Peer, at []netip.AddrPort, probe bool) error {
	proven := len(at) > 0
	if !proven {
		var err error
		if at, err = resolve(ctx, target.Address); err != nil {
			return err
		}
	}
	nc, err := reach(ctx, at)
	if err != nil {
		switch {
		case lost.Name == "" || !errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, errUnknown):
		case proven:
			l.dead(p, lost, "its host refuses connections")
		default: // it may never have listened there
			err = fmt.Errorf("%w; it has never answered there, so that nothing is known of its end", err)
		}
		return err
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	nc.SetDeadline(time.Now().Add(patience))
	self := l.hello()
	if probe {
		self.flags |= flagProbe
	}
	s, err := dial(nc, self, l.o.Secret, func(h hello) error {
		switch {
		case h.cluster != l.o.Cluster:
			return errCluster
		case h.name != p.name:
			return fmt.Errorf("%w: %q", errName, h.name)
		}
		return nil
	})
	if err != nil {
		nc.Close()
		return fmt.Errorf("greet %s: %w", nc.RemoteAddr(), plain(err))
	}
	if lost.Name != "" && s.peer.instance != lost.Instance {
		l.dead(p, lost, "another process has its address")
	}
	if probe {
		nc.Close()
		if s.peer.instance != target.Instance {
			if lost.Name != "" {
				return nil // which is known now
			}
			return errOther
		}
		l.mu.Lock()
		p.proof = proof{target, remote(nc)}
		if p.lost == lost { // it lives, and will connect
			p.lost = Peer{}
		}
		l.mu.Unlock()
		return nil
	}
	if !stop() {
		return ctx.Err() // closed already
	}
	return l.connected(nc, s)
}

// dead tells that a process has ended.
func (l *Link) dead(p *peer, lost Peer, why string) {
	l.mu.Lock()
	ours := p.lost == lost && !l.leaving
	if ours {
		p.lost = Peer{}
	}
	l.mu.Unlock()
	if !ours {
		return
	}
	l.log.Warn("link: a collector's process has ended", "peer", lost.Name, "instance", fmt.Sprintf("%x", lost.Instance), "reason", why)
	if l.o.Dead != nil {
		l.o.Dead(lost.Name, lost.Instance)
	}
}

// errUnknown is in the error of reach when not all addresses refused.
var errUnknown = errors.New("no answer")

// resolve returns the addresses behind a host:port.
func resolve(ctx context.Context, address string) ([]netip.AddrPort, error) {
	if at, err := netip.ParseAddrPort(address); err == nil {
		return []netip.AddrPort{at}, nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("address %q: expected host:port", address)
	}
	n, err := net.DefaultResolver.LookupPort(ctx, "tcp", port)
	if err != nil {
		return nil, fmt.Errorf("address %q: expected a port", address)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("look %s up: %w", host, err)
	}
	const most = 8
	all := make([]netip.AddrPort, 0, len(ips))
	for _, ip := range ips[:min(len(ips), most)] {
		all = append(all, netip.AddrPortFrom(ip.Unmap(), uint16(n)))
	}
	return all, nil
}

// reach connects to the first address that accepts.
func reach(ctx context.Context, at []netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var d net.Dialer
	d.SetMultipathTCP(false)
	var errs []error
	for _, a := range at {
		nc, err := d.DialContext(ctx, "tcp", a.String())
		if err == nil {
			return nc, nil
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			err = fmt.Errorf("%w (%w)", errUnknown, err)
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, errUnknown
	}
	return nil, errors.Join(errs...)
}

// hello is what we say of ourselves, but for the nonce.
func (l *Link) hello() hello {
	return hello{version: version, instance: l.o.Instance, cluster: l.o.Cluster, name: l.o.Name, address: l.advertise}
}

// accept takes connections.
func (l *Link) accept(ctx context.Context) {
	for {
		nc, err := l.listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
				return
			}
			l.log.Warn("link: accept a connection", "error", err)
			select { // no file descriptors, and the like
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		if l.stranger(nc) {
			l.wg.Go(func() { l.welcome(nc) })
		}
	}
}

// stranger lists a connection that has not proved itself, at the expense of the
// oldest.
func (l *Link) stranger(nc net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leaving {
		nc.Close()
		return false
	}
	if len(l.strangers) == maxStrangers {
		l.strangers[0].Close() // its goroutine finds out
		l.strangers = slices.Delete(l.strangers, 0, 1)
	}
	l.strangers = append(l.strangers, nc)
	return true
}

// known takes it from that list.
func (l *Link) known(nc net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.strangers, nc); i >= 0 {
		l.strangers = slices.Delete(l.strangers, i, i+1)
	}
}

// welcome greets who has connected.
func (l *Link) welcome(nc net.Conn) {
	nc.SetDeadline(time.Now().Add(patience))
	s, err := answer(nc, l.hello(), l.o.Secret, func(h hello) error {
		switch {
		case h.cluster != l.o.Cluster:
			return errCluster
		case h.name == l.o.Name:
			return errName
		case h.flags&flagProbe == 0 && h.name > l.o.Name:
			return errTurn
		}
		return nil
	})
	l.known(nc)
	if err == nil && s.peer.flags&flagProbe == 0 {
		err = l.connected(nc, s)
	} else {
		nc.Close()
	}
	if err != nil && !errors.Is(err, errLeaving) {
		l.rejected.Add(1)
		l.warn(nc, err)
	}
}

// warn logs strangers, but not all of many.
func (l *Link) warn(nc net.Conn, err error) {
	const every = 10 * time.Second
	now, last := time.Since(l.start), l.warned.Load()
	if last != 0 && now-time.Duration(last) < every || !l.warned.CompareAndSwap(last, int64(now)) {
		return
	}
	l.log.Warn("link: a connection was rejected", "address", nc.RemoteAddr().String(), "error", plain(err), "rejected", l.rejected.Load())
}

// plain says in a word what the ends of connections look like.
func plain(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("the peer has closed the connection (%w)", io.EOF)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("no answer in time (%w)", os.ErrDeadlineExceeded)
	}
	return err
}

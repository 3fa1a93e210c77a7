package rig

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// A Direction is one of the two ways through a Proxy, or both.
type Direction uint8

// The directions.
const (
	ToTarget Direction = 1 << iota
	ToClient
	Both = ToTarget | ToClient
)

// A Proxy passes TCP connections on to a target and can be made to misbehave:
// cut, hang, delay, slow down. It stands for the network between two parts. All
// methods are safe for concurrent use and act on present and new connections.
type Proxy struct {
	door    *door
	source  net.Addr      // of connections to the target; nil leaves it to the kernel
	refusal time.Duration // how long a client waits to hear that the target is not there
	closing chan struct{}
	wg      sync.WaitGroup // the accept loop and all pumps

	toTarget, toClient atomic.Int64

	mu     sync.Mutex
	change *sync.Cond
	target string
	hung   Direction
	delay  time.Duration
	rate   int
	links  map[*link]struct{}
	closed bool
}

// A link is one connection through the proxy: the client's end and the
// target's.
type link struct {
	client, target net.Conn
	once           sync.Once
	gone           chan struct{}
}

func (l *link) close() {
	l.once.Do(func() {
		close(l.gone)
		l.client.Close()
		l.target.Close()
	})
}

// NewProxy listens on 127.0.0.1 and passes connections to target, a host:port.
func NewProxy(target string) (*Proxy, error) {
	return newProxy(target, nil, 0)
}

// NewProxyFrom is NewProxy for a router's sessions: connections to the target come
// from source, as which collectors know the router, and a client waits for a
// quarter of a second to hear that the target is not there.
func NewProxyFrom(target string, source netip.Addr) (*Proxy, error) {
	return newProxy(target, net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0)), 250*time.Millisecond)
}

func newProxy(target string, source net.Addr, refusal time.Duration) (*Proxy, error) {
	d, err := openDoor(loopback + ":0")
	if err != nil {
		return nil, fmt.Errorf("proxy to %s: %w", target, err)
	}
	p := &Proxy{
		door: d, source: source, refusal: refusal, closing: make(chan struct{}),
		target: target, links: make(map[*link]struct{}),
	}
	p.change = sync.NewCond(&p.mu)
	p.wg.Go(p.accept)
	return p, nil
}

// Addr is where the proxy listens, host:port.
func (p *Proxy) Addr() string { return p.door.addr.String() }

// Cut drops all connections and refuses new ones until Restore.
func (p *Proxy) Cut() {
	p.door.shut()
	p.closeLinks()
}

// Drop closes the present connections; new ones are taken.
func (p *Proxy) Drop() {
	p.door.drop()
	p.closeLinks()
}

// Restore undoes Cut, Hang, Delay and Rate.
func (p *Proxy) Restore() error {
	p.mu.Lock()
	p.hung, p.delay, p.rate = 0, 0, 0
	p.change.Broadcast()
	p.mu.Unlock()
	return p.door.open()
}

// Hang lets no byte pass in direction d, as a network that drops packets does;
// what has been read waits, and then the sender's TCP does. Connections opened
// meanwhile are taken by the kernel but reach the target only afterwards.
// Hang(0) ends it.
func (p *Proxy) Hang(d Direction) {
	p.mu.Lock()
	p.hung = d
	p.change.Broadcast()
	p.mu.Unlock()
}

// Delay holds everything back for d, each way; 0 ends it.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	p.delay = d
	p.mu.Unlock()
}

// Rate passes at most n bytes a second, each way and for each connection; 0 is
// no limit. Connections that are opened afterwards also get small socket
// buffers, so that the sender feels it soon.
func (p *Proxy) Rate(n int) {
	p.mu.Lock()
	p.rate = n
	p.mu.Unlock()
}

// SetTarget sends connections from now on to another host:port.
func (p *Proxy) SetTarget(target string) {
	p.mu.Lock()
	p.target = target
	p.mu.Unlock()
}

// Passed returns how many bytes have gone to the target and to clients.
func (p *Proxy) Passed() (toTarget, toClient int64) {
	return p.toTarget.Load(), p.toClient.Load()
}

// Conns returns the number of connections that reach the target now.
func (p *Proxy) Conns() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links)
}

// Close drops everything and frees the port.
func (p *Proxy) Close() error {
	p.mu.Lock()
	if !p.closed {
		close(p.closing)
	}
	p.closed = true
	p.change.Broadcast()
	p.mu.Unlock()
	p.door.Close()
	p.closeLinks()
	p.wg.Wait()
	return nil
}

func (p *Proxy) closeLinks() {
	p.mu.Lock()
	links := p.links
	p.links = make(map[*link]struct{})
	for l := range links {
		l.close()
	}
	p.change.Broadcast() // wakes the pumps that hang
	p.mu.Unlock()
}

func (p *Proxy) accept() {
	for {
		c, err := p.door.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(c) })
	}
}

func (p *Proxy) serve(c net.Conn) {
	p.mu.Lock()
	for p.hung != 0 && !p.closed {
		p.change.Wait()
	}
	target, rate := p.target, p.rate
	p.mu.Unlock()

	dialer := net.Dialer{LocalAddr: p.source, Timeout: 5 * time.Second}
	t, err := dialer.Dial("tcp", target)
	if err != nil {
		wait := time.NewTimer(p.refusal)
		defer wait.Stop()
		select {
		case <-wait.C:
		case <-p.closing:
		}
		c.Close() // the nearest that a proxy comes to refusing a connection
		return
	}
	if rate > 0 {
		// Best effort: a larger buffer only makes the limit felt later.
		c.(*doorConn).Conn.(*net.TCPConn).SetReadBuffer(16 << 10)
		t.(*net.TCPConn).SetReadBuffer(16 << 10)
	}
	l := &link{client: c, target: t, gone: make(chan struct{})}
	p.mu.Lock()
	if p.closed || c.(*doorConn).isGone() {
		p.mu.Unlock()
		l.close()
		return
	}
	p.links[l] = struct{}{}
	p.mu.Unlock()

	var pumps sync.WaitGroup
	pumps.Go(func() { p.pump(l, l.client, l.target, ToTarget, &p.toTarget) })
	pumps.Go(func() { p.pump(l, l.target, l.client, ToClient, &p.toClient) })
	pumps.Wait()
	l.close()
	p.mu.Lock()
	delete(p.links, l)
	p.mu.Unlock()
}

// isGone says whether the door has dropped the connection.
func (c *doorConn) isGone() bool {
	c.door.mu.Lock()
	defer c.door.mu.Unlock()
	return c.gone
}

// A parcel is what one read brought and when.
type parcel struct {
	at time.Time
	b  []byte
}

// maxParcels bounds what a direction of a link holds while it is delayed:
// maxParcels reads of 32 KiB.
const maxParcels = 64

// pump carries bytes from src to dst until either ends. Reading and writing are
// apart, so that a delay does not limit the throughput.
func (p *Proxy) pump(l *link, src, dst net.Conn, d Direction, passed *atomic.Int64) {
	parcels := make(chan parcel, maxParcels)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(parcels)
		for {
			b := make([]byte, 32<<10)
			n, err := src.Read(b)
			if n > 0 {
				select {
				case parcels <- parcel{time.Now(), b[:n]}:
				case <-l.gone:
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	defer reader.Wait()
	for pc := range parcels {
		if !p.write(l, dst, pc, d, passed) {
			l.close()
			return
		}
	}
	// The sender has finished its half; the other half may still talk.
	if w, ok := dst.(interface{ CloseWrite() error }); !ok || w.CloseWrite() != nil {
		l.close()
	}
}

// write passes one parcel on when the settings allow, and says whether the link
// still stands.
func (p *Proxy) write(l *link, dst net.Conn, pc parcel, d Direction, passed *atomic.Int64) bool {
	for b := pc.b; len(b) > 0; {
		p.mu.Lock()
		for p.hung&d != 0 && !l.isGone() && !p.closed {
			p.change.Wait()
		}
		due, rate := pc.at.Add(p.delay), p.rate
		p.mu.Unlock()
		if !l.pause(time.Until(due)) {
			return false
		}
		n := len(b)
		if rate > 0 {
			n = min(n, max(rate/50, 1))
			if !l.pause(time.Duration(n) * time.Second / time.Duration(rate)) {
				return false
			}
		}
		n, err := dst.Write(b[:n])
		passed.Add(int64(n))
		if err != nil {
			return false
		}
		b = b[n:]
	}
	return true
}

func (l *link) isGone() bool {
	select {
	case <-l.gone:
		return true
	default:
		return false
	}
}

// pause waits for d, which may be negative, and says whether the link still
// stands.
func (l *link) pause(d time.Duration) bool {
	if d <= 0 {
		return !l.isGone()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-l.gone:
		return false
	}
}

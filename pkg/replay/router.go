package replay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/bmpha/bmpha/pkg/bmp"
)

// Config describes a Router. Stream and To are needed.
type Config struct {
	Stream Stream
	// To is the collectors, host:port each.
	To []string
	// Source is the address to connect from; the system chooses if it is not
	// valid. On Linux every address in 127.0.0.0/8 will do for collectors on
	// loopback, so that several routers there can differ.
	Source netip.Addr
	// Rate is the pace of the stream in messages per second, whether or not a
	// collector is connected. With 0 the stream goes as fast as the connected
	// collectors read, but waits no longer than Stall for one that does not; a
	// session that was given up in this way paces no more until a later one of
	// the same collector has caught up.
	Rate  float64
	Stall time.Duration // 2 s
	// Queue is how many bytes a session may be behind; beyond, it is closed and
	// begun anew. 64 MiB.
	Queue int
	// Patience is how long the stream waits, once the first collector is
	// connected, for the others. 3 s.
	Patience time.Duration
	// Stateless keeps no table: sessions begin with the Initiation and the Peer
	// Ups only, and Table is empty. For measuring throughput.
	Stateless bool
	// Dial makes the connections; nil is TCP from Source.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

const (
	defaultQueue    = 64 << 20
	defaultStall    = 2 * time.Second
	defaultPatience = 3 * time.Second

	backoffMin = 50 * time.Millisecond
	backoffMax = time.Second
	dialLimit  = 5 * time.Second

	// A session's queue is filled from the table, or by a stream without a rate,
	// only below these bytes.
	dumpBelow = 256 << 10
	paceBelow = 4 << 20
	// writeSize is what one write takes at most: progress is seen in these steps.
	writeSize = 256 << 10
	// keepBuffer is the largest buffer that a session keeps when it is empty.
	keepBuffer = 8 << 20
)

// An Ending says how a Router leaves its sessions.
type Ending int

const (
	// Terminate sends what is queued and a Termination message, then closes.
	Terminate Ending = iota
	// Abort resets the connections at once.
	Abort
)

// A Router plays one Stream to several collectors. Its methods are safe for
// concurrent use.
type Router struct {
	cfg    Config
	ctx    context.Context // ends when the router is to be gone at once
	cancel context.CancelFunc
	dial   context.Context // ends when the router begins to stop
	hangUp context.CancelFunc
	all    sync.WaitGroup

	mu         sync.Mutex
	table      *ribs
	collectors []*collector
	started    bool
	paused     bool
	ended      bool // the stream is at its end
	stopping   bool // no new sessions; those that are leave by Termination
	abort      bool
	err        error // of the stream
	messages   uint64
	address    netip.Addr // our own, as of the last connection
	changed    chan struct{}
}

// A collector is one destination with, mostly, a session.
type collector struct {
	r       *Router
	address string

	// Guarded by Router.mu.
	session  *session
	cutUntil time.Time
	wake     chan struct{} // a change of cutUntil
	mistrust bool          // gave up on it: it does not pace
	counters CollectorCounters
}

// A session is one connection.
type session struct {
	c    *collector
	conn net.Conn
	wake chan struct{}

	// Guarded by Router.mu.
	pending      []byte
	pendingCount int
	unsent       int // bytes taken from pending and not written
	walk         walk
	walking      bool
	moved        time.Time // last progress in writing, or when there was first something to write
	leaving      bool
	closed       bool
}

// CollectorCounters tell what happened with one collector.
type CollectorCounters struct {
	Address   string
	Connected bool
	Sessions  uint64 // begun
	Failures  uint64 // connections that could not be made
	Overflows uint64 // sessions given up because the collector did not read
	Messages  uint64 // written to the connections, openings and dumps included
	Bytes     uint64 // the same
	Redumped  uint64 // messages queued from the table (routes and End-of-RIBs)
	Queued    int    // bytes now
	LastError string
}

// Counters are the counts of a Router or, added up, of a Fleet.
type Counters struct {
	Messages  uint64 // of the stream so far
	Announced uint64 // routes in them
	Withdrawn uint64 // routes in them
	EndOfRIB  uint64
	Opaque    uint64 // messages that the table could not follow
	Routes    int    // in the table now
	Ended     bool   // the stream is at its end

	Collectors []CollectorCounters
}

// NewRouter returns a router that does nothing before Start.
func NewRouter(cfg Config) (*Router, error) {
	if cfg.Stream == nil {
		return nil, errors.New("router without a stream")
	}
	if len(cfg.To) == 0 {
		return nil, errors.New("router without a collector to send to")
	}
	if !(cfg.Rate >= 0) || cfg.Queue < 0 || cfg.Stall < 0 || cfg.Patience < 0 {
		return nil, fmt.Errorf("router with a negative rate %v, queue %d, stall %v or patience %v",
			cfg.Rate, cfg.Queue, cfg.Stall, cfg.Patience)
	}
	if cfg.Queue == 0 {
		cfg.Queue = defaultQueue
	}
	if cfg.Stall == 0 {
		cfg.Stall = defaultStall
	}
	if cfg.Patience == 0 {
		cfg.Patience = defaultPatience
	}
	if cfg.Dial == nil {
		cfg.Dial = dialFrom(cfg.Source)
	}
	r := &Router{cfg: cfg, table: newRIBs(), changed: make(chan struct{})}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.dial, r.hangUp = context.WithCancel(r.ctx)
	for _, to := range cfg.To {
		r.collectors = append(r.collectors, &collector{r: r, address: to, wake: make(chan struct{}, 1),
			counters: CollectorCounters{Address: to}})
	}
	return r, nil
}

func dialFrom(source netip.Addr) func(context.Context, string) (net.Conn, error) {
	var d net.Dialer
	if source.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
	}
	return func(ctx context.Context, address string) (net.Conn, error) {
		return d.DialContext(ctx, "tcp", address)
	}
}

// Start begins to connect, and to play the stream once collectors are there. It
// does nothing after the first call, or after Stop.
func (r *Router) Start() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.started || r.stopping {
		return
	}
	r.started = true
	for _, c := range r.collectors {
		r.all.Go(c.run)
	}
	r.all.Go(r.play)
}

// Stop ends the router and waits until every goroutine is gone. With Terminate
// it lets the connected sessions send what they have queued, until ctx ends;
// what was cut short then is returned as an error, after the connections have
// been reset.
func (r *Router) Stop(ctx context.Context, how Ending) error {
	r.mu.Lock()
	r.stopping = true
	r.hangUp()
	r.abort = r.abort || how == Abort
	r.notify()
	for _, c := range r.collectors {
		c.poke()
		if c.session != nil {
			c.session.poke()
		}
	}
	if r.abort {
		r.reset()
	}
	r.mu.Unlock()
	gone := make(chan struct{})
	go func() {
		r.all.Wait()
		close(gone)
	}()
	select {
	case <-gone:
		r.cancel()
		return nil
	case <-ctx.Done():
	}
	r.mu.Lock()
	r.abort = true
	r.reset()
	r.mu.Unlock()
	<-gone
	return fmt.Errorf("stop router: sessions reset with messages unsent: %w", context.Cause(ctx))
}

// reset closes all connections by RST and ends whatever waits. r.mu is held.
func (r *Router) reset() {
	r.cancel()
	for _, c := range r.collectors {
		if c.session != nil {
			c.session.reset()
		}
	}
}

// Pause stops the stream, or lets it go on. Sessions stay as they are and still
// get what is queued, and a new one its dump.
func (r *Router) Pause(pause bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.paused = pause
	r.notify()
}

// Cut closes the session to a collector (as given in Config.To), without a
// Termination, and does not connect to it again before d has passed. It returns
// false if there is no such collector.
func (r *Router) Cut(collector string, d time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	found := false
	for _, c := range r.collectors {
		if c.address != collector {
			continue
		}
		found = true
		c.cutUntil = time.Now().Add(d)
		c.poke()
		if c.session != nil {
			c.session.close(nil)
		}
	}
	return found
}

// Wait waits until the stream has ended and every connected session, at least
// one, has handed all it was due to the network. It returns the stream's error if
// it failed, or ctx's.
func (r *Router) Wait(ctx context.Context) error {
	for {
		r.mu.Lock()
		done, err, changed := r.ended, r.err, r.changed
		connected := false
		for _, c := range r.collectors {
			if s := c.session; s != nil {
				connected = true
				done = done && !s.walking && len(s.pending) == 0 && s.unsent == 0
			}
		}
		r.mu.Unlock()
		if err != nil {
			return err
		}
		if done && connected {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of the stream: %w", context.Cause(ctx))
		}
	}
}

// Counters returns the counts so far.
func (r *Router) Counters() Counters {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := Counters{
		Messages: r.messages, Announced: r.table.announced, Withdrawn: r.table.withdrawn,
		EndOfRIB: r.table.endOfRIB, Opaque: r.table.opaque, Routes: r.table.len(), Ended: r.ended,
	}
	for _, c := range r.collectors {
		cc := c.counters
		if s := c.session; s != nil {
			cc.Connected, cc.Queued = true, len(s.pending)+s.unsent
		}
		n.Collectors = append(n.Collectors, cc)
	}
	return n
}

// Table returns the router's table as it stands, in the notation of pmacct's
// records (see Compare). Routes of peers that never came up are in it, though pmacct
// makes no records of some of them. The router's address in the keys is its source address,
// or the one of its last connection.
func (r *Router) Table() map[Key]string {
	table := make(map[Key]string)
	r.addTable(table)
	return table
}

func (r *Router) addTable(dst map[Key]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	name := ""
	switch {
	case r.cfg.Source.IsValid():
		name = r.cfg.Source.String()
	case r.address.IsValid():
		name = r.address.String()
	}
	r.table.addTo(dst, name)
}

// Dump appends the bytes that a session would begin with now: for those who want
// to decode the table by other means than Table does.
func (r *Router) Dump(dst []byte) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	dst, _ = r.table.appendOpening(dst)
	var w walk
	for done := false; !done; {
		dst, _, done = r.table.walk(dst, &w, dumpBelow)
	}
	return dst
}

// notify wakes whoever waits for a change of the router's state. r.mu is held.
func (r *Router) notify() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// play drives the stream.
func (r *Router) play() {
	batch, err := r.prime()
	if err == nil {
		r.awaitCollectors()
		err = r.pump(batch)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = fmt.Errorf("stream: %w", err)
	}
	r.notify()
}

// prime reads the first message, so that an Initiation opens the sessions; a
// stream that has none gets one. What the message is else is returned.
func (r *Router) prime() ([]byte, error) {
	first, err := r.cfg.Stream.Next(nil)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil && first[5] == initiation {
		r.messages++
		r.table.apply(first)
		first = nil
	} else if len(r.table.initiation) == 0 {
		r.table.initiation = bmp.AppendInitiation(nil, "bmpha replay", "replay")
	}
	r.notify()
	return first, err
}

// awaitCollectors waits until all collectors are connected, or Patience has
// passed since the first was.
func (r *Router) awaitCollectors() {
	var patience <-chan time.Time
	for {
		r.mu.Lock()
		connected := 0
		for _, c := range r.collectors {
			if c.session != nil {
				connected++
			}
		}
		stop, changed := r.stopping, r.changed
		r.mu.Unlock()
		if stop || connected == len(r.collectors) {
			return
		}
		if connected > 0 && patience == nil {
			timer := time.NewTimer(r.cfg.Patience)
			defer timer.Stop()
			patience = timer.C
		}
		select {
		case <-changed:
		case <-patience:
			return
		}
	}
}

// pump plays the stream to its end, beginning with a message already read.
func (r *Router) pump(batch []byte) error {
	p := pacer{rate: r.cfg.Rate}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for first := len(batch) > 0; ; {
		r.mu.Lock()
		for !r.stopping && (r.paused || r.cfg.Rate == 0 && !r.room(time.Now())) {
			changed, paused := r.changed, r.paused
			r.mu.Unlock()
			timer.Reset(r.cfg.Stall / 4)
			if paused {
				timer.Stop()
			}
			select {
			case <-changed:
			case <-timer.C:
			}
			r.mu.Lock()
		}
		if r.stopping {
			r.mu.Unlock()
			return nil
		}
		n, wait := p.due(time.Now())
		if n == 0 {
			changed := r.changed
			r.mu.Unlock()
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-changed: // a pause, a stop, or nothing that matters here
			}
			continue
		}
		var err error
		kept := 0
		if first {
			first = false
			batch, kept = r.take(batch, 0, kept)
			n--
		} else {
			batch = batch[:0]
		}
		for ; n > 0; n-- {
			start := len(batch)
			if batch, err = r.cfg.Stream.Next(batch); err != nil {
				break
			}
			batch, kept = r.take(batch, start, kept)
		}
		r.spread(batch, kept)
		r.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// take applies the message from start on to the table and drops it from the
// batch if sessions should not see it. r.mu is held.
func (r *Router) take(batch []byte, start, kept int) ([]byte, int) {
	r.messages++
	msg := batch[start:]
	if r.cfg.Stateless && msg[5] == routeMonitoring {
		return batch, kept + 1
	}
	if !r.table.apply(msg) {
		return batch[:start], kept
	}
	return batch, kept + 1
}

// spread queues a batch to every session. r.mu is held.
func (r *Router) spread(batch []byte, messages int) {
	if len(batch) == 0 {
		return
	}
	for _, c := range r.collectors {
		s := c.session
		if s == nil || s.closed {
			continue
		}
		queued := len(s.pending) + s.unsent
		if queued+len(batch) > r.cfg.Queue {
			s.overflow()
			continue
		}
		if queued == 0 {
			s.moved = time.Now()
		}
		s.pending = append(s.pending, batch...)
		s.pendingCount += messages
		s.poke()
	}
}

// room tells whether a stream without a rate may go on: no trusted session is far
// behind. One that has not moved for too long is given up. r.mu is held.
func (r *Router) room(now time.Time) bool {
	room := true
	for _, c := range r.collectors {
		s := c.session
		if s == nil || s.closed || c.mistrust || len(s.pending)+s.unsent < min(paceBelow, r.cfg.Queue/2) {
			continue
		}
		if now.Sub(s.moved) >= r.cfg.Stall {
			s.overflow()
			continue
		}
		room = false
	}
	return room
}

// run keeps a session to one collector until the router stops.
func (c *collector) run() {
	backoff := backoffMin
	for {
		c.r.mu.Lock()
		stop := c.r.stopping
		ready := len(c.r.table.initiation) > 0
		changed := c.r.changed
		wait := time.Until(c.cutUntil)
		c.r.mu.Unlock()
		switch {
		case stop:
			return
		case !ready:
			<-changed
			continue
		case wait > 0:
			c.sleep(wait)
			continue
		}
		begin := time.Now()
		if err := c.connect(); err != nil {
			c.r.mu.Lock()
			c.counters.LastError = err.Error()
			c.r.mu.Unlock()
		}
		if time.Since(begin) > backoffMax {
			backoff = backoffMin
		}
		c.r.mu.Lock()
		stop = c.r.stopping
		c.r.mu.Unlock()
		if !stop {
			c.sleep(backoff)
		}
		backoff = min(2*backoff, backoffMax)
	}
}

// sleep waits for d, or less if something changed.
func (c *collector) sleep(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.wake:
	}
}

func (c *collector) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// connect makes one connection and serves it until it ends.
func (c *collector) connect() error {
	r := c.r
	ctx, cancel := context.WithTimeout(r.dial, dialLimit)
	conn, err := r.cfg.Dial(ctx, c.address)
	cancel()
	r.mu.Lock()
	if err != nil {
		c.counters.Failures++
		r.mu.Unlock()
		return fmt.Errorf("connect to %s: %w", c.address, err)
	}
	if r.stopping || time.Until(c.cutUntil) > 0 {
		r.mu.Unlock()
		return conn.Close()
	}
	s := &session{c: c, conn: conn, wake: make(chan struct{}, 1), walking: !r.cfg.Stateless && len(r.table.all) > 0, moved: time.Now()}
	if local, ok := conn.LocalAddr().(*net.TCPAddr); ok {
		r.address = local.AddrPort().Addr().Unmap()
	}
	s.pending, s.pendingCount = r.table.appendOpening(nil)
	c.session = s
	c.counters.Sessions++
	r.notify()
	r.mu.Unlock()

	heard := make(chan struct{})
	go func() {
		// A collector says nothing in BMP; reading shows when it is gone.
		_, err := io.Copy(io.Discard, conn)
		if err == nil {
			err = errors.New("closed by the collector")
		}
		r.mu.Lock()
		if !s.leaving {
			s.close(fmt.Errorf("session to %s: %w", c.address, err))
		}
		r.mu.Unlock()
		close(heard)
	}()
	err = s.write()
	r.mu.Lock()
	graceful := err == nil && !s.closed && !r.abort
	s.leaving = graceful
	r.mu.Unlock()
	if graceful {
		s.leave(heard)
	}
	r.mu.Lock()
	s.close(nil)
	c.session = nil
	r.notify()
	r.mu.Unlock()
	<-heard
	if err != nil {
		return fmt.Errorf("session to %s: %w", c.address, err)
	}
	return nil
}

// leave ends a session in good order: FIN, and a moment for the collector to
// close its side, so that nothing it has not read is lost to a reset.
func (s *session) leave(heard <-chan struct{}) {
	if half, ok := s.conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		timer := time.NewTimer(time.Second)
		defer timer.Stop()
		select {
		case <-heard:
			return
		case <-timer.C:
		case <-s.c.r.ctx.Done():
		}
	}
}

// write serves the session until it is closed (nil), or the router stops and all
// is written (nil), or writing fails.
func (s *session) write() error {
	r := s.c.r
	var out []byte
	for {
		r.mu.Lock()
		for {
			if s.closed {
				r.mu.Unlock()
				return nil
			}
			if s.walking && len(s.pending) < dumpBelow {
				s.dumpSome()
			}
			if len(s.pending) > 0 {
				break
			}
			s.c.mistrust = false
			if r.ended {
				r.notify() // Wait looks at queues
			}
			if r.stopping && !s.walking {
				r.mu.Unlock()
				return s.say(bmp.AppendTermination(out[:0], 0, ""), 1)
			}
			r.mu.Unlock()
			<-s.wake
			r.mu.Lock()
		}
		if cap(out) > keepBuffer {
			out = nil
		}
		out, s.pending = s.pending, out[:0]
		count := s.pendingCount
		s.pendingCount = 0
		s.unsent = len(out)
		r.mu.Unlock()
		if err := s.say(out, count); err != nil {
			return err
		}
		if r.cfg.Rate == 0 {
			r.mu.Lock()
			r.notify() // the stream may wait for room
			r.mu.Unlock()
		}
	}
}

// dumpSome queues a part of the table. r.mu is held.
func (s *session) dumpSome() {
	var n int
	var done bool
	s.pending, n, done = s.c.r.table.walk(s.pending, &s.walk, dumpBelow)
	s.pendingCount += n
	s.c.counters.Redumped += uint64(n)
	s.walking = !done
}

// say writes b, whole messages, and counts.
func (s *session) say(b []byte, messages int) error {
	r := s.c.r
	for len(b) > 0 {
		n, err := s.conn.Write(b[:min(len(b), writeSize)])
		b = b[n:]
		r.mu.Lock()
		s.moved = time.Now()
		s.unsent = len(b)
		s.c.counters.Bytes += uint64(n)
		closed := s.closed
		if err == nil && len(b) == 0 {
			s.c.counters.Messages += uint64(messages)
		}
		r.mu.Unlock()
		if err != nil {
			if closed {
				return nil // we closed it ourselves
			}
			return err
		}
	}
	return nil
}

func (s *session) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// close ends the session; its goroutines notice. r.mu is held.
func (s *session) close(why error) {
	if s.closed {
		return
	}
	s.closed = true
	if why != nil {
		s.c.counters.LastError = why.Error()
	}
	s.conn.Close()
	s.poke()
}

// reset is close by RST. r.mu is held.
func (s *session) reset() {
	if tcp, ok := s.conn.(interface{ SetLinger(int) error }); ok {
		_ = tcp.SetLinger(0) // else it is an ordinary close
	}
	s.close(nil)
}

// overflow gives a session up that is too far behind. r.mu is held.
func (s *session) overflow() {
	s.c.counters.Overflows++
	s.c.mistrust = true
	if tcp, ok := s.conn.(interface{ SetLinger(int) error }); ok {
		_ = tcp.SetLinger(0) // what lies in the socket is of no use any more
	}
	s.close(fmt.Errorf("session to %s: closed, the collector does not keep up", s.c.address))
}

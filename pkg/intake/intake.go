// Package intake is a Kafka broker of one node, for producers: what a pmacct is
// pointed at instead of Kafka, so that its records come here first.
//
// What it promises:
//
//   - Any producer of record batches (Kafka 0.11 and later) finds what it needs:
//     every topic that it asks for exists, idempotent producers get an id, all
//     compressions are read. Nothing is kept here and nothing can be consumed.
//   - Keys, values, headers and timestamps are handed to the Handler as they came,
//     the records of a partition in the order of the producer's requests. The
//     producer is answered when the Handler has taken them, not before; a Handler
//     that needs time holds the producer back and nobody else.
//   - A batch that an idempotent producer sends again, over the same connection or
//     another, is acknowledged again and not handed over again.
//   - Producers are not trusted: what they say is bounded in size and in memory
//     over all connections, and checked before anything of a batch is handed over.
//     Whoever breaks the protocol loses its own connection.
//
// Identify tells which router a record of pmacct's is about. AppendEntry and
// ParseEntry are the form in which a Record is stored.
package intake

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
)

// A Record is one Kafka record. The slices belong to the connection that it came
// over and are valid only during Take.
type Record struct {
	Topic     []byte
	Partition int32
	Key       []byte
	Value     []byte
	KeyNull   bool   // there is no key, rather than an empty one
	ValueNull bool   // there is no value
	Headers   []byte // see record.AppendMore and record.EachMore; empty without headers
	Timestamp int64  // milliseconds since the Unix epoch; -1 if the producer gave none
}

// A Producer is one connection of a producer. A client may have several. It does
// not change after Connected.
type Producer struct {
	ID       uint64         // from 1, in the order of connecting, never used again
	Addr     netip.AddrPort // the producer's end
	ClientID string         // as the client calls itself, such as "rdkafka"; may be empty
	Software string         // its library and version, such as "librdkafka 2.0.2"; may be empty
	Since    time.Time      // when it connected
}

// A Handler is told what producers do. Its methods are called from the goroutine
// of the connection: concurrently for different producers, one at a time for one.
type Handler interface {
	// Connected is called with the first request of a connection, whatever it
	// asks for.
	Connected(p *Producer)
	// Take takes the records of one batch, or the next part of a large one, in
	// order and all of one topic and partition. It returns when they are safely
	// taken, which may be late: the producer waits. With an error, for which
	// there is no reason but closing (ctx is done then), the connection ends
	// without an answer. A producer that has gone meanwhile does not end ctx.
	Take(ctx context.Context, p *Producer, recs []Record) error
	// Disconnected is the last call for p. The error is nil if the client closed
	// the connection, net.ErrClosed at Close, else what it did wrong.
	Disconnected(p *Producer, err error)
}

// Options say how to listen. Handler and Listen are needed; zero fields have the
// defaults given.
type Options struct {
	Listen []string       // host:port each
	Allow  []netip.Prefix // who may connect; empty: everybody
	// Advertise is the host:port that clients are told; "" is the address to which
	// each of them connected.
	Advertise string
	// Partitions is how many partitions each topic has; 1.
	Partitions int32

	// MaxRequest is the most bytes of a request; 100 MiB, as with Kafka.
	// A request with anything but records is bounded by 1 MiB.
	MaxRequest int
	// MaxBatch is the most bytes of a record batch when decompressed; 64 MiB.
	MaxBatch int
	// Memory bounds the requests of all connections together, and once more what
	// they decompress to; the next one is not read until there is room. At least
	// MaxRequest and MaxBatch; 256 MiB.
	Memory int64
	// MaxConnections; 200.
	MaxConnections int
	// ReadTimeout is how long a request may take from its first byte to its last,
	// and a connection until its first request; WriteTimeout how long an answer
	// may take to be accepted. 30 s. Between requests a client may be silent for
	// as long as it likes.
	ReadTimeout, WriteTimeout time.Duration

	Handler Handler
	Log     *slog.Logger // slog.Default
}

// Status is what a Broker has done so far.
type Status struct {
	Connections int    // open now
	Requests    uint64 // answered
	Batches     uint64 // taken
	Records     uint64 // taken
	Bytes       uint64 // keys, values and headers of Records
	Repeated    uint64 // batches that were known already, from idempotent producers
	Rejected    uint64 // batches answered with an error
	Refused     uint64 // connections not accepted: address, or too many
	Broken      uint64 // connections ended because of what the client did
	Producers   []ProducerStatus
}

// A ProducerStatus is a connection that is open now and has asked something.
type ProducerStatus struct {
	Producer
	Records, Bytes uint64 // taken from it
}

// A Broker accepts producers. Its methods are safe for concurrent use.
type Broker struct {
	o         Options
	host      string // to advertise; "" if by connection
	port      int32
	listeners []net.Listener
	ctx       context.Context
	cancel    context.CancelFunc
	conns     sync.WaitGroup
	closed    chan struct{} // when Close is done

	requestMemory, batchMemory *semaphore.Weighted
	decoders                   *decoders
	sequences                  *sequences
	topics                     *topics
	producerID                 atomic.Int64 // the last one given
	complaints                 complaints

	requests, batches, records, bytes      atomic.Uint64
	repeated, rejected, refused, brokenOff atomic.Uint64

	mu      sync.Mutex
	lastID  uint64
	open    map[*conn]struct{}
	closing bool
}

const (
	// smallRequest is the most bytes of a request without records. Decoded it may
	// take decodedFactor times as much, which is what it is counted with.
	smallRequest  = 1 << 20
	decodedFactor = 64
	// keptBuffer is the most memory that a connection keeps between requests.
	keptBuffer = 2 << 20
)

// Listen binds. Nothing is accepted until Serve; the end of ctx is a Close.
func Listen(ctx context.Context, o Options) (*Broker, error) {
	if o.Handler == nil || len(o.Listen) == 0 {
		return nil, errors.New("intake: a handler and an address to listen on are needed")
	}
	if o.Partitions < 0 || o.MaxRequest < 0 || o.MaxBatch < 0 || o.Memory < 0 {
		return nil, errors.New("intake: a limit is negative")
	}
	setDefault(&o.Partitions, 1)
	setDefault(&o.MaxRequest, 100<<20)
	setDefault(&o.MaxBatch, 64<<20)
	setDefault(&o.Memory, 256<<20)
	setDefault(&o.MaxConnections, 200)
	setDefault(&o.ReadTimeout, 30*time.Second)
	setDefault(&o.WriteTimeout, 30*time.Second)
	o.Memory = max(o.Memory, int64(o.MaxRequest), int64(o.MaxBatch), smallRequest*decodedFactor)
	if o.Log == nil {
		o.Log = slog.Default()
	}
	dec, err := newDecoders(runtime.GOMAXPROCS(0), o.MaxBatch)
	if err != nil {
		return nil, fmt.Errorf("intake: %w", err)
	}
	b := &Broker{
		o:             o,
		closed:        make(chan struct{}),
		requestMemory: semaphore.NewWeighted(o.Memory),
		batchMemory:   semaphore.NewWeighted(o.Memory),
		decoders:      dec,
		sequences:     newSequences(maxSequences),
		topics:        newTopics(o.Partitions),
		complaints:    complaints{log: o.Log, limit: rate.NewLimiter(rate.Every(time.Second), 10)},
		open:          make(map[*conn]struct{}),
	}
	// An id of before a restart must not be given to somebody else: its producer
	// may still be there.
	var seed [8]byte
	_, _ = rand.Read(seed[:]) // never fails
	b.producerID.Store(int64(binary.BigEndian.Uint64(seed[:]) >> 2 & (math.MaxInt64 >> 1)))
	if o.Advertise != "" {
		host, port, err := net.SplitHostPort(o.Advertise)
		if err != nil {
			return nil, fmt.Errorf("intake: advertise: %w", err)
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || host == "" {
			return nil, fmt.Errorf("intake: advertise %q: want host:port", o.Advertise)
		}
		b.host, b.port = host, int32(n)
	}
	var lc net.ListenConfig
	for _, addr := range o.Listen {
		ln, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			for _, ln := range b.listeners {
				ln.Close()
			}
			return nil, fmt.Errorf("intake: %w", err)
		}
		b.listeners = append(b.listeners, ln)
	}
	b.ctx, b.cancel = context.WithCancel(ctx)
	return b, nil
}

func setDefault[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// Addresses returns where b listens, in the order of Options.Listen.
func (b *Broker) Addresses() []net.Addr {
	addrs := make([]net.Addr, len(b.listeners))
	for i, ln := range b.listeners {
		addrs[i] = ln.Addr()
	}
	return addrs
}

// Serve accepts producers until Close and returns when all of them are gone. It is
// called once.
func (b *Broker) Serve() {
	var accepting sync.WaitGroup
	for _, ln := range b.listeners {
		accepting.Go(func() { b.accept(ln) })
	}
	stop := context.AfterFunc(b.ctx, func() { b.Close() })
	accepting.Wait()
	if !stop() {
		<-b.closed
	}
	b.conns.Wait()
}

// Close stops listening, ends every connection and waits until the Handler has
// been told. Records that a Handler has taken may then be unanswered.
func (b *Broker) Close() error {
	b.mu.Lock()
	if b.closing {
		b.mu.Unlock()
		<-b.closed
		return nil
	}
	b.closing = true
	b.cancel()
	var errs []error
	for _, ln := range b.listeners {
		errs = append(errs, ln.Close())
	}
	for c := range b.open {
		c.c.Close()
	}
	b.mu.Unlock()
	b.conns.Wait()
	b.decoders.close()
	close(b.closed)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("intake: %w", err)
	}
	return nil
}

// Status returns the state of now, producers in the order of connecting.
func (b *Broker) Status() Status {
	s := Status{
		Requests: b.requests.Load(), Batches: b.batches.Load(), Records: b.records.Load(), Bytes: b.bytes.Load(),
		Repeated: b.repeated.Load(), Rejected: b.rejected.Load(), Refused: b.refused.Load(), Broken: b.brokenOff.Load(),
	}
	b.mu.Lock()
	s.Connections = len(b.open)
	for c := range b.open {
		if c.connected {
			s.Producers = append(s.Producers, ProducerStatus{c.p, c.records.Load(), c.bytes.Load()})
		}
	}
	b.mu.Unlock()
	slices.SortFunc(s.Producers, func(x, y ProducerStatus) int {
		if x.ID < y.ID {
			return -1
		}
		return 1
	})
	return s
}

func (b *Broker) accept(ln net.Listener) {
	const longest = time.Second
	pause := 5 * time.Millisecond
	for {
		c, err := ln.Accept()
		if err != nil {
			if b.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of file descriptors, mostly.
			b.complaints.say("intake: cannot accept a producer", "listen", ln.Addr().String(), "err", err)
			select {
			case <-b.ctx.Done():
				return
			case <-time.After(pause):
			}
			pause = min(2*pause, longest)
			continue
		}
		pause = 5 * time.Millisecond
		if err := b.admit(c); err != nil {
			c.Close()
			b.complaints.say("intake: connection refused", "peer", c.RemoteAddr().String(), "err", err)
			b.refused.Add(1)
		}
	}
}

// admit starts the goroutine of a connection, or says why not.
func (b *Broker) admit(nc net.Conn) error {
	addr, err := netip.ParseAddrPort(nc.RemoteAddr().String())
	if err != nil {
		return fmt.Errorf("peer address: %w", err)
	}
	addr = netip.AddrPortFrom(addr.Addr().Unmap().WithZone(""), addr.Port())
	if len(b.o.Allow) > 0 && !slices.ContainsFunc(b.o.Allow, func(p netip.Prefix) bool { return p.Contains(addr.Addr()) }) {
		return errors.New("address is not allowed")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closing {
		return net.ErrClosed
	}
	if len(b.open) >= b.o.MaxConnections {
		return fmt.Errorf("%d connections are open", len(b.open))
	}
	b.lastID++
	c := &conn{b: b, c: nc, p: Producer{ID: b.lastID, Addr: addr, Since: time.Now()}}
	b.open[c] = struct{}{}
	b.conns.Go(c.run)
	return nil
}

// complaints are log lines that a client can provoke, so they are limited.
type complaints struct {
	log        *slog.Logger
	limit      *rate.Limiter
	suppressed atomic.Uint64
}

func (c *complaints) say(msg string, args ...any) {
	if !c.limit.Allow() {
		c.suppressed.Add(1)
		return
	}
	if n := c.suppressed.Swap(0); n > 0 {
		args = append(args, "suppressed", n)
	}
	c.log.Warn(msg, args...)
}

package intake

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// A conn is one connection. Its requests are read, carried out and answered one
// after the other, so that answers are in order whatever the client pipelines.
type conn struct {
	b *Broker
	c net.Conn

	p         Producer
	connected bool // under b.mu: p is complete and the handler knows it

	buf []byte // the request
	out []byte // the answer

	// Of the batch in hand.
	plain   []byte // decompressed
	recs    []Record
	headers []byte

	records, bytes atomic.Uint64
}

// A request is a request with its header taken off.
type request struct {
	key     kmsg.Key
	version int16
	id      int32 // correlation id
	client  []byte
	body    []byte
}

// errTake says that the handler did not take records.
var errTake = errors.New("records were not taken")

func (c *conn) run() {
	err := c.serve(c.c, c.c)
	c.c.Close()
	b := c.b
	switch {
	case b.ctx.Err() != nil:
		err = net.ErrClosed
	case gone(err):
		err = nil
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		b.complaints.say("intake: connection ended", "peer", c.p.Addr.String(), "client", c.p.ClientID, "err", err)
		b.brokenOff.Add(1)
	}
	b.mu.Lock()
	delete(b.open, c)
	connected := c.connected
	b.mu.Unlock()
	if connected {
		b.o.Handler.Disconnected(&c.p, err)
	}
}

// gone says whether an error is only the client's leaving.
func gone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// serve answers requests until an error ends the connection; io.EOF if the client
// closed it between two requests.
func (c *conn) serve(nc net.Conn, w io.Writer) error {
	in := bufio.NewReaderSize(nc, 64<<10)
	c.deadline(nc.SetReadDeadline, c.b.o.ReadTimeout)
	for first := true; ; first = false {
		if !first && in.Buffered() == 0 {
			_ = nc.SetReadDeadline(time.Time{})
		}
		if _, err := in.Peek(1); err != nil {
			if isTimeout(err) {
				return fmt.Errorf("no request within %v", c.b.o.ReadTimeout)
			}
			return err
		}
		if err := c.one(in, nc, w); err != nil {
			return err
		}
		c.b.requests.Add(1)
	}
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

func (c *conn) deadline(set func(time.Time) error, d time.Duration) {
	_ = set(time.Now().Add(d)) // fails for a closed connection, as does what follows
}

// one reads a request, carries it out and writes the answer.
func (c *conn) one(in *bufio.Reader, nc net.Conn, w io.Writer) error {
	c.deadline(nc.SetReadDeadline, c.b.o.ReadTimeout)
	var head [12]byte // size, key, version, correlation id
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return c.cut(err, "the head of a request")
	}
	size := int64(int32(binary.BigEndian.Uint32(head[:])))
	key := kmsg.Key(binary.BigEndian.Uint16(head[4:]))
	most, weight := int64(c.b.o.MaxRequest), size
	if key != kmsg.Produce {
		most, weight = min(most, smallRequest), size*decodedFactor
	}
	if size < 8 || size > most {
		return fmt.Errorf("%s request of %d bytes, want 8 to %d", name(key), size, most)
	}
	if !c.b.requestMemory.TryAcquire(weight) {
		if err := c.b.requestMemory.Acquire(c.b.ctx, weight); err != nil {
			return net.ErrClosed
		}
		c.deadline(nc.SetReadDeadline, c.b.o.ReadTimeout)
	}
	defer c.b.requestMemory.Release(weight)

	// The buffer grows with what has come, not with what was promised.
	c.buf = append(c.buf[:0], head[4:]...)
	for int64(len(c.buf)) < size {
		have := len(c.buf)
		n := int(min(size-int64(have), int64(max(have, 64<<10))))
		c.buf = slices.Grow(c.buf, n)[:have+n]
		if _, err := io.ReadFull(in, c.buf[have:]); err != nil {
			return c.cut(err, fmt.Sprintf("a %s request of %d bytes", name(key), size))
		}
	}
	_ = nc.SetReadDeadline(time.Time{})
	out, err := c.handle(c.buf, c.out[:0])
	if cap(c.buf) > keptBuffer {
		c.buf = nil
	}
	if err != nil {
		return err
	}
	c.out = out
	if len(out) > 0 {
		c.deadline(nc.SetWriteDeadline, c.b.o.WriteTimeout)
		if _, err := w.Write(out); err != nil {
			return err
		}
	}
	if cap(c.out) > keptBuffer {
		c.out = nil
	}
	return nil
}

// cut explains the end of a connection within a request.
func (c *conn) cut(err error, where string) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("closed within %s", where)
	case isTimeout(err):
		return fmt.Errorf("%s did not come within %v", where, c.b.o.ReadTimeout)
	}
	return err
}

// handle carries out one request, given without its size, and appends the answer
// with its size to dst, or nothing if none is expected.
func (c *conn) handle(msg, dst []byte) ([]byte, error) {
	r, err := parseRequest(msg)
	if err != nil {
		return nil, err
	}
	resp, err := c.answer(&r)
	if err != nil {
		return nil, err
	}
	if resp == nil {
		return dst, nil
	}
	at := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, uint32(r.id))
	if resp.IsFlexible() && r.key != kmsg.ApiVersions {
		dst = append(dst, 0) // no tagged fields
	}
	dst = resp.AppendTo(dst)
	binary.BigEndian.PutUint32(dst[at:], uint32(len(dst)-at-4))
	return dst, nil
}

// connect tells the handler of the producer, once its first request is there.
func (c *conn) connect(client []byte, software string) {
	if c.connected { // written by this goroutine only
		return
	}
	c.b.mu.Lock()
	c.p.ClientID, c.p.Software = printable(client), software
	c.connected = true
	c.b.mu.Unlock()
	c.b.o.Handler.Connected(&c.p)
}

// printable is a client's text, fit for a log and a status page.
func printable(b []byte) string {
	const longest = 100
	b = b[:min(len(b), longest)]
	out := make([]byte, len(b))
	for i, x := range b {
		if x < ' ' || x > '~' {
			x = '?'
		}
		out[i] = x
	}
	return string(out)
}

// name is the name of a request for messages.
func name(k kmsg.Key) string {
	if k >= 0 && k <= kmsg.MaxKey {
		if s := k.Name(); s != "" {
			return s
		}
	}
	return fmt.Sprintf("unknown (key %d)", k)
}

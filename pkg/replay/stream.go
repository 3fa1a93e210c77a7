package replay

import (
	"encoding/binary"
	"fmt"
	"io"
)

// A Stream is a source of BMP messages, as one router would send them. It is
// used by one goroutine at a time.
type Stream interface {
	// Next appends the next complete BMP message to dst. At the end of the
	// stream it returns dst as it was and io.EOF.
	Next(dst []byte) ([]byte, error)
}

// A Capture is a Stream that plays the bytes of a captured BMP session.
//
// With loop it has no end: after the last message it plays, again and again,
// those that can be repeated without upsetting the state of the session: the
// Route Monitoring and Statistics messages that came after the last Peer Up or
// Peer Down of their peer, unless that was a Peer Down. Initiation, Peer Up and
// Peer Down are played once. A capture without any message that can be repeated
// ends after its first round.
type Capture struct {
	data []byte
	at   int
	loop bool
	// In later rounds, what is played: offsets into data. nil in the first.
	repeat []int
	next   int
}

// NewCapture returns a Capture of data, which it keeps and does not change. The
// bytes must be whole BMP messages; the error of a capture that is not says at
// which byte it goes wrong.
func NewCapture(data []byte, loop bool) (*Capture, error) {
	for at := 0; at < len(data); {
		size, err := messageSize(data[at:])
		if err != nil {
			return nil, fmt.Errorf("byte %d: %w", at, err)
		}
		at += size
	}
	return &Capture{data: data, loop: loop}, nil
}

// messageSize returns the length of the first message in b.
func messageSize(b []byte) (int, error) {
	if len(b) < commonLen {
		return 0, fmt.Errorf("%d bytes left, a BMP header has %d", len(b), commonLen)
	}
	if b[0] != 3 && b[0] != 4 {
		return 0, fmt.Errorf("BMP version %d", b[0])
	}
	size := binary.BigEndian.Uint32(b[1:])
	if size < commonLen {
		return 0, fmt.Errorf("BMP message of %d bytes, a header has %d", size, commonLen)
	}
	if uint64(size) > uint64(len(b)) {
		return 0, fmt.Errorf("BMP message of %d bytes, %d are left", size, len(b))
	}
	return int(size), nil
}

// Next appends the next message to dst.
func (c *Capture) Next(dst []byte) ([]byte, error) {
	at := c.at
	switch {
	case at < len(c.data):
		c.at += c.size(at)
	case !c.loop:
		return dst, io.EOF
	default:
		if c.repeat == nil {
			c.repeat = c.repeatable()
		}
		if len(c.repeat) == 0 {
			return dst, io.EOF
		}
		at = c.repeat[c.next]
		c.next = (c.next + 1) % len(c.repeat)
	}
	return append(dst, c.data[at:at+c.size(at)]...), nil
}

func (c *Capture) size(at int) int {
	return int(binary.BigEndian.Uint32(c.data[at+1:]))
}

func (c *Capture) repeatable() []int {
	type change struct {
		at int
		up bool
	}
	last := make(map[peerID]change)
	for at := 0; at < len(c.data); at += c.size(at) {
		if kind := c.data[at+5]; (kind == peerUp || kind == peerDown) && c.size(at) >= commonLen+peerLen {
			last[peerOf(c.data[at+commonLen:])] = change{at, kind == peerUp}
		}
	}
	offsets := []int{}
	for at := 0; at < len(c.data); at += c.size(at) {
		if kind := c.data[at+5]; kind != routeMonitoring && kind != statisticsReport || c.size(at) < commonLen+peerLen {
			continue
		}
		if l, ok := last[peerOf(c.data[at+commonLen:])]; !ok || l.up && at > l.at {
			offsets = append(offsets, at)
		}
	}
	return offsets
}

// Limit returns a Stream that ends after n messages of s.
func Limit(s Stream, n uint64) Stream { return &limited{s, n} }

type limited struct {
	s    Stream
	left uint64
}

func (l *limited) Next(dst []byte) ([]byte, error) {
	if l.left == 0 {
		return dst, io.EOF
	}
	l.left--
	return l.s.Next(dst)
}

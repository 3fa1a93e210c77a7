package link

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
)

// A frame is
//
//	length of the body    4 bytes, big endian as all numbers
//	kind                  1
//	number                8, from 0 on in each direction
//	body
//	MAC of all before     32, HMAC-SHA256
const (
	maxBody   = 4 << 20
	frameHead = 4 + 1 + 8
	macSize   = sha256.Size
)

// Kinds of frames. Others are for later versions, and ignored.
const (
	kindSay  = 1 // what the caller says
	kindPing = 2 // to be answered by a pong with the same body, of 8 bytes
	kindPong = 3
	kindBye  = 4 // the sender leaves by its own will
)

var (
	errForged = errors.New("a frame that the peer did not send so")
	errSize   = fmt.Errorf("a frame of more than %d bytes", maxBody)
)

// A sealer makes the frames of one direction.
type sealer struct {
	mac hash.Hash
	seq uint64
	buf []byte
}

func newSealer(key []byte) *sealer { return &sealer{mac: hmac.New(sha256.New, key)} }

// seal returns the next frame, valid until the next call.
func (s *sealer) seal(kind byte, body []byte) []byte {
	b := binary.BigEndian.AppendUint32(s.buf[:0], uint32(len(body)))
	b = append(b, kind)
	b = binary.BigEndian.AppendUint64(b, s.seq)
	b = append(b, body...)
	s.seq++
	s.mac.Reset()
	s.mac.Write(b)
	s.buf = s.mac.Sum(b)
	return s.buf
}

// An opener checks the frames of one direction.
type opener struct {
	mac hash.Hash
	seq uint64
	buf []byte
	sum [macSize]byte
}

func newOpener(key []byte) *opener { return &opener{mac: hmac.New(sha256.New, key)} }

// next reads a frame. The body is valid until the next call.
func (o *opener) next(r io.Reader) (kind byte, body []byte, err error) {
	b := grow(o.buf, frameHead)
	if _, err := io.ReadFull(r, b); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(b)
	if size > maxBody {
		return 0, nil, errSize
	}
	// In steps, so that a length alone takes no memory.
	end := frameHead + int(size) + macSize
	for len(b) < end {
		have := len(b)
		b = grow(b, min(end, have+64<<10))
		if _, err := io.ReadFull(r, b[have:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, nil, err
		}
	}
	o.buf = b
	o.mac.Reset()
	o.mac.Write(b[:end-macSize])
	if !hmac.Equal(o.mac.Sum(o.sum[:0]), b[end-macSize:]) || binary.BigEndian.Uint64(b[5:]) != o.seq {
		return 0, nil, errForged
	}
	o.seq++
	return b[4], b[frameHead : end-macSize], nil
}

// grow returns b with n bytes, the first of which are those of b.
func grow(b []byte, n int) []byte {
	if n <= cap(b) {
		return b[:n]
	}
	return append(b[:cap(b)], make([]byte, n-cap(b))...)[:n]
}

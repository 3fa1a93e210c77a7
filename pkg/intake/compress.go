package intake

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// A codec is how the records of a batch are compressed.
type codec uint8

const (
	codecNone codec = iota
	codecGzip
	codecSnappy
	codecLZ4
	codecZstd
)

func (c codec) String() string {
	return [...]string{"none", "gzip", "snappy", "lz4", "zstd"}[min(c, codecZstd)]
}

var (
	errTooLarge   = errors.New("too large when decompressed")
	errSnappyForm = errors.New("malformed snappy blocks")
)

// decoders is a fixed number of decoders, so that what is being decompressed at a
// time, and counted only afterwards, is bounded.
type decoders struct {
	all  []*decoder
	free chan *decoder
}

// A decoder decompresses one batch at a time to at most max bytes.
type decoder struct {
	max  int
	src  bytes.Reader
	gzip gzip.Reader
	lz4  *lz4.Reader
	zstd *zstd.Decoder
}

func newDecoders(n, max int) (*decoders, error) {
	d := &decoders{free: make(chan *decoder, n)}
	for range n {
		z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(uint64(max)))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		dec := &decoder{max: max, lz4: lz4.NewReader(nil), zstd: z}
		d.all = append(d.all, dec)
		d.free <- dec
	}
	return d, nil
}

func (d *decoders) get(ctx context.Context) (*decoder, error) {
	select {
	case dec := <-d.free:
		return dec, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (d *decoders) put(dec *decoder) { d.free <- dec }

// close ends them; none is in use any more.
func (d *decoders) close() {
	for _, dec := range d.all {
		dec.zstd.Close()
	}
}

// decode appends what src decompresses to to dst, which is empty. It fails with
// errTooLarge instead of exceeding max.
func (d *decoder) decode(dst, src []byte, c codec) ([]byte, error) {
	switch c {
	case codecGzip:
		d.src.Reset(src)
		if err := d.gzip.Reset(&d.src); err != nil {
			return nil, err
		}
		return d.read(dst, &d.gzip)
	case codecLZ4:
		d.src.Reset(src)
		d.lz4.Reset(&d.src)
		return d.read(dst, d.lz4)
	case codecSnappy:
		return d.snappy(dst, src)
	case codecZstd:
		out, err := d.zstd.DecodeAll(src, dst)
		if errors.Is(err, zstd.ErrDecoderSizeExceeded) || errors.Is(err, zstd.ErrWindowSizeExceeded) || err == nil && len(out) > d.max {
			return nil, errTooLarge
		}
		return out, err
	}
	return nil, fmt.Errorf("compression %d", c)
}

func (d *decoder) read(dst []byte, r io.Reader) ([]byte, error) {
	for {
		if len(dst) == cap(dst) {
			dst = slices.Grow(dst, min(max(len(dst), 16<<10), d.max+1-len(dst)))
		}
		n, err := r.Read(dst[len(dst):min(cap(dst), d.max+1)])
		dst = dst[:len(dst)+n]
		switch {
		case len(dst) > d.max:
			return nil, errTooLarge
		case err == io.EOF:
			return dst, nil
		case err != nil:
			return nil, err
		}
	}
}

// framing is how Java's snappy, and librdkafka with it, begins a run of blocks,
// each with its length. Without it there is one block.
var framing = []byte{0x82, 'S', 'N', 'A', 'P', 'P', 'Y', 0}

func (d *decoder) snappy(dst, src []byte) ([]byte, error) {
	if !bytes.HasPrefix(src, framing) {
		return d.block(dst, src)
	}
	if len(src) < 16 {
		return nil, errSnappyForm
	}
	var err error
	for src = src[16:]; len(src) > 0; {
		if len(src) < 4 {
			return nil, errSnappyForm
		}
		n := int64(binary.BigEndian.Uint32(src))
		if src = src[4:]; n > int64(len(src)) {
			return nil, errSnappyForm
		}
		if dst, err = d.block(dst, src[:n]); err != nil {
			return nil, err
		}
		src = src[n:]
	}
	return dst, nil
}

// block appends one block. Snappy reaches at most 64 bytes for a copy of two, so
// what a block claims is checked against its length before there is room made.
func (d *decoder) block(dst, src []byte) ([]byte, error) {
	n, err := s2.DecodedLen(src)
	if err != nil {
		return nil, err
	}
	if n > d.max-len(dst) {
		return nil, errTooLarge
	}
	if n > 64*len(src) {
		return nil, errSnappyForm
	}
	at := len(dst)
	dst = slices.Grow(dst, n)
	if n == 0 {
		return dst, nil
	}
	out, err := s2.Decode(dst[at:at+n:at+n], src)
	if err != nil {
		return nil, err
	}
	if len(out) != n || &out[0] != &dst[:at+n][at] {
		return append(dst, out...), nil
	}
	return dst[:at+n], nil
}

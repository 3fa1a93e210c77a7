package intake

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/bmpha/bmpha/pkg/record"
)

// A refusal is why a batch is not taken, with the error that its producer gets.
type refusal struct {
	kind *kerr.Error
	why  error
}

func (r *refusal) Error() string { return fmt.Sprintf("%s: %v", r.kind.Message, r.why) }
func (r *refusal) Unwrap() error { return r.why }

func refuse(kind *kerr.Error, format string, args ...any) *refusal {
	return &refusal{kind, fmt.Errorf(format, args...)}
}

// produce takes the records of a request. Nothing is taken before the request as a
// whole has been found well-formed.
func (c *conn) produce(r *request) (kmsg.Response, error) {
	acks, transactional, err := readProduce(r, func([]byte) {}, func(produced) error { return nil })
	if err != nil {
		return nil, err
	}
	resp := kmsg.NewPtrProduceResponse()
	resp.Version = r.version
	var failed *refusal
	_, _, err = readProduce(r, func(name []byte) {
		t := kmsg.NewProduceResponseTopic()
		t.Topic = string(name)
		resp.Topics = append(resp.Topics, t)
	}, func(p produced) error {
		part := kmsg.NewProduceResponseTopicPartition()
		part.Partition = p.partition
		var bad *refusal
		var err error
		switch {
		case r.version < 3:
			bad = refuse(kerr.UnsupportedVersion, "Produce version %d: only record batches, of versions from 3 on, are taken", r.version)
		case transactional:
			bad = refuse(kerr.TransactionalIDAuthorizationFailed, "transactions are not supported")
		case acks < -1 || acks > 1:
			bad = refuse(kerr.InvalidRequiredAcks, "acks %d", acks)
		case !legal(p.topic):
			bad = refuse(kerr.InvalidTopicException, "topic %q", printable(p.topic))
		case p.partition < 0 || p.partition >= c.b.o.Partitions:
			bad = refuse(kerr.UnknownTopicOrPartition, "partition %d of %d", p.partition, c.b.o.Partitions)
		default:
			part.BaseOffset, err = c.batch(r.version, p)
			if !errors.As(err, &bad) && err != nil {
				return err
			}
		}
		if bad != nil {
			failed = bad
			c.b.rejected.Add(1)
			c.b.complaints.say("intake: batch refused", "peer", c.p.Addr.String(), "client", c.p.ClientID,
				"topic", printable(p.topic), "partition", p.partition, "err", bad)
			part.ErrorCode, part.BaseOffset = bad.kind.Code, -1
			part.ErrorMessage = kmsg.StringPtr(bad.why.Error())
		} else {
			part.LogStartOffset = 0
		}
		t := &resp.Topics[p.topicIndex]
		t.Partitions = append(t.Partitions, part)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if acks == 0 {
		if failed != nil {
			// There is no other way to tell a producer that expects no answer.
			return nil, failed
		}
		return nil, nil
	}
	return resp, nil
}

// chunk is the most records handed to Take at once.
const chunk = 512

// batch takes one batch and returns its offset. The error is a *refusal if the
// producer is to be told of it; any other ends the connection.
func (c *conn) batch(version int16, p produced) (int64, error) {
	b := c.b
	h, err := parseBatch(p.batch)
	if err != nil {
		return 0, err
	}
	plain := h.records
	if h.codec != codecNone {
		if h.codec == codecZstd && version < 7 {
			return 0, refuse(kerr.UnsupportedCompressionType, "zstd needs Produce version 7, this is %d", version)
		}
		d, err := b.decoders.get(b.ctx)
		if err != nil {
			return 0, net.ErrClosed
		}
		plain, err = d.decode(c.plain[:0], h.records, h.codec)
		if err != nil {
			b.decoders.put(d)
			if errors.Is(err, errTooLarge) {
				return 0, refuse(kerr.MessageTooLarge, "more than %d bytes when decompressed", b.o.MaxBatch)
			}
			return 0, refuse(kerr.InvalidRecord, "decompress %v: %w", h.codec, err)
		}
		// The decoder is given back with room for what it made: others wait for
		// that, and not for the handler.
		n := int64(cap(plain))
		if n = min(n, b.o.Memory); !b.batchMemory.TryAcquire(n) {
			if err := b.batchMemory.Acquire(b.ctx, n); err != nil {
				b.decoders.put(d)
				return 0, net.ErrClosed
			}
		}
		b.decoders.put(d)
		defer b.batchMemory.Release(n)
		if cap(plain) <= keptBuffer {
			c.plain = plain
		} else {
			c.plain = nil
		}
	} else if len(plain) > b.o.MaxBatch {
		return 0, refuse(kerr.MessageTooLarge, "%d bytes, at most %d", len(plain), b.o.MaxBatch)
	}

	// A batch is taken whole or not at all: it is checked to its end first.
	if err := h.check(plain); err != nil {
		return 0, err
	}
	if c.headers == nil {
		c.headers = make([]byte, 0, 256) // nil would mean that nobody wants them
	}
	var seq *sequence
	if h.producer >= 0 {
		seq = b.sequences.lock(h.producer, p.topic, p.partition)
		defer b.sequences.unlock(seq)
		switch offset, known, err := seq.check(h.epoch, h.first, h.last()); {
		case err != nil:
			return 0, err
		case known:
			b.repeated.Add(1)
			return offset, nil
		}
	}
	var size uint64
	rest := plain
	for i := 0; i < h.count; {
		c.recs, c.headers = c.recs[:0], c.headers[:0]
		for ; i < h.count && len(c.recs) < chunk; i++ {
			c.recs = append(c.recs, Record{Topic: p.topic, Partition: p.partition})
			rec := &c.recs[len(c.recs)-1]
			at := len(c.headers)
			if rest, c.headers, err = h.record(rest, i, rec, c.headers); err != nil {
				return 0, err // not reached: it was checked
			}
			rec.Headers = c.headers[at:len(c.headers):len(c.headers)]
			size += uint64(len(rec.Key) + len(rec.Value) + len(rec.Headers))
		}
		if err := b.o.Handler.Take(b.ctx, &c.p, c.recs); err != nil {
			if b.ctx.Err() != nil {
				return 0, net.ErrClosed
			}
			return 0, fmt.Errorf("%w: %w", errTake, err)
		}
	}
	clear(c.recs[:cap(c.recs)]) // they would hold on to buffers
	if cap(c.headers) > keptBuffer {
		c.headers = nil
	}
	offset := b.topics.advance(p.topic, p.partition, h.count)
	if seq != nil {
		seq.taken(h.epoch, h.first, h.last(), offset)
	}
	b.batches.Add(1)
	b.records.Add(uint64(h.count))
	b.bytes.Add(size)
	c.records.Add(uint64(h.count))
	c.bytes.Add(size)
	return offset, nil
}

// A batchHead is the head of a record batch (format 2).
type batchHead struct {
	codec     codec
	producer  int64 // -1: not idempotent
	epoch     int16
	first     int32 // sequence number of the first record
	count     int   // of records, at least 1
	timestamp int64 // of the first record
	records   []byte
}

// Where things are in the head, and its length.
const (
	batchLength    = 8  // int32, counted from 12 on
	batchMagic     = 16 // int8
	batchCRC       = 17 // uint32, of all that follows it
	batchAttrs     = 21 // int16
	batchLastDelta = 23 // int32
	batchTimestamp = 27 // int64
	batchProducer  = 43 // int64
	batchEpoch     = 51 // int16
	batchSequence  = 53 // int32
	batchCount     = 57 // int32
	batchHeadLen   = 61

	attrCodec         = 0x07
	attrAppendTime    = 0x08
	attrTransactional = 0x10
	attrControl       = 0x20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// parseBatch reads the head of a record batch, which is all there is in b, and
// checks its sum. Errors are refusals.
func parseBatch(b []byte) (h batchHead, err error) {
	if len(b) < batchMagic+1 {
		return h, refuse(kerr.InvalidRecord, "a record batch of %d bytes", len(b))
	}
	if m := int8(b[batchMagic]); m != 2 {
		return h, refuse(kerr.UnsupportedForMessageFormat, "record format %d, only 2 is taken", m)
	}
	if len(b) < batchHeadLen {
		return h, refuse(kerr.CorruptMessage, "a record batch of %d bytes", len(b))
	}
	if n := int64(int32(binary.BigEndian.Uint32(b[batchLength:]))) + 12; n < batchHeadLen || n > int64(len(b)) {
		return h, refuse(kerr.CorruptMessage, "a record batch of %d bytes, %d are there", n, len(b))
	} else if n < int64(len(b)) {
		return h, refuse(kerr.InvalidRecord, "more than one record batch: %d bytes after the first", int64(len(b))-n)
	}
	if want, got := binary.BigEndian.Uint32(b[batchCRC:]), crc32.Checksum(b[batchAttrs:], castagnoli); want != got {
		return h, refuse(kerr.CorruptMessage, "the sum is %08x, should be %08x", got, want)
	}
	attrs := binary.BigEndian.Uint16(b[batchAttrs:])
	h = batchHead{
		codec:     codec(attrs & attrCodec),
		producer:  int64(binary.BigEndian.Uint64(b[batchProducer:])),
		epoch:     int16(binary.BigEndian.Uint16(b[batchEpoch:])),
		first:     int32(binary.BigEndian.Uint32(b[batchSequence:])),
		count:     int(int32(binary.BigEndian.Uint32(b[batchCount:]))),
		timestamp: int64(binary.BigEndian.Uint64(b[batchTimestamp:])),
		records:   b[batchHeadLen:],
	}
	last := int64(int32(binary.BigEndian.Uint32(b[batchLastDelta:])))
	switch {
	case attrs&attrControl != 0:
		return h, refuse(kerr.InvalidRecord, "a control batch")
	case attrs&attrTransactional != 0:
		return h, refuse(kerr.InvalidTxnState, "transactions are not supported")
	case attrs&attrAppendTime != 0:
		return h, refuse(kerr.InvalidTimestamp, "timestamps are said to be the broker's")
	case h.codec > codecZstd:
		return h, refuse(kerr.UnsupportedCompressionType, "compression %d", h.codec)
	case h.count < 1 || last != int64(h.count)-1:
		return h, refuse(kerr.InvalidRecord, "%d records, the last is number %d", h.count, last)
	case h.producer >= 0 && (h.epoch < 0 || h.first < 0):
		return h, refuse(kerr.InvalidRecord, "producer id without epoch or sequence number")
	}
	return h, nil
}

// last is the sequence number of the last record. They go round.
func (h *batchHead) last() int32 { return int32((int64(h.first) + int64(h.count) - 1) & 0x7fffffff) }

// check goes through all records without keeping anything.
func (h *batchHead) check(plain []byte) error {
	// A record takes at least seven bytes.
	if int64(h.count)*7 > int64(len(plain)) {
		return refuse(kerr.InvalidRecord, "%d records in %d bytes", h.count, len(plain))
	}
	var r Record
	var err error
	for i := range h.count {
		if plain, _, err = h.record(plain, i, &r, nil); err != nil {
			return err
		}
	}
	if len(plain) > 0 {
		return refuse(kerr.InvalidRecord, "%d bytes after the last record", len(plain))
	}
	return nil
}

// maxHeaders is the most bytes of the headers of one record.
const maxHeaders = 1 << 20

// record reads record number i from the front of b into r, appends its headers to
// headers unless that is nil, and returns what follows. Errors are refusals.
func (h *batchHead) record(b []byte, i int, r *Record, headers []byte) (rest, grown []byte, err error) {
	size, k := binary.Varint(b)
	if k <= 0 || size < 0 || size > int64(len(b)-k) {
		return nil, headers, refuse(kerr.InvalidRecord, "record %d of %d bytes, %d are there", i, size, len(b)-max(k, 0))
	}
	rest, b = b[k+int(size):], b[k:k+int(size)]
	f := fields{b: b}
	f.skip(1) // attributes, all unused
	r.Timestamp = h.timestamp + f.varint()
	if h.timestamp < 0 {
		r.Timestamp = -1
	}
	if delta := f.varint(); delta != int64(i) && !f.bad {
		return nil, headers, refuse(kerr.InvalidRecord, "record %d has number %d", i, delta)
	}
	r.Key, r.KeyNull = f.bytes()
	r.Value, r.ValueNull = f.bytes()
	n := f.varint()
	if n < 0 || n > int64(len(f.b)) {
		f.bad = true
	}
	if len(f.b) > maxHeaders {
		return nil, headers, refuse(kerr.InvalidRecord, "record %d: headers of %d bytes, at most %d", i, len(f.b), maxHeaders)
	}
	for ; n > 0 && !f.bad; n-- {
		name, null := f.bytes()
		if null {
			f.bad = true
		}
		value, null := f.bytes()
		if headers != nil && !f.bad {
			if null {
				value = nil
			} else if value == nil {
				value = empty
			}
			headers = record.AppendMore(headers, name, value)
		}
	}
	if f.bad || len(f.b) > 0 {
		return nil, headers, refuse(kerr.InvalidRecord, "record %d: its parts do not fit its %d bytes", i, size)
	}
	return rest, headers, nil
}

var empty = []byte{}

// fields reads the parts of a record; bad stays.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) skip(n int) {
	if len(f.b) < n {
		f.bad, f.b = true, nil
		return
	}
	f.b = f.b[n:]
}

func (f *fields) varint() int64 {
	v, k := binary.Varint(f.b)
	if k <= 0 {
		f.bad, f.b = true, nil
		return 0
	}
	f.b = f.b[k:]
	return v
}

// bytes reads a length and that many bytes. A length of -1 is null.
func (f *fields) bytes() (b []byte, null bool) {
	n := f.varint()
	if n == -1 {
		return nil, true
	}
	if n < 0 || n > int64(len(f.b)) {
		f.bad, f.b = true, nil
		return nil, false
	}
	b = f.b[:n:n]
	f.b = f.b[n:]
	return b, false
}

package intake

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/bmpha/bmpha/pkg/record"
)

// A tape is a connection whose client has said all that it has to say.
type tape struct {
	io.Reader
	net.Conn
}

func (t tape) Read(b []byte) (int, error)        { return t.Reader.Read(b) }
func (tape) SetReadDeadline(time.Time) error     { return nil }
func (tape) SetWriteDeadline(time.Time) error    { return nil }
func (tape) LocalAddr() net.Addr                 { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9093} }
func (t tape) Write(b []byte) (n int, err error) { return len(b), nil }

// A tally is a handler that counts, and looks at what it is given.
type tally struct {
	t       testing.TB
	records int
	bytes   int
}

func (*tally) Connected(*Producer)           {}
func (*tally) Disconnected(*Producer, error) {}

func (y *tally) Take(_ context.Context, _ *Producer, recs []Record) error {
	y.records += len(recs)
	for i := range recs {
		r := &recs[i]
		y.bytes += len(r.Value)
		if y.t == nil {
			continue
		}
		if r.KeyNull && len(r.Key) > 0 || r.ValueNull && len(r.Value) > 0 || !legal(r.Topic) {
			y.t.Errorf("record %s", describe(recs[i:i+1]))
		}
		if err := record.EachMore(r.Headers, func(_, _ []byte) {}); err != nil {
			y.t.Errorf("headers % x: %v", r.Headers, err)
		}
		b := AppendEntry(nil, r)
		again, err := ParseEntry(b)
		if err != nil || describe([]Record{again}) != describe(recs[i:i+1]) {
			y.t.Errorf("record %s became %s, %v", describe(recs[i:i+1]), describe([]Record{again}), err)
		}
	}
	return nil
}

// desk is a broker that is not served, and a connection of it to put questions to.
func desk(t testing.TB, h Handler) (*Broker, *conn) {
	t.Helper()
	b, err := Listen(context.Background(), Options{
		Listen: []string{"127.0.0.1:0"}, Handler: h, Log: slog.New(slog.DiscardHandler), MaxRequest: 1 << 20, MaxBatch: 1 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b, &conn{b: b, c: tape{}, p: Producer{ID: 1, Addr: netip.MustParseAddrPort("127.0.0.1:1")}}
}

// FuzzConnection: whatever a client sends, the broker answers or ends the
// connection, and has all its memory back then.
func FuzzConnection(f *testing.F) {
	var all []byte
	for _, o := range offered {
		for _, v := range []int16{o.from, o.to} {
			req := o.key.Request()
			req.SetVersion(v)
			f.Add(frame(req, 1))
			all = append(all, frame(req, 2)...)
		}
	}
	name := "t"
	meta := kmsg.NewPtrMetadataRequest()
	meta.Version, meta.Topics = 12, []kmsg.MetadataRequestTopic{{Topic: &name}, {TopicID: topicID("t")}}
	f.Add(frame(meta, 1))
	for _, v := range []int16{2, 3, 9, 12} {
		for _, batch := range [][]byte{plain("a", "b").bytes(), with(1, 0, 0, "a").bytes()} {
			all = append(all, frame(produceRequest(v, -1, "t", 0, batch), 3)...)
			f.Add(frame(produceRequest(v, 0, "t", 0, batch), 3))
		}
	}
	f.Add(all)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	y := &tally{}
	b, _ := desk(f, y)
	f.Fuzz(func(t *testing.T, in []byte) {
		y.t = t
		c := &conn{b: b, p: Producer{Addr: netip.MustParseAddrPort("127.0.0.1:1")}}
		tp := tape{Reader: bytes.NewReader(in)}
		c.c = tp
		var out bytes.Buffer
		if err := c.serve(tp, &out); err == nil {
			t.Error("no error at the end")
		}
		for o := out.Bytes(); len(o) > 0; {
			n := int(binary.BigEndian.Uint32(o))
			if n < 4 || n > len(o)-4 {
				t.Fatalf("an answer of %d bytes, %d are there", n, len(o)-4)
			}
			o = o[4+n:]
		}
		if !b.requestMemory.TryAcquire(b.o.Memory) || !b.batchMemory.TryAcquire(b.o.Memory) {
			t.Fatal("memory is not given back")
		}
		b.requestMemory.Release(b.o.Memory)
		b.batchMemory.Release(b.o.Memory)
		if len(b.decoders.free) != len(b.decoders.all) {
			t.Fatal("a decoder is not given back")
		}
	})
}

// FuzzBatch: a batch is taken whole, with as many records as it says, or refused
// with nothing taken. Length and sum are set right, so that they do not hide the
// rest.
func FuzzBatch(f *testing.F) {
	var recs []byte
	for i := range 3 {
		recs = append(recs, rawRecord(i, []byte("k"), bytes.Repeat([]byte("v"), 50), "h", "x", "n", "null")...)
	}
	f.Add(plain("a", "b").bytes())
	f.Add(with(1, 2, 3, "a", "b").bytes())
	for c := codecNone; c <= codecZstd; c++ {
		b := recs
		if c != codecNone {
			b = compressed(f, c, recs)
		}
		f.Add(spec{producer: -1, attrs: int16(c), count: 3, records: b}.bytes())
	}
	y := &tally{}
	b, c := desk(f, y)
	f.Fuzz(func(t *testing.T, batch []byte) {
		if len(batch) < batchHeadLen {
			return
		}
		batch = bytes.Clone(batch)
		binary.BigEndian.PutUint32(batch[batchLength:], uint32(len(batch)-12))
		batch[batchMagic] = 2
		binary.BigEndian.PutUint32(batch[batchCRC:], crc32.Checksum(batch[batchAttrs:], castagnoli))
		b.sequences = newSequences(10)
		y.t, y.records = t, 0
		_, err := c.batch(9, produced{topic: []byte("t"), batch: batch})
		var r *refusal
		switch {
		case err == nil && y.records != int(binary.BigEndian.Uint32(batch[batchCount:])):
			t.Fatalf("%d records taken", y.records)
		case err != nil && y.records > 0:
			t.Fatalf("%d records taken and then: %v", y.records, err)
		case err != nil && !errors.As(err, &r):
			t.Fatalf("not a refusal: %v", err)
		}
	})
}

// BenchmarkBroker is the broker's own work: requests of 1000 records each, without
// a network.
func BenchmarkBroker(b *testing.B) {
	const n = 1000
	var recs []byte
	size := 0
	for i := range n {
		v := fmt.Appendf(nil, "%s %d", routeJSON, i)
		size += len(v)
		recs = append(recs, rawRecord(i, []byte("192_0_2_1"), v)...)
	}
	for c := codecNone; c <= codecZstd; c++ {
		b.Run(c.String(), func(b *testing.B) {
			packed := recs
			if c != codecNone {
				packed = compressed(b, c, recs)
			}
			req := frame(produceRequest(9, -1, "t", 0, spec{producer: -1, attrs: int16(c), count: n, records: packed}.bytes()), 1)[4:]
			y := &tally{}
			_, conn := desk(b, y)
			var out []byte
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				var err error
				if out, err = conn.handle(req, out[:0]); err != nil {
					b.Fatal(err)
				}
			}
			if y.records != b.N*n {
				b.Fatalf("%d records in %d requests", y.records, b.N)
			}
			b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "records/s")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/record")
		})
	}
}

// BenchmarkFranz is a whole producer in front of a broker, both in this process.
func BenchmarkFranz(b *testing.B) {
	y := &tally{}
	_, addr, _ := serve(b, Options{Handler: y})
	cl, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.DefaultProduceTopic("t"), kgo.ProducerBatchCompression(kgo.NoCompression()))
	if err != nil {
		b.Fatal(err)
	}
	defer cl.Close()
	value := []byte(routeJSON)
	b.SetBytes(int64(len(value)))
	for b.Loop() {
		cl.Produce(context.Background(), &kgo.Record{Value: value}, nil)
	}
	if err := cl.Flush(context.Background()); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

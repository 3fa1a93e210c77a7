package intake

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"net"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A client speaks to a broker request by request.
type client struct {
	t  testing.TB
	c  net.Conn
	id int32
}

func dial(t testing.TB, addr string) *client {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return &client{t: t, c: c}
}

// frame returns a request as it is on the wire.
func frame(req kmsg.Request, id int32) []byte {
	f := kmsg.NewRequestFormatter(kmsg.FormatterClientID("test"))
	return f.AppendRequest(nil, req, id)
}

func (c *client) send(req kmsg.Request) int32 {
	c.t.Helper()
	c.id++
	if _, err := c.c.Write(frame(req, c.id)); err != nil {
		c.t.Fatal(err)
	}
	return c.id
}

// receive reads an answer into resp, which must be of the request with that id.
func (c *client) receive(id int32, resp kmsg.Response) {
	c.t.Helper()
	var size [4]byte
	if _, err := io.ReadFull(c.c, size[:]); err != nil {
		c.t.Fatalf("answer %d: %v", id, err)
	}
	b := make([]byte, binary.BigEndian.Uint32(size[:]))
	if _, err := io.ReadFull(c.c, b); err != nil {
		c.t.Fatal(err)
	}
	if got := int32(binary.BigEndian.Uint32(b)); got != id {
		c.t.Fatalf("answer %d, want %d", got, id)
	}
	b = b[4:]
	if resp.IsFlexible() && resp.Key() != int16(kmsg.ApiVersions) {
		b = b[1:]
	}
	if err := resp.ReadFrom(b); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) ask(req kmsg.Request) kmsg.Response {
	c.t.Helper()
	resp := req.ResponseKind()
	c.receive(c.send(req), resp)
	return resp
}

func (c *client) versions(v int16) *kmsg.ApiVersionsResponse {
	c.t.Helper()
	req := kmsg.NewPtrApiVersionsRequest()
	req.Version, req.ClientSoftwareName, req.ClientSoftwareVersion = v, "soft", "1.2"
	return c.ask(req).(*kmsg.ApiVersionsResponse)
}

// ended waits for the broker to end the connection without another byte.
func (c *client) ended() {
	c.t.Helper()
	if n, err := io.Copy(io.Discard, c.c); n > 0 {
		c.t.Fatalf("%d bytes instead of the end", n)
	} else if ne, ok := err.(net.Error); ok && ne.Timeout() {
		c.t.Fatal("the connection was not ended")
	}
}

// A spec describes a record batch; edit changes its bytes before the sum is made.
type spec struct {
	producer int64
	epoch    int16
	first    int32
	attrs    int16
	time     int64
	values   []string
	records  []byte // instead of values
	count    int32  // with records
	edit     func(b []byte)
}

// plain is a batch without idempotence.
func plain(values ...string) spec { return spec{producer: -1, epoch: -1, first: -1, values: values} }

// with is a batch of an idempotent producer.
func with(producer int64, epoch int16, first int32, values ...string) spec {
	return spec{producer: producer, epoch: epoch, first: first, values: values}
}

func (s spec) bytes() []byte {
	recs, count := s.records, s.count
	if recs == nil {
		count = int32(len(s.values))
		for i, v := range s.values {
			recs = append(recs, rawRecord(i, []byte("k"), []byte(v))...)
		}
	}
	b := make([]byte, batchHeadLen, batchHeadLen+len(recs))
	b[batchMagic] = 2
	binary.BigEndian.PutUint16(b[batchAttrs:], uint16(s.attrs))
	binary.BigEndian.PutUint32(b[batchLastDelta:], uint32(count-1))
	binary.BigEndian.PutUint64(b[batchTimestamp:], uint64(s.time))
	binary.BigEndian.PutUint64(b[batchProducer:], uint64(s.producer))
	binary.BigEndian.PutUint16(b[batchEpoch:], uint16(s.epoch))
	binary.BigEndian.PutUint32(b[batchSequence:], uint32(s.first))
	binary.BigEndian.PutUint32(b[batchCount:], uint32(count))
	b = append(b, recs...)
	binary.BigEndian.PutUint32(b[batchLength:], uint32(len(b)-12))
	if s.edit != nil {
		s.edit(b)
	}
	binary.BigEndian.PutUint32(b[batchCRC:], crc32.Checksum(b[batchAttrs:], castagnoli))
	return b
}

// rawRecord encodes a record without headers; a nil key or value is null.
func rawRecord(i int, key, value []byte, headers ...string) []byte {
	body := []byte{0}
	body = kbin.AppendVarlong(body, int64(i)) // one millisecond after the other
	body = kbin.AppendVarint(body, int32(i))
	for _, x := range [][]byte{key, value} {
		if x == nil {
			body = kbin.AppendVarint(body, -1)
		} else {
			body = kbin.AppendVarintBytes(body, x)
		}
	}
	body = kbin.AppendVarint(body, int32(len(headers)/2))
	for j := 0; j < len(headers); j += 2 {
		body = kbin.AppendVarintString(body, headers[j])
		if headers[j+1] == "null" {
			body = kbin.AppendVarint(body, -1)
		} else {
			body = kbin.AppendVarintString(body, headers[j+1])
		}
	}
	return append(kbin.AppendVarint(nil, int32(len(body))), body...)
}

func produceRequest(version, acks int16, topic string, partition int32, batch []byte) *kmsg.ProduceRequest {
	req := kmsg.NewPtrProduceRequest()
	req.Version, req.Acks = version, acks
	t := kmsg.NewProduceRequestTopic()
	t.Topic = topic
	p := kmsg.NewProduceRequestTopicPartition()
	p.Partition, p.Records = partition, batch
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	return req
}

// produce returns the answer for the one partition asked for.
func (c *client) produce(req *kmsg.ProduceRequest) kmsg.ProduceResponseTopicPartition {
	c.t.Helper()
	resp := c.ask(req).(*kmsg.ProduceResponse)
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 || resp.Topics[0].Topic != req.Topics[0].Topic {
		c.t.Fatalf("answer %+v", resp)
	}
	return resp.Topics[0].Partitions[0]
}

package intake

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/bmpha/bmpha/pkg/record"
)

func TestApiVersions(t *testing.T) {
	k := &keeper{}
	_, addr, _ := serve(t, Options{Handler: k})
	c := dial(t, addr)
	for v := int16(0); v <= 4; v++ {
		resp := c.versions(v)
		if resp.ErrorCode != 0 || len(resp.ApiKeys) != len(offered) {
			t.Errorf("version %d: %+v", v, resp)
		}
		for i, o := range offered {
			if a := resp.ApiKeys[i]; a.ApiKey != int16(o.key) || a.MinVersion != o.from || a.MaxVersion != o.to {
				t.Errorf("version %d: %+v, offered %+v", v, a, o)
			}
		}
	}
	// A version of the future is answered in version 0.
	req := kmsg.NewPtrApiVersionsRequest()
	req.Version = 4
	b := frame(req, 77)
	binary.BigEndian.PutUint16(b[6:], 99)
	if _, err := c.c.Write(b); err != nil {
		t.Fatal(err)
	}
	resp := kmsg.NewPtrApiVersionsResponse()
	c.receive(77, resp)
	if resp.ErrorCode != kerr.UnsupportedVersion.Code || len(resp.ApiKeys) != len(offered) {
		t.Errorf("version 99: %+v", resp)
	}
	until(t, "the producer is known", func() bool { return len(k.producers()) == 1 })
	// The first request was of version 0, which says nothing of the software.
	if p := k.producers()[0]; p.ClientID != "test" || p.ID != 1 || p.Software != "" || !p.Addr.IsValid() {
		t.Errorf("producer %+v", p)
	}
	c = dial(t, addr)
	c.versions(3)
	for _, p := range k.producers() {
		if p.ID == 2 && p.Software != "soft 1.2" {
			t.Errorf("producer %+v", p)
		}
	}
}

func TestMetadata(t *testing.T) {
	for _, advertise := range []string{"", "broker.example:9999"} {
		_, addr, _ := serve(t, Options{Handler: &keeper{}, Partitions: 2, Advertise: advertise})
		c := dial(t, addr)
		for v := int16(0); v <= 13; v++ {
			req := kmsg.NewPtrMetadataRequest()
			req.Version = v
			for _, name := range []string{"known", "no/good", "..", strings.Repeat("x", 249), strings.Repeat("x", 250), ""} {
				topic := kmsg.NewMetadataRequestTopic()
				topic.Topic = &name
				req.Topics = append(req.Topics, topic)
			}
			resp := c.ask(req).(*kmsg.MetadataResponse)
			if len(resp.Brokers) != 1 || resp.Brokers[0].NodeID != 0 || len(resp.Topics) != 6 {
				t.Fatalf("version %d: %+v", v, resp)
			}
			want := addr
			if advertise != "" {
				want = advertise
			}
			if got := fmt.Sprintf("%s:%d", resp.Brokers[0].Host, resp.Brokers[0].Port); got != want {
				t.Errorf("version %d: broker at %s, want %s", v, got, want)
			}
			for i, topic := range resp.Topics {
				code, parts := int16(0), 2
				if i != 0 && i != 3 {
					code, parts = kerr.InvalidTopicException.Code, 0
				}
				if topic.ErrorCode != code || len(topic.Partitions) != parts || *topic.Topic != *req.Topics[i].Topic {
					t.Errorf("version %d: topic %d: %+v", v, i, topic)
				}
			}
			if v >= 10 && resp.Topics[0].TopicID != topicID("known") {
				t.Errorf("version %d: topic id %x", v, resp.Topics[0].TopicID)
			}

			// Null, and for version 0 an empty list, is every topic that was seen.
			req.Topics = nil
			resp = c.ask(req).(*kmsg.MetadataResponse)
			if len(resp.Topics) != 2 || *resp.Topics[0].Topic != "known" {
				t.Errorf("version %d: all: %+v", v, resp.Topics)
			}
			if v > 0 {
				req.Topics = []kmsg.MetadataRequestTopic{}
				if resp = c.ask(req).(*kmsg.MetadataResponse); len(resp.Topics) != 0 {
					t.Errorf("version %d: none: %+v", v, resp.Topics)
				}
			}
			if v >= 12 {
				for name, code := range map[string]int16{"known": 0, "unheard": kerr.UnknownTopicID.Code} {
					topic := kmsg.NewMetadataRequestTopic()
					topic.TopicID = topicID(name)
					req.Topics = []kmsg.MetadataRequestTopic{topic}
					if resp = c.ask(req).(*kmsg.MetadataResponse); resp.Topics[0].ErrorCode != code || resp.Topics[0].TopicID != topic.TopicID {
						t.Errorf("version %d: topic %s by id: %+v", v, name, resp.Topics[0])
					}
				}
			}
		}
	}
}

func TestInitProducerID(t *testing.T) {
	_, addr, _ := serve(t, Options{Handler: &keeper{}})
	c := dial(t, addr)
	last := int64(0)
	for v := int16(0); v <= 5; v++ {
		req := kmsg.NewPtrInitProducerIDRequest()
		req.Version = v
		resp := c.ask(req).(*kmsg.InitProducerIDResponse)
		if resp.ErrorCode != 0 || resp.ProducerID <= last || resp.ProducerEpoch != 0 {
			t.Errorf("version %d: %+v after %d", v, resp, last)
		}
		last = resp.ProducerID
		if v >= 3 {
			req.ProducerID, req.ProducerEpoch = last, 6
			if resp := c.ask(req).(*kmsg.InitProducerIDResponse); resp.ErrorCode != 0 || resp.ProducerID != last || resp.ProducerEpoch != 7 {
				t.Errorf("version %d: next epoch: %+v", v, resp)
			}
			// No epochs are left.
			req.ProducerEpoch = 1<<15 - 1
			if resp := c.ask(req).(*kmsg.InitProducerIDResponse); resp.ErrorCode != 0 || resp.ProducerID == last || resp.ProducerEpoch != 0 {
				t.Errorf("version %d: after the last epoch: %+v", v, resp)
			} else {
				last = resp.ProducerID
			}
		}
		req.TransactionalID = kmsg.StringPtr("tx")
		if resp := c.ask(req).(*kmsg.InitProducerIDResponse); resp.ErrorCode != kerr.TransactionalIDAuthorizationFailed.Code {
			t.Errorf("version %d: transactional: %+v", v, resp)
		}
	}
}

// TestRefusedRequests: what is no producer's business has a clear answer.
func TestRefusedRequests(t *testing.T) {
	_, addr, _ := serve(t, Options{Handler: &keeper{}})
	c := dial(t, addr)
	for v := int16(0); v <= 2; v++ {
		for kind, code := range map[int8]int16{0: kerr.GroupAuthorizationFailed.Code, 1: kerr.TransactionalIDAuthorizationFailed.Code} {
			req := kmsg.NewPtrFindCoordinatorRequest()
			req.Version, req.CoordinatorKey, req.CoordinatorType = v, "x", kind
			if v == 0 && kind == 1 {
				continue
			}
			if resp := c.ask(req).(*kmsg.FindCoordinatorResponse); resp.ErrorCode != code {
				t.Errorf("FindCoordinator version %d of type %d: %+v", v, kind, resp)
			}
		}
	}
	for v := int16(0); v <= 11; v++ {
		req := kmsg.NewPtrFetchRequest()
		req.Version = v
		topic := kmsg.NewFetchRequestTopic()
		topic.Topic, topic.Partitions = "t", []kmsg.FetchRequestTopicPartition{kmsg.NewFetchRequestTopicPartition()}
		req.Topics = append(req.Topics, topic)
		resp := c.ask(req).(*kmsg.FetchResponse)
		if len(resp.Topics) != 1 || resp.Topics[0].Partitions[0].ErrorCode != kerr.TopicAuthorizationFailed.Code {
			t.Errorf("Fetch version %d: %+v", v, resp)
		}
	}
}

// TestProduceVersions: records come through in each version from 3 on, and are
// refused before.
func TestProduceVersions(t *testing.T) {
	k := &keeper{}
	b, addr, _ := serve(t, Options{Handler: k})
	c := dial(t, addr)
	for v := int16(0); v <= 12; v++ {
		got := c.produce(produceRequest(v, -1, "t", 0, plain("a", "b").bytes()))
		if v < 3 {
			if got.ErrorCode != kerr.UnsupportedVersion.Code || got.BaseOffset != -1 {
				t.Errorf("version %d: %+v", v, got)
			}
			continue
		}
		if got.ErrorCode != 0 || got.BaseOffset != int64(v-3)*2 || got.LogAppendTime != -1 {
			t.Errorf("version %d: %+v", v, got)
		}
	}
	if n := len(k.all()); n != 20 {
		t.Errorf("%d records", n)
	}
	until(t, "the last request is counted", func() bool { return b.Status().Requests == 13 })
	if s := b.Status(); s.Records != 20 || s.Batches != 10 || s.Bytes != 40 || s.Rejected != 3 || s.Requests != 13 || s.Connections != 1 ||
		len(s.Producers) != 1 || s.Producers[0].Records != 20 || s.Producers[0].ClientID != "test" {
		t.Errorf("status %+v", s)
	}
}

// TestRecords: every part of a record arrives as it was, null or empty.
func TestRecords(t *testing.T) {
	k := &keeper{}
	_, addr, _ := serve(t, Options{Handler: k})
	c := dial(t, addr)
	var recs []byte
	recs = append(recs, rawRecord(0, nil, nil)...)
	recs = append(recs, rawRecord(1, []byte{}, []byte{})...)
	recs = append(recs, rawRecord(2, []byte("k"), []byte("v"), "h", "x", "", "", "h", "null")...)
	s := spec{producer: -1, records: recs, count: 3, time: 1000}
	if got := c.produce(produceRequest(9, 1, "t", 0, s.bytes())); got.ErrorCode != 0 {
		t.Fatalf("%+v", got)
	}
	s.time = -1
	if got := c.produce(produceRequest(9, 1, "t", 0, s.bytes())); got.ErrorCode != 0 {
		t.Fatalf("%+v", got)
	}
	headers := record.AppendMore(record.AppendMore(record.AppendMore(nil, []byte("h"), []byte("x")), nil, empty), []byte("h"), nil)
	want := ""
	for _, at := range []int64{1000, -1} {
		for i := range int64(3) {
			r := Record{Topic: []byte("t"), Timestamp: at}
			if at >= 0 {
				r.Timestamp += i
			}
			switch i {
			case 0:
				r.KeyNull, r.ValueNull = true, true
			case 2:
				r.Key, r.Value, r.Headers = []byte("k"), []byte("v"), headers
			}
			want += describe([]Record{r})
		}
	}
	if got := describe(k.all()); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// compressed is how each codec packs b.
func compressed(t testing.TB, c codec, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var err error
	switch c {
	case codecGzip:
		w := gzip.NewWriter(&out)
		_, err = w.Write(b)
		err = errors.Join(err, w.Close())
	case codecSnappy:
		return s2.EncodeSnappy(nil, b)
	case codecLZ4:
		w := lz4.NewWriter(&out)
		_, err = w.Write(b)
		err = errors.Join(err, w.Close())
	case codecZstd:
		w, _ := zstd.NewWriter(nil)
		defer w.Close()
		return w.EncodeAll(b, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestRefusedBatches: a batch with a fault is refused by name, and nothing of it is
// taken; the connection goes on.
func TestRefusedBatches(t *testing.T) {
	k := &keeper{}
	_, addr, log := serve(t, Options{Handler: k, MaxBatch: 10_000})
	c := dial(t, addr)
	good := plain("a", "b")
	edited := func(f func(b []byte)) []byte { s := good; s.edit = f; return s.bytes() }
	attrs := func(a int16) []byte { s := good; s.attrs = a; return s.bytes() }
	raw := func(count int32, recs []byte) []byte {
		return spec{producer: -1, records: recs, count: count}.bytes()
	}
	packed := func(c codec, recs []byte) []byte {
		return spec{producer: -1, attrs: int16(c), count: 1, records: recs}.bytes()
	}
	big := rawRecord(0, nil, make([]byte, 20_000))
	tests := map[string]struct {
		batch   []byte
		version int16 // 9
		acks    int16
		topic   string // t
		part    int32
		want    *kerr.Error
	}{
		"null":                 {batch: nil, want: kerr.InvalidRecord},
		"short":                {batch: good.bytes()[:60], want: kerr.CorruptMessage},
		"cut":                  {batch: good.bytes()[:70], want: kerr.CorruptMessage},
		"length":               {batch: edited(func(b []byte) { binary.BigEndian.PutUint32(b[batchLength:], 1<<31) }), want: kerr.CorruptMessage},
		"two batches":          {batch: append(good.bytes(), good.bytes()...), want: kerr.InvalidRecord},
		"old format":           {batch: edited(func(b []byte) { b[batchMagic] = 1 }), want: kerr.UnsupportedForMessageFormat},
		"sum":                  {batch: append(good.bytes()[:len(good.bytes())-1], 'x'), want: kerr.CorruptMessage},
		"control":              {batch: attrs(attrControl), want: kerr.InvalidRecord},
		"transactional":        {batch: attrs(attrTransactional), want: kerr.InvalidTxnState},
		"append time":          {batch: attrs(attrAppendTime), want: kerr.InvalidTimestamp},
		"codec":                {batch: attrs(5), want: kerr.UnsupportedCompressionType},
		"no records":           {batch: raw(0, []byte{}), want: kerr.InvalidRecord},
		"negative count":       {batch: raw(-5, []byte{1}), want: kerr.InvalidRecord},
		"huge count":           {batch: raw(1<<31-1, rawRecord(0, nil, nil)), want: kerr.InvalidRecord},
		"last delta":           {batch: edited(func(b []byte) { b[batchLastDelta+3] = 9 }), want: kerr.InvalidRecord},
		"one record more":      {batch: raw(1, append(rawRecord(0, nil, nil), rawRecord(1, nil, nil)...)), want: kerr.InvalidRecord},
		"record number":        {batch: raw(1, rawRecord(1, nil, nil)), want: kerr.InvalidRecord},
		"record cut":           {batch: raw(1, rawRecord(0, nil, []byte("0123456789"))[:12]), want: kerr.InvalidRecord},
		"record length":        {batch: raw(1, append([]byte{0xff, 0xff, 0xff, 0xff, 0x0f}, rawRecord(0, nil, nil)...)), want: kerr.InvalidRecord},
		"key length":           {batch: raw(1, []byte{14, 0, 0, 0, 0x7e, 1, 0, 0}), want: kerr.InvalidRecord},
		"headers":              {batch: raw(1, []byte{14, 0, 0, 0, 1, 1, 0x7e, 0}), want: kerr.InvalidRecord},
		"null header name":     {batch: raw(1, []byte{16, 0, 0, 0, 1, 1, 2, 1, 1}), want: kerr.InvalidRecord},
		"no sequence":          {batch: with(5, 0, -1, "a").bytes(), want: kerr.InvalidRecord},
		"no epoch":             {batch: with(5, -1, 0, "a").bytes(), want: kerr.InvalidRecord},
		"not gzip":             {batch: packed(codecGzip, []byte("nonsense")), want: kerr.InvalidRecord},
		"not snappy":           {batch: packed(codecSnappy, []byte("nonsense")), want: kerr.InvalidRecord},
		"not lz4":              {batch: packed(codecLZ4, []byte("nonsense")), want: kerr.InvalidRecord},
		"not zstd":             {batch: packed(codecZstd, []byte("nonsense")), want: kerr.InvalidRecord},
		"snappy blocks":        {batch: packed(codecSnappy, append(append([]byte{}, framing...), make([]byte, 11)...)), want: kerr.InvalidRecord},
		"snappy claim":         {batch: packed(codecSnappy, []byte{0x80, 0x40, 0}), want: kerr.InvalidRecord},
		"large":                {batch: packed(codecNone, big), want: kerr.MessageTooLarge},
		"large in gzip":        {batch: packed(codecGzip, compressed(t, codecGzip, big)), want: kerr.MessageTooLarge},
		"large in snappy":      {batch: packed(codecSnappy, compressed(t, codecSnappy, big)), want: kerr.MessageTooLarge},
		"large in lz4":         {batch: packed(codecLZ4, compressed(t, codecLZ4, big)), want: kerr.MessageTooLarge},
		"large in zstd":        {batch: packed(codecZstd, compressed(t, codecZstd, big)), want: kerr.MessageTooLarge},
		"zstd before its time": {batch: packed(codecZstd, compressed(t, codecZstd, rawRecord(0, nil, nil))), version: 6, want: kerr.UnsupportedCompressionType},
		"topic":                {batch: good.bytes(), topic: "a b", want: kerr.InvalidTopicException},
		"partition":            {batch: good.bytes(), part: 1, want: kerr.UnknownTopicOrPartition},
		"negative partition":   {batch: good.bytes(), part: -1, want: kerr.UnknownTopicOrPartition},
		"acks":                 {batch: good.bytes(), acks: 2, want: kerr.InvalidRequiredAcks},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := &client{t: t, c: c.c, id: c.id}
			if tt.version == 0 {
				tt.version = 9
			}
			if tt.topic == "" {
				tt.topic = "t"
			}
			if tt.acks == 0 {
				tt.acks = -1
			}
			got := c.produce(produceRequest(tt.version, tt.acks, tt.topic, tt.part, tt.batch))
			if got.ErrorCode != tt.want.Code || got.BaseOffset != -1 {
				t.Errorf("answer %+v (%v), want %v", got, kerr.ErrorForCode(got.ErrorCode), tt.want)
			}
			if tt.version >= 8 && (got.ErrorMessage == nil || *got.ErrorMessage == "") {
				t.Error("without a reason")
			}
		})
	}
	tx := produceRequest(9, -1, "t", 0, good.bytes())
	tx.TransactionID = kmsg.StringPtr("tx")
	if got := c.produce(tx); got.ErrorCode != kerr.TransactionalIDAuthorizationFailed.Code {
		t.Errorf("transactional: %+v", got)
	}
	if n := len(k.all()); n > 0 {
		t.Errorf("%d records taken", n)
	}
	if got := c.produce(produceRequest(9, -1, "t", 0, good.bytes())); got.ErrorCode != 0 {
		t.Errorf("a good one after all: %+v", got)
	}
	// There were more of them than lines that are allowed in a second.
	if s := log.String(); !strings.Contains(s, "batch refused") || strings.Count(s, "\n") > 20 {
		t.Errorf("log of %d lines", strings.Count(s, "\n"))
	}
}

// TestSnappyBlocks: the framing of Java's library.
func TestSnappyBlocks(t *testing.T) {
	k := &keeper{}
	_, addr, _ := serve(t, Options{Handler: k})
	var want, framed []byte
	framed = append(append(framed, framing...), 0, 0, 0, 1, 0, 0, 0, 1)
	for i := range 3 {
		part := rawRecord(i, nil, bytes.Repeat([]byte{'a' + byte(i)}, 5000))
		block := s2.EncodeSnappy(nil, part)
		framed = binary.BigEndian.AppendUint32(framed, uint32(len(block)))
		framed = append(framed, block...)
		want = append(want, byte('a'+i))
	}
	s := spec{producer: -1, attrs: int16(codecSnappy), count: 3, records: framed}
	if got := dial(t, addr).produce(produceRequest(9, -1, "t", 0, s.bytes())); got.ErrorCode != 0 {
		t.Fatalf("%+v", got)
	}
	for i, r := range k.all() {
		if len(r.Value) != 5000 || r.Value[0] != want[i] || r.Value[4999] != want[i] {
			t.Errorf("record %d", i)
		}
	}
}

// TestAcksNone: no answer, but the records; a fault ends the connection.
func TestAcksNone(t *testing.T) {
	k := &keeper{}
	_, addr, _ := serve(t, Options{Handler: k})
	c := dial(t, addr)
	c.send(produceRequest(7, 0, "t", 0, plain("a").bytes()))
	c.send(produceRequest(9, 0, "t", 0, plain("b").bytes()))
	c.versions(3) // the next answer is of this one
	if n := len(k.all()); n != 2 {
		t.Errorf("%d records", n)
	}
	c.send(produceRequest(9, 0, "t", 5, plain("c").bytes()))
	c.ended()
}

// TestPipeline: answers come in the order of the requests, each when its records
// are taken.
func TestPipeline(t *testing.T) {
	k := &keeper{block: make(chan struct{})}
	_, addr, _ := serve(t, Options{Handler: k})
	c := dial(t, addr)
	for i := range 20 {
		c.send(produceRequest(9, -1, "t", 0, plain(fmt.Sprint(i)).bytes()))
	}
	go func() {
		for range 20 {
			k.block <- struct{}{}
		}
	}()
	for i := range int32(20) {
		resp := kmsg.NewPtrProduceResponse()
		resp.Version = 9
		c.receive(i+1, resp)
		if p := resp.Topics[0].Partitions[0]; p.ErrorCode != 0 || p.BaseOffset != int64(i) {
			t.Fatalf("answer %d: %+v", i, p)
		}
		if n := len(k.all()); n <= int(i) {
			t.Fatalf("%d records taken and %d answered", n, i+1)
		}
	}
}

// TestLargeBatch: a batch goes to Take in parts, in order.
func TestLargeBatch(t *testing.T) {
	k := &keeper{}
	_, addr, _ := serve(t, Options{Handler: k})
	values := make([]string, 3*chunk+1)
	for i := range values {
		values[i] = fmt.Sprint(i)
	}
	if got := dial(t, addr).produce(produceRequest(9, -1, "t", 0, plain(values...).bytes())); got.ErrorCode != 0 {
		t.Fatalf("%+v", got)
	}
	for i, r := range k.all() {
		if string(r.Value) != values[i] {
			t.Fatalf("record %d is %s", i, r.Value)
		}
	}
	if n := k.entered(); n != 4 || len(k.all()) != len(values) {
		t.Errorf("%d records in %d calls", len(k.all()), n)
	}
}

// TestIdempotence is the whole of it over the wire; see TestSequence for the rules.
func TestIdempotence(t *testing.T) {
	k := &keeper{}
	b, addr, _ := serve(t, Options{Handler: k, Partitions: 2})
	c, d := dial(t, addr), dial(t, addr)
	steps := []struct {
		c      *client
		part   int32
		batch  spec
		code   int16
		offset int64
	}{
		{c, 0, with(7, 0, 0, "a", "b"), 0, 0},
		{c, 0, with(7, 0, 2, "c"), 0, 2},
		{d, 0, with(7, 0, 0, "a", "b"), 0, 0}, // over another connection
		{d, 0, with(7, 0, 2, "c"), 0, 2},
		{d, 0, with(7, 0, 9, "x"), kerr.OutOfOrderSequenceNumber.Code, -1},
		{d, 1, with(7, 0, 0, "d"), 0, 0}, // another partition
		{c, 0, with(8, 0, 0, "e"), 0, 3}, // another producer
		{c, 0, with(9, 3, 1000, "f"), 0, 4},
		{c, 0, with(7, 1, 0, "g"), 0, 5},
		{c, 0, with(7, 0, 3, "x"), kerr.InvalidProducerEpoch.Code, -1},
	}
	for i, s := range steps {
		got := s.c.produce(produceRequest(9, -1, "t", s.part, s.batch.bytes()))
		if got.ErrorCode != s.code || got.BaseOffset != s.offset {
			t.Errorf("step %d: %+v", i, got)
		}
	}
	var all strings.Builder
	for _, r := range k.all() {
		all.Write(r.Value)
	}
	if all.String() != "abcdefg" || b.Status().Repeated != 2 {
		t.Errorf("taken %q, %d repeated", all.String(), b.Status().Repeated)
	}
}

// TestRepeatedWhileTaken: a batch comes again while it is still being taken.
func TestRepeatedWhileTaken(t *testing.T) {
	k := &keeper{block: make(chan struct{})}
	b, addr, _ := serve(t, Options{Handler: k})
	batch := with(7, 0, 40, "a").bytes()
	c := dial(t, addr)
	c.send(produceRequest(9, -1, "t", 0, batch))
	until(t, "the batch is being taken", func() bool { return k.entered() == 1 })
	c.c.Close()
	d := dial(t, addr)
	id := d.send(produceRequest(9, -1, "t", 0, batch))
	until(t, "both connections are there", func() bool { return len(k.producers()) == 2 })
	close(k.block)
	resp := kmsg.NewPtrProduceResponse()
	resp.Version = 9
	d.receive(id, resp)
	if p := resp.Topics[0].Partitions[0]; p.ErrorCode != 0 || p.BaseOffset != 0 {
		t.Errorf("answer %+v", p)
	}
	if n := len(k.all()); n != 1 || b.Status().Repeated != 1 {
		t.Errorf("%d records, %d repeated", n, b.Status().Repeated)
	}
}

// TestBroken: whoever breaks the protocol loses its connection, with a line in the
// log that says why, and nobody else is bothered.
func TestBroken(t *testing.T) {
	produce := frame(produceRequest(9, -1, "t", 0, plain("a").bytes()), 1)
	flexible := frame(&kmsg.MetadataRequest{Version: 9}, 1)
	list := func(key, version int16, body ...byte) []byte {
		b := binary.BigEndian.AppendUint16(nil, uint16(key))
		b = binary.BigEndian.AppendUint16(b, uint16(version))
		b = append(b, 0, 0, 0, 1, 0xff, 0xff) // correlation id, no client id
		b = append(b, body...)
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
	}
	tests := map[string]struct {
		send  []byte
		hold  bool // keep the connection open after sending
		quick bool // a short ReadTimeout
		log   string
	}{
		"http":             {send: []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), log: "request of 1195725856 bytes"},
		"negative length":  {send: []byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0}, log: "request of -1 bytes"},
		"tiny":             {send: []byte{0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0}, log: "request of 7 bytes"},
		"too large":        {send: []byte{0x10, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0}, log: "Produce request of 268435456 bytes"},
		"too large others": {send: []byte{0, 0x20, 0, 0, 0, 3, 0, 9, 0, 0, 0, 0}, log: "Metadata request of 2097152 bytes"},
		"unknown":          {send: list(1000, 0), log: "unknown (key 1000) request version 0, which is not offered"},
		"not offered":      {send: list(19, 0), log: "CreateTopics request version 0, which is not offered"},
		"new version":      {send: list(0, 40, 0), log: "Produce request version 40, which is not offered"},
		"half":             {send: produce[:len(produce)/2], log: "closed within a Produce request"},
		"half head":        {send: produce[:6], log: "closed within the head of a request"},
		"half, slowly":     {send: produce[:len(produce)/2], hold: true, quick: true, log: "did not come within"},
		"half head slowly": {send: produce[:3], hold: true, quick: true, log: "the head of a request did not come within"},
		"silence":          {hold: true, quick: true, log: "no request within"},
		"client id":        {send: append([]byte{0, 0, 0, 10, 0, 3, 0, 1, 0, 0, 0, 1}, 0x7f, 0xff), log: "the header is cut short"},
		"tags in header":   {send: append([]byte{0, 0, 0, 15, 0, 3, 0, 9, 0, 0, 0, 1, 0xff, 0xff}, 0xff, 0xff, 0xff, 0xff, 0x0f), log: "the header is cut short"},
		"tags":             {send: list(3, 9, 0, 1, 1, 1, 1, 0xff, 0xff, 0xff, 0xff, 0x0f), log: "cut short"},
		"topics":           {send: list(3, 1, 0x7f, 0xff, 0xff, 0xff), log: "cut short"},
		"topics to fetch":  {send: list(1, 4, append(make([]byte, 17), 0x7f, 0xff, 0xff, 0xff)...), log: "Fetch request version 4"},
		"too many topics":  {send: list(3, 1, append([]byte{0, 0, 0x50, 0}, make([]byte, 0x5000*2)...)...), log: "20480 topics"},
		"parts":            {send: list(0, 3, append([]byte{0xff, 0xff, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 't', 0, 2, 0, 0}, make([]byte, 1<<17)...)...), log: "more than 65536 partitions"},
		"cut body":         {send: list(0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 2, 2, 't', 2, 0, 0, 0, 0, 100), log: "topic 0: partition 0: cut short"},
		"init":             {send: list(22, 3, 0, 0), log: "InitProducerID request version 3"},
		"versions":         {send: list(18, 3, 0, 9), log: "ApiVersions request version 3"},
		"no body":          {send: list(3, 1), log: "cut short"},
		"flexible":         {send: append(flexible[:len(flexible)-1:len(flexible)-1], 5), log: "cut short"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := &keeper{}
			o := Options{Handler: k}
			if tt.quick {
				o.ReadTimeout = 50 * time.Millisecond
			}
			b, addr, log := serve(t, o)
			other := dial(t, addr)
			other.versions(0)
			c := dial(t, addr)
			if _, err := c.c.Write(tt.send); err != nil {
				t.Fatal(err)
			}
			if !tt.hold {
				_ = c.c.(*net.TCPConn).CloseWrite()
			}
			c.ended()
			until(t, "the log says so", func() bool { return strings.Contains(log.String(), tt.log) })
			until(t, "it is counted", func() bool { return b.Status().Broken == 1 })
			if got := other.produce(produceRequest(9, -1, "t", 0, plain("a").bytes())); got.ErrorCode != 0 {
				t.Errorf("the other connection: %+v", got)
			}
		})
	}
}

// TestLeave: closing between requests is no fault.
func TestLeave(t *testing.T) {
	k := &keeper{}
	b, addr, log := serve(t, Options{Handler: k})
	c := dial(t, addr)
	c.versions(3)
	c.c.Close()
	until(t, "it has left", func() bool { return len(k.gone()) == 1 })
	if k.gone()[0] != nil || b.Status().Broken != 0 || log.String() != "" {
		t.Errorf("%v, %+v, log %q", k.gone(), b.Status(), log)
	}
}

// TestRefusedConnections: by address, and by number.
func TestRefusedConnections(t *testing.T) {
	b, addr, _ := serve(t, Options{Handler: &keeper{}, Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	dial(t, addr).ended()
	until(t, "it is counted", func() bool { return b.Status().Refused == 1 })

	b, addr, log := serve(t, Options{Handler: &keeper{}, MaxConnections: 1, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	c := dial(t, addr)
	c.versions(0)
	dial(t, addr).ended()
	until(t, "it is counted", func() bool { return b.Status().Refused == 1 })
	if !strings.Contains(log.String(), "1 connections are open") {
		t.Errorf("log %s", log)
	}
	c.c.Close()
	until(t, "there is room again", func() bool { return b.Status().Connections == 0 })
	dial(t, addr).versions(0)
}

// TestClose: a Take that waits ends with the broker, unanswered.
func TestClose(t *testing.T) {
	k := &keeper{block: make(chan struct{})}
	b, addr, _ := serve(t, Options{Handler: k})
	c := dial(t, addr)
	c.send(produceRequest(9, -1, "t", 0, with(7, 0, 0, "a").bytes()))
	until(t, "the batch is being taken", func() bool { return k.entered() == 1 })
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	c.ended()
	if left := k.gone(); len(left) != 1 || !errors.Is(left[0], net.ErrClosed) {
		t.Errorf("left with %v", left)
	}
}

// TestTakeFails: the connection ends without an answer, and the batch is not known.
func TestTakeFails(t *testing.T) {
	k := &keeper{refuse: errors.New("full")}
	_, addr, _ := serve(t, Options{Handler: k})
	c := dial(t, addr)
	batch := with(7, 0, 0, "a").bytes()
	c.send(produceRequest(9, -1, "t", 0, batch))
	c.ended()
	k.mu.Lock()
	k.refuse = nil
	k.mu.Unlock()
	if got := dial(t, addr).produce(produceRequest(9, -1, "t", 0, batch)); got.ErrorCode != 0 || len(k.all()) != 1 {
		t.Errorf("again: %+v, %d records", got, len(k.all()))
	}
}

// TestMemory: requests wait for one another when their memory is used up, and
// nobody waits for good.
func TestMemory(t *testing.T) {
	k := &keeper{block: make(chan struct{})}
	b, addr, _ := serve(t, Options{Handler: k, MaxRequest: 1 << 20, MaxBatch: 1 << 20})
	if n := b.o.Memory; n != 256<<20 {
		t.Fatalf("memory %d", n)
	}
	var held []int64
	for b.requestMemory.TryAcquire(1 << 20) {
		held = append(held, 1<<20)
	}
	c := dial(t, addr)
	id := c.send(produceRequest(9, -1, "t", 0, plain(strings.Repeat("x", 1000)).bytes()))
	until(t, "it is there", func() bool { return b.Status().Connections == 1 })
	if k.entered() != 0 {
		t.Error("taken without memory")
	}
	for _, n := range held {
		b.requestMemory.Release(n)
	}
	close(k.block)
	resp := kmsg.NewPtrProduceResponse()
	resp.Version = 9
	c.receive(id, resp)
	until(t, "everything is given back", func() bool {
		if !b.requestMemory.TryAcquire(b.o.Memory) {
			return false
		}
		b.requestMemory.Release(b.o.Memory)
		return true
	})
}

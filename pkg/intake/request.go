package intake

import (
	"errors"
	"fmt"
	"math"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Requests are read here rather than by kmsg where they have tagged fields or
// nested arrays: kmsg believes every count of tags and makes room for every array
// that could just fit.

// A reader reads the parts of a request. An error stays.
type reader struct {
	kbin.Reader
	flexible bool // compact lengths and tagged fields
}

func (r *reader) tags() {
	if !r.flexible {
		return
	}
	for n := r.Uvarint(); n > 0 && r.Ok(); n-- {
		r.Uvarint()
		r.Span(int(r.Uvarint()))
	}
}

// text reads a string; null is nil.
func (r *reader) text() []byte {
	n := 0
	if r.flexible {
		n = int(r.Uvarint()) - 1
	} else {
		n = int(r.Int16())
	}
	if n < 0 {
		return nil
	}
	return r.Span(n)
}

// count reads the length of an array, -1 for null. There are no more elements
// than there are bytes.
func (r *reader) count() int {
	if r.flexible {
		return int(r.CompactArrayLen())
	}
	return int(r.ArrayLen())
}

func (r *reader) bytes() []byte {
	if r.flexible {
		return r.CompactNullableBytes()
	}
	return r.NullableBytes()
}

// flexibleFrom is the first version of a request that has tagged fields, of those
// that are offered.
func flexibleFrom(k kmsg.Key) int16 {
	switch k {
	case kmsg.ApiVersions:
		return 3
	case kmsg.Metadata, kmsg.Produce:
		return 9
	case kmsg.InitProducerID:
		return 2
	}
	return math.MaxInt16
}

// parseRequest takes the header off a request of at least eight bytes.
func parseRequest(msg []byte) (request, error) {
	rd := reader{Reader: kbin.Reader{Src: msg}}
	r := request{key: kmsg.Key(rd.Int16()), version: rd.Int16(), id: rd.Int32()}
	r.client = rd.text() // never compact, in no version of the header
	rd.flexible = r.version >= flexibleFrom(r.key)
	rd.tags()
	if !rd.Ok() {
		return r, fmt.Errorf("%s request version %d of %d bytes: the header is cut short", name(r.key), r.version, len(msg))
	}
	r.body = rd.Src
	return r, nil
}

func (r *request) reader() reader {
	return reader{Reader: kbin.Reader{Src: r.body}, flexible: r.version >= flexibleFrom(r.key)}
}

var errShort = errors.New("cut short")

// end says whether a request was there to its end. Bytes after that are ignored, as
// Kafka does: librdkafka's request for the metadata of all topics has some.
func (r *reader) end() error {
	if r.tags(); !r.Ok() {
		return errShort
	}
	return nil
}

// A wanted is a topic that a Metadata request asks for: by name, or by id.
type wanted struct {
	name []byte
	id   [16]byte
}

// readMetadata reads a Metadata request. all means that it asks for every topic.
func readMetadata(r *request) (topics []wanted, all bool, err error) {
	const most = 20_000
	rd := r.reader()
	n := rd.count()
	if n > most {
		return nil, false, fmt.Errorf("%d topics, at most %d", n, most)
	}
	all = n < 0 || n == 0 && r.version == 0
	for i := 0; i < n && rd.Ok(); i++ {
		var t wanted
		if r.version >= 10 {
			t.id = rd.Uuid()
		}
		t.name = rd.text()
		rd.tags()
		topics = append(topics, t)
	}
	if r.version >= 4 {
		rd.Bool() // auto creation: every topic exists
	}
	if r.version >= 8 {
		if r.version <= 10 {
			rd.Bool() // authorised operations of the cluster
		}
		rd.Bool() // and of topics
	}
	return topics, all, rd.end()
}

// readInit reads an InitProducerID request.
func readInit(r *request) (transactional bool, id int64, epoch int16, err error) {
	rd := r.reader()
	transactional = rd.text() != nil
	rd.Int32() // timeout of transactions
	id, epoch = -1, -1
	if r.version >= 3 {
		id, epoch = rd.Int64(), rd.Int16()
	}
	return transactional, id, epoch, rd.end()
}

// readVersions reads an ApiVersions request and returns how the client's software
// calls itself.
func readVersions(r *request) (software string, err error) {
	rd := r.reader()
	if r.version >= 3 {
		software = printable(rd.text())
		if v := printable(rd.text()); v != "" {
			software += " " + v
		}
	}
	return software, rd.end()
}

// A produced is the data for one partition in a Produce request.
type produced struct {
	topicIndex int // in the request
	topic      []byte
	partition  int32
	batch      []byte
}

// maxParts is the most partitions in a Produce request.
const maxParts = 1 << 16

// readProduce reads a Produce request and calls each for every partition in it,
// and topic before the first one of each topic, until one fails.
func readProduce(r *request, topic func(name []byte), each func(p produced) error) (acks int16, transactional bool, err error) {
	rd := r.reader()
	if r.version >= 3 {
		transactional = rd.text() != nil
	}
	acks = rd.Int16()
	rd.Int32() // timeout: the producer's own is what counts
	parts := 0
	for i, topics := 0, rd.count(); i < topics && rd.Ok(); i++ {
		p := produced{topicIndex: i, topic: rd.text()}
		n := rd.count()
		if parts += 1 + max(n, 0); parts > maxParts {
			return acks, transactional, fmt.Errorf("topic %d: more than %d partitions", i, maxParts)
		}
		if !rd.Ok() {
			break
		}
		topic(p.topic)
		for range n {
			p.partition = rd.Int32()
			p.batch = rd.bytes()
			rd.tags()
			if !rd.Ok() {
				return acks, transactional, fmt.Errorf("topic %d: partition %d: %w", i, p.partition, errShort)
			}
			if err := each(p); err != nil {
				return acks, transactional, err
			}
		}
		rd.tags()
	}
	return acks, transactional, rd.end()
}

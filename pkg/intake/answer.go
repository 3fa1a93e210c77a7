package intake

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// offered is the versions of requests that are answered. Produce before 3 and
// Fetch are answered with an error, but they must be there: librdkafka concludes
// from them, and from FindCoordinator, which record format and which compressions
// a broker knows.
var offered = []struct {
	key      kmsg.Key
	from, to int16
}{
	{kmsg.Produce, 0, 12},
	{kmsg.Fetch, 0, 11},
	{kmsg.Metadata, 0, 13},
	{kmsg.FindCoordinator, 0, 2},
	{kmsg.ApiVersions, 0, 4},
	{kmsg.InitProducerID, 0, 5},
}

func isOffered(k kmsg.Key, version int16) bool {
	for _, o := range offered {
		if o.key == k {
			return o.from <= version && version <= o.to
		}
	}
	return false
}

// clusterID is what the cluster of this one broker calls itself.
const clusterID = "bmpha-intake"

// answer carries out a request. A nil response means that none is expected.
func (c *conn) answer(r *request) (kmsg.Response, error) {
	if !isOffered(r.key, r.version) {
		if r.key != kmsg.ApiVersions {
			return nil, fmt.Errorf("%s request version %d, which is not offered", name(r.key), r.version)
		}
		// The one request that may be too new. The answer is in version 0, which
		// every client can read.
		c.connect(r.client, "")
		resp := kmsg.NewPtrApiVersionsResponse()
		resp.ErrorCode = kerr.UnsupportedVersion.Code
		fillVersions(resp)
		return resp, nil
	}
	resp, err := c.dispatch(r)
	if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, errTake) {
		err = fmt.Errorf("%s request version %d of %d bytes: %w", name(r.key), r.version, len(r.body), err)
	}
	return resp, err
}

func (c *conn) dispatch(r *request) (kmsg.Response, error) {
	if r.key == kmsg.ApiVersions {
		software, err := readVersions(r)
		if err != nil {
			return nil, err
		}
		c.connect(r.client, software)
		resp := kmsg.NewPtrApiVersionsResponse()
		resp.Version = r.version
		fillVersions(resp)
		return resp, nil
	}
	c.connect(r.client, "")
	switch r.key {
	case kmsg.Produce:
		return c.produce(r)
	case kmsg.Metadata:
		return c.metadata(r)
	case kmsg.InitProducerID:
		return c.initProducer(r)
	}
	// What remains has no tagged fields in the versions offered.
	req := r.key.Request()
	req.SetVersion(r.version)
	if err := req.ReadFrom(r.body); err != nil {
		return nil, err
	}
	switch req := req.(type) {
	case *kmsg.FindCoordinatorRequest:
		resp := req.ResponseKind().(*kmsg.FindCoordinatorResponse)
		resp.NodeID = -1
		resp.ErrorCode = kerr.GroupAuthorizationFailed.Code
		if req.CoordinatorType == 1 {
			resp.ErrorCode = kerr.TransactionalIDAuthorizationFailed.Code
		}
		resp.ErrorMessage = kmsg.StringPtr("bmpha takes records in: no transactions, no consumers")
		return resp, nil
	case *kmsg.FetchRequest:
		return refuseFetch(req), nil
	}
	return nil, errors.New("offered and not served")
}

func fillVersions(resp *kmsg.ApiVersionsResponse) {
	for _, o := range offered {
		k := kmsg.NewApiVersionsResponseApiKey()
		k.ApiKey, k.MinVersion, k.MaxVersion = o.key.Int16(), o.from, o.to
		resp.ApiKeys = append(resp.ApiKeys, k)
	}
}

func refuseFetch(req *kmsg.FetchRequest) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.FetchResponse)
	for _, t := range req.Topics {
		topic := kmsg.NewFetchResponseTopic()
		topic.Topic = t.Topic
		for _, p := range t.Partitions {
			part := kmsg.NewFetchResponseTopicPartition()
			part.Partition, part.ErrorCode, part.HighWatermark = p.Partition, kerr.TopicAuthorizationFailed.Code, -1
			topic.Partitions = append(topic.Partitions, part)
		}
		resp.Topics = append(resp.Topics, topic)
	}
	return resp
}

// initProducer gives a producer its id, or the next epoch of the id it has.
func (c *conn) initProducer(r *request) (kmsg.Response, error) {
	transactional, id, epoch, err := readInit(r)
	if err != nil {
		return nil, err
	}
	resp := kmsg.NewPtrInitProducerIDResponse()
	resp.Version = r.version
	switch {
	case transactional:
		resp.ErrorCode = kerr.TransactionalIDAuthorizationFailed.Code
		resp.ProducerID, resp.ProducerEpoch = -1, -1
	case id >= 0 && epoch >= 0 && epoch < 1<<15-2:
		resp.ProducerID, resp.ProducerEpoch = id, epoch+1
	default:
		resp.ProducerID, resp.ProducerEpoch = c.b.producerID.Add(1), 0
	}
	return resp, nil
}

func (c *conn) metadata(r *request) (kmsg.Response, error) {
	topics, all, err := readMetadata(r)
	if err != nil {
		return nil, err
	}
	b := c.b
	resp := kmsg.NewPtrMetadataResponse()
	resp.Version = r.version
	resp.ClusterID = kmsg.StringPtr(clusterID)
	resp.ControllerID = 0
	node := kmsg.NewMetadataResponseBroker()
	node.NodeID, node.Host, node.Port = 0, b.host, b.port
	if b.host == "" {
		host, port, err := localAddr(c.c)
		if err != nil {
			return nil, err
		}
		node.Host, node.Port = host, port
	}
	resp.Brokers = append(resp.Brokers, node)
	if all {
		for _, name := range b.topics.names() {
			topics = append(topics, wanted{name: []byte(name)})
		}
	}
	for _, t := range topics {
		topic := kmsg.NewMetadataResponseTopic()
		name := string(t.name)
		if t.name == nil {
			if name = b.topics.byID(t.id); name == "" {
				topic.TopicID, topic.ErrorCode = t.id, kerr.UnknownTopicID.Code
				resp.Topics = append(resp.Topics, topic)
				continue
			}
		}
		topic.Topic = &name
		if !legal(t.name) && t.name != nil {
			topic.ErrorCode = kerr.InvalidTopicException.Code
			resp.Topics = append(resp.Topics, topic)
			continue
		}
		b.topics.see([]byte(name))
		topic.TopicID = topicID(name)
		for i := range b.o.Partitions {
			p := kmsg.NewMetadataResponseTopicPartition()
			p.Partition, p.Leader, p.LeaderEpoch = i, 0, 0
			p.Replicas, p.ISR = oneReplica, oneReplica
			topic.Partitions = append(topic.Partitions, p)
		}
		resp.Topics = append(resp.Topics, topic)
	}
	return resp, nil
}

var oneReplica = []int32{0}

func localAddr(c net.Conn) (host string, port int32, err error) {
	a, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		return "", 0, fmt.Errorf("own address: %w", err)
	}
	return a.Addr().Unmap().String(), int32(a.Port()), nil
}

// legal says whether Kafka would allow a topic of this name.
func legal(name []byte) bool {
	if len(name) == 0 || len(name) > 249 || string(name) == "." || string(name) == ".." {
		return false
	}
	for _, x := range name {
		switch {
		case 'a' <= x && x <= 'z', 'A' <= x && x <= 'Z', '0' <= x && x <= '9', x == '.', x == '_', x == '-':
		default:
			return false
		}
	}
	return true
}

// topicID makes an id from a name, so that it is the same after a restart.
func topicID(name string) (id [16]byte) {
	sum := sha256.Sum256([]byte("bmpha intake topic " + name))
	copy(id[:], sum[:])
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return id
}

// maxTopics is how many topics are remembered. Others exist as well, but are not
// listed, not known by id, and share their offsets.
const maxTopics = 20_000

// topics is the topics seen and the next offset of their partitions.
type topics struct {
	partitions int32

	mu      sync.Mutex
	offsets map[string][]int64
	ids     map[[16]byte]string
	others  int64
}

func newTopics(partitions int32) *topics {
	return &topics{partitions: partitions, offsets: make(map[string][]int64), ids: make(map[[16]byte]string)}
}

func (t *topics) see(name []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known(name)
}

// known returns the offsets of a topic, nil if it is one too many.
func (t *topics) known(name []byte) []int64 {
	o, ok := t.offsets[string(name)]
	if !ok && len(t.offsets) < maxTopics {
		s := strings.Clone(string(name))
		o = make([]int64, 0, 1)
		t.offsets[s] = o
		t.ids[topicID(s)] = s
	}
	return o
}

// advance counts n more records and returns the offset of the first.
func (t *topics) advance(name []byte, partition int32, n int) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	o := t.known(name)
	if o == nil {
		t.others += int64(n)
		return t.others - int64(n)
	}
	if int(partition) >= len(o) {
		o = append(o, make([]int64, int(partition)+1-len(o))...)
		t.offsets[string(name)] = o
	}
	at := o[partition]
	o[partition] += int64(n)
	return at
}

func (t *topics) byID(id [16]byte) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ids[id]
}

func (t *topics) names() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	names := make([]string, 0, len(t.offsets))
	for n := range t.offsets {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

package rig

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

func isExists(err error) bool { return errors.Is(err, kerr.TopicAlreadyExists) }

// A Header is a record header.
type Header struct {
	Key   string
	Value []byte
}

// A Record is what a consumer found in a topic. A nil Value is a tombstone.
type Record struct {
	Partition  int32
	Offset     int64
	Key, Value []byte
	Headers    []Header
	Timestamp  time.Time // set by the producer, to the millisecond
}

// Header returns the value of the first header with that key, or nil.
func (r Record) Header(key string) []byte {
	for _, h := range r.Headers {
		if h.Key == key {
			return h.Value
		}
	}
	return nil
}

// A Consumer reads a topic from its start and stays on it. Within a partition
// records come in the order of their offsets. It is safe for concurrent use.
type Consumer struct {
	topic  string
	client *kgo.Client
	admin  *kadm.Client
	cancel context.CancelFunc
	done   chan struct{}
	each   func(Record)

	mu      sync.Mutex
	changed chan struct{} // closed and replaced whenever something arrives
	records []Record
	count   int
	next    map[int32]int64 // per partition the first offset not yet seen
	err     error
}

// Consume reads all of a topic so far and then live, keeping the records in
// memory, until Close or the end of ctx. The topic need not exist yet. While the
// broker is away the consumer waits for it. Options are for credentials
// (Kafka.Client).
func Consume(ctx context.Context, brokers, topic string, opts ...kgo.Opt) (*Consumer, error) {
	return consume(ctx, brokers, topic, nil, opts)
}

// ConsumeEach is Consume that hands each record to each, from one goroutine,
// instead of keeping it. The byte slices stay valid.
func ConsumeEach(ctx context.Context, brokers, topic string, each func(Record), opts ...kgo.Opt) (*Consumer, error) {
	return consume(ctx, brokers, topic, each, opts)
}

// ReadTopic returns all that is in a topic now. The topic must exist.
func ReadTopic(ctx context.Context, brokers, topic string, opts ...kgo.Opt) ([]Record, error) {
	c, err := Consume(ctx, brokers, topic, opts...)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.CatchUp(ctx); err != nil {
		return nil, err
	}
	return c.Records(), nil
}

func consume(ctx context.Context, brokers, topic string, each func(Record), opts []kgo.Opt) (*Consumer, error) {
	cl, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(brokers),
		kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxWait(100 * time.Millisecond),
		kgo.MetadataMinAge(100 * time.Millisecond),
		kgo.MetadataMaxAge(time.Second), // notices a topic that is made later
		kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }),
		kgo.UnknownTopicRetries(-1),
		kgo.RequestTimeoutOverhead(2 * time.Second), // Close waits as long for a broker that hangs
	}, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("consume %s: %w", topic, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &Consumer{
		topic: topic, client: cl, admin: kadm.NewClient(cl), cancel: cancel, done: make(chan struct{}), each: each,
		changed: make(chan struct{}), next: make(map[int32]int64),
	}
	go c.run(ctx)
	return c, nil
}

func (c *Consumer) run(ctx context.Context) {
	defer close(c.done)
	for {
		f := c.client.PollFetches(ctx)
		if ctx.Err() != nil || f.IsClientClosed() {
			c.mu.Lock()
			c.err = errors.New("consumer is closed")
			close(c.changed)
			c.changed = make(chan struct{})
			c.mu.Unlock()
			return
		}
		// Errors are those that the client retries by itself; a topic that is
		// missing may yet be made.
		if f.NumRecords() == 0 {
			continue
		}
		var batch []Record
		f.EachRecord(func(r *kgo.Record) {
			rec := Record{
				Partition: r.Partition, Offset: r.Offset, Key: r.Key, Value: r.Value, Timestamp: r.Timestamp,
			}
			for _, h := range r.Headers {
				rec.Headers = append(rec.Headers, Header(h))
			}
			batch = append(batch, rec)
		})
		if c.each != nil {
			for _, r := range batch {
				c.each(r)
			}
		}
		c.mu.Lock()
		if c.each == nil {
			c.records = append(c.records, batch...)
		}
		c.count += len(batch)
		for _, r := range batch {
			c.next[r.Partition] = r.Offset + 1
		}
		close(c.changed)
		c.changed = make(chan struct{})
		c.mu.Unlock()
	}
}

// Records returns what has been read so far, in the order of arrival. The slice
// may be kept and is not to be changed.
func (c *Consumer) Records() []Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.records[:len(c.records):len(c.records)]
}

// Count returns how many records have been read so far.
func (c *Consumer) Count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count
}

// Wait returns nil as soon as cond holds for the records read so far (none, for
// ConsumeEach); it asks again whenever more have come.
func (c *Consumer) Wait(ctx context.Context, cond func([]Record) bool) error {
	return c.wait(ctx, func() bool { return cond(c.records[:len(c.records):len(c.records)]) })
}

// WaitCount waits until at least n records have been read.
func (c *Consumer) WaitCount(ctx context.Context, n int) error {
	return c.wait(ctx, func() bool { return c.count >= n })
}

// wait waits for cond, which is called with the lock held.
func (c *Consumer) wait(ctx context.Context, cond func() bool) error {
	for {
		c.mu.Lock()
		ok, changed, err, n := cond(), c.changed, c.err, c.count
		c.mu.Unlock()
		if ok {
			return nil
		}
		if err != nil {
			return fmt.Errorf("consume %s: %w", c.topic, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("consume %s: after %d records: %w", c.topic, n, context.Cause(ctx))
		case <-changed:
		}
	}
}

// CatchUp waits until everything that is in the topic at the time of the call
// has been read.
func (c *Consumer) CatchUp(ctx context.Context) error {
	ends, err := c.admin.ListEndOffsets(ctx, c.topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("end of topic %s: %w", c.topic, err)
	}
	starts, err := c.admin.ListStartOffsets(ctx, c.topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return fmt.Errorf("start of topic %s: %w", c.topic, err)
	}
	return c.wait(ctx, func() bool {
		for _, end := range ends[c.topic] {
			start := starts[c.topic][end.Partition].Offset
			if end.Offset > start && c.next[end.Partition] < end.Offset {
				return false
			}
		}
		return true
	})
}

// Close ends the consumer; what it has read stays available.
func (c *Consumer) Close() {
	c.cancel()
	<-c.done
	c.client.Close()
}

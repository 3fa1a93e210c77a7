package sink

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"github.com/bmpha/bmpha/pkg/record"
)

// referenceSink is the Sink over confluent-kafka-go's Go interface: the plain
// way to do what kafkaSink does in C, to be read beside it, to test it against,
// and to fall back to. It costs several times the CPU and allocates for each
// record. A header's name ends at a zero byte in it.
type referenceSink struct {
	properties map[string]string
	refresh    time.Duration // between questions for a number of partitions that is known; 0 for ever
	window     int
	deadLetter string
	journal    *journal
	done       chan struct{}
	asks       sync.WaitGroup
	closing    atomic.Bool
	tasks      sync.WaitGroup

	pollMu sync.Mutex    // Poll and Close
	news   chan struct{} // something for Poll that is no event of a producer

	mu      sync.Mutex // everything below
	stopped bool
	topics  map[string]uint32
	names   []*referenceTopic
	streams map[uint32]*referenceStream
	moved   []*referenceStream
	lanes   [3]referenceLane
	dead    []referenceDead
	stats   Stats
	probing bool
	recalls int
}

// The producers, as in kafkaSink: shim.h says why there are three.
const (
	bulk = iota
	single
	apart
)

// Pauses before a topic that failed is tried again, as in shim.c.
const (
	retryMin    = 100 * time.Millisecond
	retryMax    = 10 * time.Second
	retryForget = time.Minute
)

// When a topic or a partition is believed not to exist, as in shim.c.
const (
	askPause    = 200 * time.Millisecond
	askPatience = 2 * time.Second
	askAgain    = 5 * time.Second
	askForget   = time.Minute
)

// errLater is the answer for a record whose partition a broker is asked about.
var errLater = errors.New("later")

type referenceTopic struct {
	name              string
	apart             bool
	used              bool // a producer was given records of it
	failures          int
	failedAt, retryAt time.Time

	// What brokers say of its partitions, asked for by the records that have to
	// go to a certain one.
	partitions  uint32    // 0 when not known
	countedAt   time.Time // when they said so
	missedAt    time.Time // since when there is not what is asked for
	asking      bool
	askAt       time.Time // not before
	askFailures int       // one after the other
	refusal     error     // why there is no answer, for streams to be told
	refusedAt   time.Time
}

type referenceLane struct {
	producer    *kafka.Producer // nil while there is none
	building    bool
	failures    int // builds in a row without a record acknowledged
	renew       bool
	fatal       bool
	recalled    bool      // by Recall, until the next producer is there
	forgiven    bool      // the next build is for no failure
	purgeAt     time.Time // when to purge a failed producer again
	outstanding int
}

type referenceStream struct {
	id         uint32
	lane       int
	base, next uint64
	done       map[uint64]struct{} // positions from base on that are acknowledged
	producing  int
	dead       int
	moved      bool
	err        error
	singleEnd  uint64
	toldAt     time.Time // the last refusal of a topic that it was stopped for
}

// referenceTag travels with a record and comes back with its report.
type referenceTag struct {
	stream *referenceStream
	pos    uint64
	lane   int
	stamp  int64 // ms, if the record brought one
}

type referenceDead struct {
	stream *referenceStream
	pos    uint64
	record deadRecord
}

// NewReference returns the plain Sink over confluent-kafka-go. It does not wait
// for a broker. An error is one of the configuration.
func NewReference(o Options) (Sink, error) {
	if o.TransactionalID != "" {
		return nil, errors.New("the reference client knows no fencing")
	}
	properties, err := o.properties()
	if err != nil {
		return nil, err
	}
	s := &referenceSink{
		properties: properties,
		window:     o.window(),
		deadLetter: o.DeadLetter,
		journal:    newJournal(&o),
		done:       make(chan struct{}),
		news:       make(chan struct{}, 1),
		topics:     map[string]uint32{},
		streams:    map[uint32]*referenceStream{},
	}
	s.stats.Window = uint64(s.window)
	s.refresh = 5 * time.Minute
	if ms, err := strconv.Atoi(properties["topic.metadata.refresh.interval.ms"]); err == nil {
		s.refresh = time.Duration(max(ms, 0)) * time.Millisecond
	}
	if s.lanes[bulk].producer, err = s.build(bulk); err != nil {
		return nil, errors.New(s.journal.redact(err.Error()))
	}
	return s, nil
}

func (s *referenceSink) build(lane int) (*kafka.Producer, error) {
	m := kafka.ConfigMap{
		"go.logs.channel.enable": true,
		"go.events.channel.size": s.window + 1000,
		// For dead letters.
		"go.delivery.report.fields": "key,value,headers",
	}
	for name, value := range s.properties {
		m[name] = value
	}
	if lane == single {
		m["batch.num.messages"] = "1"
	}
	p, err := kafka.NewProducer(&m)
	if err != nil {
		return nil, fmt.Errorf("make a Kafka producer: %w", err)
	}
	s.tasks.Go(func() {
		for l := range p.Logs() {
			s.journal.line(l.Level, l.Tag, l.Message)
		}
	})
	return p, nil
}

func (s *referenceSink) Topic(name string) (uint32, error) {
	if err := checkTopic(name); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return 0, ErrClosed
	}
	h, ok := s.topics[name]
	if !ok {
		h = uint32(len(s.names))
		s.topics[name] = h
		s.names = append(s.names, &referenceTopic{name: name})
	}
	return h, nil
}

func (s *referenceSink) Hand(stream uint32, pos uint64, b *record.Batch, from int) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[stream]
	switch {
	case s.stopped:
		return 0, ErrClosed
	case st == nil:
		return 0, fmt.Errorf("stream %d was never Reset", stream)
	case st.err != nil:
		return 0, ErrStopped
	case pos != st.next:
		return 0, fmt.Errorf("stream %d: position %d does not follow the last one", stream, pos)
	}
	n := b.Len() - from
	if n == 0 {
		return 0, nil
	}
	if h := b.Recs[from].Topic; int(h) >= len(s.names) {
		return 0, fmt.Errorf("stream %d: position %d: no topic with handle %d", stream, pos, h)
	}
	t := s.names[b.Recs[from].Topic]
	to := bulk
	switch {
	case pos < st.singleEnd:
		to = single
		n = int(min(uint64(n), st.singleEnd-pos))
	case st.lane == apart || t.apart:
		to = apart
	}
	if to != st.lane && st.producing+st.dead > 0 {
		return 0, nil // one producer could overtake the other
	}
	st.lane = to
	l := &s.lanes[st.lane]
	if l.producer == nil && !l.building {
		s.startBuild(st.lane, nil)
	}
	if l.producer == nil || l.fatal || l.renew || time.Now().Before(t.retryAt) {
		return 0, nil
	}
	n = min(n, s.window-int(s.stats.Outstanding), max(1, s.window/2)-st.producing-st.dead)
	for i := range n {
		r := &b.Recs[from+i]
		if int(r.Topic) >= len(s.names) || st.lane == bulk && s.names[r.Topic].apart {
			return i, nil // later: for an error, or through another producer
		}
		t := s.names[r.Topic]
		partition, why := s.destination(st, t, r)
		if why != nil {
			if errors.Is(why, errLater) {
				return i, nil
			}
			if codeOf(why) != kafka.ErrUnknownPartition {
				s.stop(st, pos+uint64(i), t.name, why)
				return i, nil
			}
		}
		tag := referenceTag{st, pos + uint64(i), st.lane, max(r.Timestamp, 0)}
		m := &kafka.Message{
			TopicPartition: kafka.TopicPartition{Topic: &t.name, Partition: partition},
			Key:            b.Key(from + i),
			Value:          b.Value(from + i),
			Opaque:         tag,
		}
		if r.Timestamp > 0 {
			m.Timestamp = time.UnixMilli(r.Timestamp)
		}
		if err := record.EachMore(b.More(from+i), func(name, value []byte) {
			m.Headers = append(m.Headers, kafka.Header{Key: string(name), Value: value})
		}); err != nil {
			if i > 0 {
				return i, nil
			}
			return 0, fmt.Errorf("stream %d: position %d: %w", stream, pos, err)
		}
		if h := b.Header(from + i); h != nil {
			m.Headers = append(m.Headers, kafka.Header{Key: record.HeaderName, Value: h})
		}
		err := why
		if err == nil {
			t.used = true
			err = l.producer.Produce(m, nil)
		}
		if err != nil {
			code := codeOf(err)
			switch {
			case code == kafka.ErrQueueFull:
				return i, nil
			case code == kafka.ErrFatal:
				l.fatal = true
				s.wake()
				return i, nil
			case code == kafka.ErrMsgSizeTooLarge, why != nil:
				s.bury(tag, m, err)
			case code == kafka.ErrUnknownPartition && partition != kafka.PartitionAny:
				t.partitions = 0 // there are fewer now: later, when a broker has told
				return i, nil
			default:
				s.fail(st, pos+uint64(i), t.name, err)
				return i, nil
			}
		} else {
			st.producing++
			l.outstanding++
			s.stats.Outstanding++
			s.stats.Bytes += uint64(r.KeyLen + r.HeaderLen + r.ValueLen + r.MoreLen)
		}
		st.next++
		s.stats.Handed++
	}
	return max(n, 0), nil
}

func codeOf(err error) kafka.ErrorCode {
	var e kafka.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return kafka.ErrFail
}

// wake makes a Poll that waits look again.
func (s *referenceSink) wake() {
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// The following are called with mu held.

func (s *referenceSink) move(st *referenceStream) {
	if !st.moved {
		st.moved = true
		s.moved = append(s.moved, st)
	}
	s.wake()
}

func (s *referenceSink) fail(st *referenceStream, pos uint64, topic string, why error) {
	if ofTopic(why) {
		s.failTopic(&s.lanes[st.lane], s.names[s.topics[topic]], why)
	}
	s.stop(st, pos, topic, why)
	s.stats.Failed++
}

func (s *referenceSink) stop(st *referenceStream, pos uint64, topic string, why error) {
	if st.err == nil {
		st.err = fmt.Errorf("topic %s: position %d: %w", topic, pos, why)
		s.journal.fault(st.err.Error())
	}
	s.move(st)
}

// destination finds the partition of a record. It returns what missing does when
// that is not known.
func (s *referenceSink) destination(st *referenceStream, t *referenceTopic, r *record.Rec) (int32, error) {
	switch {
	case r.Flags&(record.RecRouted|record.RecPartition) == 0:
		return kafka.PartitionAny, nil
	case r.Flags&record.RecPartition != 0 && r.Partition < 0:
		return r.Partition, kafka.NewError(kafka.ErrUnknownPartition, "", false)
	case r.Flags&record.RecPartition != 0 && uint32(r.Partition) < t.partitions:
		return r.Partition, nil
	case r.Flags&record.RecPartition != 0:
		return r.Partition, s.missing(st, t)
	case t.partitions == 0:
		return kafka.PartitionAny, s.missing(st, t)
	}
	if s.refresh > 0 && time.Since(t.countedAt) >= s.refresh {
		s.ask(st.lane, t)
	}
	return int32(r.Route % t.partitions), nil
}

// missing is what becomes of a record whose partition is not known: it goes later
// (errLater), never (ErrUnknownPartition), or stops its stream.
func (s *referenceSink) missing(st *referenceStream, t *referenceTopic) error {
	now := time.Now()
	if t.partitions > 0 && !t.missedAt.IsZero() && now.Sub(t.countedAt) < askForget && t.countedAt.Sub(t.missedAt) >= askPatience {
		if now.Sub(t.countedAt) >= askAgain {
			s.ask(st.lane, t)
		}
		return kafka.NewError(kafka.ErrUnknownPartition, "", false)
	}
	if t.refusal != nil && st.toldAt.Before(t.refusedAt) {
		st.toldAt = t.refusedAt
		return t.refusal
	}
	if t.missedAt.IsZero() || t.partitions > 0 && now.Sub(t.countedAt) >= askForget {
		t.missedAt = now
	}
	s.ask(st.lane, t)
	return errLater
}

// ask asks a broker for the number of partitions, in the background and through
// the producer that is to send the records, so that it has the same view.
func (s *referenceSink) ask(lane int, t *referenceTopic) {
	if t.asking || s.stopped || time.Now().Before(t.askAt) {
		return
	}
	t.asking = true
	l := &s.lanes[lane]
	p := l.producer
	l.outstanding++ // so that it stays
	s.asks.Go(func() {
		m, err := p.GetMetadata(&t.name, false, int(askTimeout/time.Millisecond))
		s.mu.Lock()
		defer s.mu.Unlock()
		l.outstanding--
		t.asking = false
		t.askAt = time.Now().Add(askPause)
		if err == nil {
			about := m.Topics[t.name]
			s.answered(l, t, about.Error, uint32(len(about.Partitions)))
		}
		s.wake()
	})
}

func (s *referenceSink) answered(l *referenceLane, t *referenceTopic, why kafka.Error, n uint32) {
	now := time.Now()
	if why.Code() == kafka.ErrNoError && n > 0 {
		if n > t.partitions {
			t.missedAt = time.Time{}
		}
		t.askFailures, t.refusal = 0, nil
		t.partitions, t.countedAt = n, now
		return
	}
	if t.used && ofTopic(why) {
		s.failTopic(l, t, why)
	}
	t.partitions = 0
	if t.missedAt.IsZero() {
		t.missedAt = now
	}
	t.refuse(why, now)
	if t.refusal == nil {
		return
	}
	t.askAt = now.Add(min(askPause<<min(t.askFailures, 6), retryMax))
	t.askFailures++
}

// ofTopic tells whether an error is one of the topic, as of_topic in shim.c.
func ofTopic(why error) bool {
	switch codeOf(why) {
	case kafka.ErrUnknownTopic, kafka.ErrUnknownPartition, kafka.ErrUnknownTopicOrPart, kafka.ErrTopicException,
		kafka.ErrTopicAuthorizationFailed, kafka.ErrUnknownTopicID:
		return true
	}
	return false
}

// refuse keeps the reason why a topic has no partitions, as in shim.c.
func (t *referenceTopic) refuse(why error, now time.Time) {
	if code := codeOf(why); code == kafka.ErrNoError || code == kafka.ErrUnknownPartition ||
		t.missedAt.IsZero() || now.Sub(t.missedAt) < askPatience {
		return
	}
	t.refusal, t.refusedAt = why, now
}

func (s *referenceSink) failTopic(l *referenceLane, t *referenceTopic, why error) {
	now := time.Now()
	t.refuse(why, now)
	t.apart, t.partitions = true, 0
	l.renew = l != &s.lanes[bulk]
	if now.Before(t.retryAt) {
		return // told by several records
	}
	if now.Sub(t.failedAt) > retryForget {
		t.failures = 0
	}
	t.failedAt, t.retryAt = now, now.Add(min(retryMin<<min(t.failures, 10), retryMax))
	t.failures++
}

func (s *referenceSink) bury(tag referenceTag, m *kafka.Message, why error) {
	d := deadRecord{
		Time: time.Now().UTC(), Topic: *m.TopicPartition.Topic, Timestamp: tag.stamp, Error: why.Error(),
		Key: bytes.Clone(m.Key), Value: bytes.Clone(m.Value),
	}
	if p := m.TopicPartition.Partition; p != kafka.PartitionAny {
		d.Partition = &p
	}
	for i, h := range m.Headers {
		if i == len(m.Headers)-1 && h.Key == record.HeaderName {
			d.Header = bytes.Clone(h.Value)
		} else {
			d.Headers = append(d.Headers, deadHeader{h.Key, bytes.Clone(h.Value)})
		}
	}
	tag.stream.dead++
	s.stats.Outstanding++
	s.dead = append(s.dead, referenceDead{tag.stream, tag.pos, d})
	s.wake()
}

func (st *referenceStream) ack(pos uint64) {
	st.done[pos] = struct{}{}
	for {
		if _, ok := st.done[st.base]; !ok {
			return
		}
		delete(st.done, st.base)
		st.base++
	}
}

func (s *referenceSink) delivered(m *kafka.Message) {
	tag := m.Opaque.(referenceTag)
	st, l := tag.stream, &s.lanes[tag.lane]
	st.producing--
	l.outstanding--
	s.stats.Outstanding--
	err := m.TopicPartition.Error
	if err == nil {
		s.stats.Acked++
		s.reached()
		l.failures = 0
		st.ack(tag.pos)
		s.move(st)
		return
	}
	batch := false
	switch code := codeOf(err); code {
	case kafka.ErrMsgSizeTooLarge, kafka.ErrRecordListTooLarge, kafka.ErrInvalidMsg, kafka.ErrInvalidMsgSize, kafka.ErrInvalidRecord,
		kafka.ErrInvalidTimestamp:
		if code == kafka.ErrInvalidTimestamp && tag.stamp == 0 {
			break // our clock's fault
		}
		if tag.lane == single {
			s.bury(tag, m, err)
			return
		}
		batch = true
	case kafka.ErrInvalidDifferentRecord:
		batch = tag.lane != single
	}
	if batch {
		st.singleEnd = max(st.singleEnd, tag.pos+1)
		if st.err == nil {
			err = fmt.Errorf("%w: %w", ErrBatchRefused, err)
		}
	}
	s.fail(st, tag.pos, *m.TopicPartition.Topic, err)
}

// event takes one event of a producer.
func (s *referenceSink) event(lane int, e kafka.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch e := e.(type) {
	case *kafka.Message:
		s.delivered(e)
	case kafka.Error:
		if s.lanes[lane].recalled {
			break // nothing is expected of it
		}
		if e.Code() == kafka.ErrAllBrokersDown {
			s.journal.symptom(e.Error())
		} else {
			s.journal.fault(e.Error())
		}
		if e.Code() == kafka.ErrAllBrokersDown {
			s.stats.Connected = false
		}
		if e.IsFatal() {
			s.lanes[lane].fatal = true
		}
	}
}

// tend looks after the producers: see tend in shim.c.
func (s *referenceSink) tend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.lanes {
		l := &s.lanes[i]
		switch {
		case l.producer == nil:
		case (l.fatal || l.renew) && l.outstanding == 0:
			old := l.producer
			l.producer = nil
			s.stats.Connected = s.stats.Connected && i != bulk
			s.startBuild(i, old)
		case l.fatal && !time.Now().Before(l.purgeAt):
			pause := time.Second
			if l.recalled {
				pause = 100 * time.Millisecond
			}
			l.purgeAt = time.Now().Add(pause)
			_ = l.producer.Purge(kafka.PurgeQueue | kafka.PurgeInFlight | kafka.PurgeNonBlocking)
		}
	}
	if p := s.lanes[bulk].producer; !s.stats.Connected && !s.probing && p != nil && !s.stopped {
		s.probing = true
		recalls := s.recalls
		s.tasks.Go(func() { s.probe(p, recalls) })
	}
}

func (s *referenceSink) probe(p *kafka.Producer, recalls int) {
	_, err := p.GetMetadata(nil, false, 500)
	s.mu.Lock()
	if err == nil && recalls == s.recalls {
		s.reached()
	}
	s.mu.Unlock()
	s.sleep(200 * time.Millisecond)
	s.mu.Lock()
	s.probing = false
	s.mu.Unlock()
}

func (s *referenceSink) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.done:
		return false
	}
}

// startBuild makes the producer of a lane in the background, after old is
// closed. It is called with mu held.
func (s *referenceSink) startBuild(lane int, old *kafka.Producer) {
	if s.lanes[lane].building || s.stopped {
		if old != nil {
			s.tasks.Go(func() { discard(old) })
		}
		return
	}
	s.lanes[lane].building = true
	s.tasks.Go(func() {
		if old != nil {
			discard(old)
		}
		var p *kafka.Producer
		for p == nil {
			s.mu.Lock()
			l, wait := &s.lanes[lane], time.Duration(0)
			if l.failures > 0 {
				wait = backoff(l.failures - 1)
			}
			if l.forgiven {
				l.forgiven = false
				wait = min(wait, backoff(0))
			} else {
				l.failures++
			}
			s.mu.Unlock()
			if !s.sleep(wait) {
				return
			}
			var err error
			if p, err = s.build(lane); err != nil {
				s.journal.fault(err.Error())
			}
		}
		s.mu.Lock()
		if s.stopped {
			s.mu.Unlock()
			discard(p)
			return
		}
		s.lanes[lane] = referenceLane{producer: p, failures: s.lanes[lane].failures}
		if lane == bulk {
			s.stats.Rebuilt++
			for _, t := range s.names {
				t.apart = false
			}
		}
		s.mu.Unlock()
		s.wake()
	})
}

// discard closes a producer of which nothing is expected any more.
func discard(p *kafka.Producer) {
	stop := make(chan struct{})
	var drained sync.WaitGroup
	drained.Go(func() {
		for {
			select {
			case <-p.Events():
			case <-stop:
				return
			}
		}
	})
	p.Close()
	close(stop)
	drained.Wait()
}

// setAside writes the dead letters.
func (s *referenceSink) setAside() {
	s.mu.Lock()
	dead := s.dead
	s.dead = nil
	s.mu.Unlock()
	for i := range dead {
		d := &dead[i]
		err := appendDeadLetter(s.deadLetter, &d.record)
		s.mu.Lock()
		d.stream.dead--
		s.stats.Outstanding--
		if err != nil {
			s.fail(d.stream, d.pos, d.record.Topic, err)
		} else {
			s.journal.fault(fmt.Sprintf("topic %s: record of %d bytes set aside: %s", d.record.Topic, len(d.record.Value), d.record.Error))
			s.stats.Dead++
			d.stream.ack(d.pos)
			s.move(d.stream)
		}
		s.mu.Unlock()
	}
}

func (s *referenceSink) Poll(d time.Duration, dst []Report) []Report {
	s.pollMu.Lock()
	defer s.pollMu.Unlock()
	return s.poll(d, dst)
}

func (s *referenceSink) poll(d time.Duration, dst []Report) []Report {
	timeout := time.NewTimer(d)
	defer timeout.Stop()
	had := len(dst)
	for {
		s.mu.Lock()
		var events [3]chan kafka.Event // nil ones block for ever
		for i := range s.lanes {
			if p := s.lanes[i].producer; p != nil {
				events[i] = p.Events()
			}
		}
		s.mu.Unlock()
		s.takeEvents(events)
		s.setAside()
		s.tend()
		if dst = s.takeReports(dst); len(dst) > had {
			return dst
		}
		select {
		case e := <-events[bulk]:
			s.event(bulk, e)
		case e := <-events[single]:
			s.event(single, e)
		case e := <-events[apart]:
			s.event(apart, e)
		case <-s.news:
		case <-s.done:
			return dst
		case <-timeout.C:
			return dst
		}
	}
}

// takeEvents takes what is there.
func (s *referenceSink) takeEvents(events [3]chan kafka.Event) {
	for {
		select {
		case e := <-events[bulk]:
			s.event(bulk, e)
		case e := <-events[single]:
			s.event(single, e)
		case e := <-events[apart]:
			s.event(apart, e)
		default:
			return
		}
	}
}

func (s *referenceSink) takeReports(dst []Report) []Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.moved {
		st.moved = false
		dst = append(dst, Report{Stream: st.id, Acked: st.base, Outstanding: uint32(st.producing + st.dead), Err: st.err})
	}
	s.moved = s.moved[:0]
	return dst
}

func (s *referenceSink) Reset(stream uint32, pos uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return ErrClosed
	}
	st := s.streams[stream]
	if st == nil {
		st = &referenceStream{id: stream}
		s.streams[stream] = st
	}
	if st.producing+st.dead > 0 {
		return fmt.Errorf("stream %d has outstanding records", stream)
	}
	if pos != st.base || pos >= st.singleEnd {
		st.singleEnd = 0
	}
	st.lane = bulk // Hand chooses
	st.base, st.next, st.done, st.err = pos, pos, map[uint64]struct{}{}, nil
	return nil
}

var _ Recaller = (*referenceSink)(nil)

// Recall is Recaller's, but that connections are just closed.
func (s *referenceSink) Recall() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Connected = false
	s.recalls++
	for _, st := range s.streams {
		if st.producing > 0 {
			st.err = ErrRecalled // says more than what was before
			s.move(st)
		}
	}
	for i := range s.lanes {
		l := &s.lanes[i]
		if l.producer == nil {
			continue
		}
		l.forgiven = l.forgiven || !l.fatal
		l.fatal, l.recalled, l.purgeAt = true, true, time.Time{}
	}
	s.wake() // for tend
}

// reached notes that a broker has answered, as in shim.c. It is called with mu held.
func (s *referenceSink) reached() {
	for i := range s.lanes {
		if s.lanes[i].recalled {
			return
		}
	}
	s.stats.Connected = true
}

func (s *referenceSink) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.stats
	stats.LastError, stats.LastErrorAt = s.journal.last()
	return stats
}

func (s *referenceSink) Close(d time.Duration) error {
	if !s.closing.CompareAndSwap(false, true) {
		return ErrClosed
	}
	until := time.Now().Add(d)
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	close(s.done)
	s.pollMu.Lock()
	defer s.pollMu.Unlock()
	var rest []Report
	for {
		rest = s.poll(0, rest[:0])
		left := time.Until(until)
		if s.Stats().Outstanding == 0 || left <= 0 {
			break
		}
		s.await(min(left, pollSlice))
	}
	s.asks.Wait()
	n := s.Stats().Outstanding
	for i := range s.lanes {
		s.mu.Lock()
		p := s.lanes[i].producer
		s.lanes[i].producer = nil
		s.mu.Unlock()
		if p != nil {
			_ = p.Purge(kafka.PurgeQueue | kafka.PurgeInFlight)
			discard(p)
		}
	}
	s.tasks.Wait()
	if n > 0 {
		return fmt.Errorf("%d records left without a report", n)
	}
	return nil
}

// await waits for an event of a closing sink, whose poll does not wait.
func (s *referenceSink) await(d time.Duration) {
	s.mu.Lock()
	var events [3]chan kafka.Event
	for i := range s.lanes {
		if p := s.lanes[i].producer; p != nil {
			events[i] = p.Events()
		}
	}
	s.mu.Unlock()
	timeout := time.NewTimer(d)
	defer timeout.Stop()
	select {
	case e := <-events[bulk]:
		s.event(bulk, e)
	case e := <-events[single]:
		s.event(single, e)
	case e := <-events[apart]:
		s.event(apart, e)
	case <-timeout.C:
	}
}

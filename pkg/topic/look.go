package topic

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
)

const (
	// lookTimeout bounds a look, so that one at a broker that hangs is given up and
	// the next is not kept waiting for long.
	lookTimeout = time.Second
	// askTimeout is what librdkafka is given for an answer; who asks waits until its
	// context ends. In librdkafka 2.11.1 memory is damaged when this passes while
	// ListOffsets still begins, so it is never short, however little time is left.
	askTimeout = 10 * time.Second
	// describeEvery is how often Run asks which partitions there are.
	describeEvery = time.Second
	// warmEvery is far less than the time after which brokers close a connection
	// without requests, 10 minutes.
	warmEvery = 20 * time.Second
	// vanishAfter is how long brokers must say that a topic does not exist before
	// one that was there is believed to be deleted: a broker that starts may not have heard
	// of it yet.
	vanishAfter = 3 * time.Second
	// maxPartitions bounds what brokers can make a Reader remember.
	maxPartitions = 10_000
	// maxName is what Kafka allows, in bytes.
	maxName = 249
)

// Run looks at the ends of the topics every Options.Interval until ctx ends or
// the Reader is closed.
func (r *Reader) Run(ctx context.Context) {
	tick := time.NewTicker(r.o.Interval)
	defer tick.Stop()
	var described, warmed time.Time
	topics := 0
	for {
		leave, err := r.enter()
		if err != nil {
			return
		}
		r.mu.Lock()
		n := len(r.order)
		r.mu.Unlock()
		describe := n != topics || time.Since(described) >= describeEvery
		err = r.look(ctx, describe, true)
		if (describe && topics != n || time.Since(warmed) >= warmEvery) && ctx.Err() == nil {
			warmed = time.Now()
			r.keepWarm(ctx)
		}
		leave()
		switch {
		case ctx.Err() != nil || r.ctx.Err() != nil:
			return
		case err != nil:
			r.fault(err)
			described = time.Time{}
		case describe:
			described, topics = time.Now(), n
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		case <-r.ctx.Done():
			return
		}
	}
}

// look asks for the ends of all partitions, and first which there are if describe
// is set. With remember they go into the history, else they are for Through, which
// needs the high watermarks as well. It returns nil only if all are known. Looks follow
// one another, so that their answers do not cross.
func (r *Reader) look(ctx context.Context, describe, remember bool) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)()

	select {
	case r.asking <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("ask for ends: %w", context.Cause(ctx))
	}
	defer func() { <-r.asking }()
	began := r.o.Now()
	var err error
	if describe {
		err = r.describe(ctx)
	}
	if lerr := r.list(ctx, began, r.o.Committed); err == nil {
		err = lerr
	}
	marks := !remember && r.o.Committed
	if marks {
		if lerr := r.list(ctx, began, false); err == nil {
			err = lerr
		}
	}
	if remember {
		r.remember(began)
	}
	if err != nil {
		return err
	}
	return r.unknown(began, marks)
}

// keepWarm asks for the same ends on the connections that records come by, so that
// they are there when it matters. What is answered does not.
func (r *Reader) keepWarm(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)()
	var ends []kafka.TopicPartition
	for tp := range r.wanted() {
		tp.Offset = kafka.OffsetEnd
		ends = append(ends, tp)
	}
	if len(ends) > 0 { // not by ListOffsets, which would have to look for leaders itself
		_, _ = r.consumer.OffsetsForTimes(ends, int(remaining(ctx).Milliseconds()))
	}
}

// describe asks which partitions the topics have that are followed. One that is new
// takes a request of its own, all the others one.
func (r *Reader) describe(ctx context.Context) error {
	var fresh, known []*followed
	r.mu.Lock()
	for _, t := range r.order {
		switch {
		case t.named:
			known = append(known, t)
		case t.name == "" || len(t.name) > maxName: // the library cannot even ask
			t.asked, t.absent = true, true
		default:
			fresh = append(fresh, t)
		}
	}
	r.mu.Unlock()
	// Not by DescribeTopics: in librdkafka 2.11.1 that damages memory when an answer
	// to another question of the same client comes meanwhile. To ask for a topic by
	// GetMetadata makes it one of the client's own, and nil asks for all of these;
	// without any it would be all of the cluster's. Brokers make no topic because of it:
	// see settings. And the client is told of new leaders.
	if len(known) > 0 {
		if err := r.metadata(ctx, nil, known); err != nil {
			return err
		}
	}
	for _, t := range fresh {
		if err := r.metadata(ctx, &t.name, []*followed{t}); err != nil {
			return err
		}
	}
	return nil
}

// metadata asks for one topic by its name, or for the client's own, and takes in what
// is said of those in list.
func (r *Reader) metadata(ctx context.Context, name *string, list []*followed) error {
	if ctx.Err() != nil {
		return fmt.Errorf("ask for partitions: %w", context.Cause(ctx))
	}
	md, err := r.looks.GetMetadata(name, false, int(remaining(ctx).Milliseconds()))
	if err != nil {
		return fmt.Errorf("ask for partitions: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range list {
		t.named = true
		if d, ok := md.Topics[t.name]; ok {
			r.described(t, &d)
		} else {
			t.err = errors.New("the brokers say nothing of it")
		}
	}
	return nil
}

// described takes in what was said of a topic. It is called with mu held.
func (r *Reader) described(t *followed, d *kafka.TopicMetadata) {
	switch d.Error.Code() {
	case kafka.ErrNoError:
	case kafka.ErrUnknownTopicOrPart, kafka.ErrTopicException: // or with a name that none can have
		t.asked, t.err = true, nil
		if len(t.parts) == 0 || t.absent {
			t.absent = true
			return
		}
		if t.missing.IsZero() {
			t.missing = time.Now()
		}
		t.unled()
		if time.Since(t.missing) < vanishAfter {
			t.err = d.Error
			return
		}
		t.absent = true
		for _, p := range t.parts {
			p.gone, p.wanted, p.end = true, false, -1
		}
		r.notify()
		return
	default:
		t.err = d.Error
		t.unled()
		return
	}
	t.missing = time.Time{}
	for i := range d.Partitions {
		n := int(d.Partitions[i].ID)
		for len(t.parts) <= n && len(r.parts) < maxPartitions {
			p := &partition{topic: t, n: int32(len(t.parts)), slot: len(r.parts), end: -1, born: t.asked}
			t.parts = append(t.parts, p)
			r.parts = append(r.parts, p)
		}
		if n >= len(t.parts) {
			t.err = fmt.Errorf("more than %d partitions", maxPartitions)
			return
		}
		p := t.parts[n]
		p.led = d.Partitions[i].Leader >= 0
		if p.gone {
			p.gone, p.born, p.read = false, true, false
			r.past.lower(p.slot, 0)
		}
	}
	t.asked, t.absent, t.err = true, false, nil
}

// unled keeps questions for ends from being put while it is not known to whom: what is
// told of a topic while librdkafka 2.11.1 looks for that itself can damage memory.
func (t *followed) unled() {
	for _, p := range t.parts {
		p.led = false
	}
}

// list asks for the ends of the partitions that have a leader, of what is committed
// or else for the high watermarks.
func (r *Reader) list(ctx context.Context, began int64, committed bool) error {
	want := r.wanted()
	if len(want) == 0 {
		return nil
	}
	isolation := kafka.IsolationLevelReadUncommitted
	if committed {
		isolation = kafka.IsolationLevelReadCommitted
	}
	res, err := r.looks.ListOffsets(ctx, want, kafka.SetAdminIsolationLevel(isolation), kafka.SetAdminRequestTimeout(askTimeout))
	if err != nil {
		return fmt.Errorf("ask for ends: %w", err)
	}
	at := r.o.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for tp, end := range res.ResultInfos {
		p := r.partition(tp.Topic, tp.Partition)
		if p == nil || p.gone {
			continue
		}
		if end.Error.Code() != kafka.ErrNoError {
			err = fmt.Errorf("end of topic %s partition %d: %w", p.topic.name, p.n, end.Error)
			continue
		}
		if !committed && end.Offset >= 0 {
			p.mark, p.markAt = int64(end.Offset), at
		}
		if committed == r.o.Committed {
			r.ended(p, int64(end.Offset), began, at)
		}
	}
	return err
}

// wanted returns the partitions that have a leader.
func (r *Reader) wanted() map[kafka.TopicPartition]kafka.OffsetSpec {
	want := map[kafka.TopicPartition]kafka.OffsetSpec{}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.parts {
		if p.led && !p.gone {
			want[kafka.TopicPartition{Topic: &p.topic.name, Partition: p.n}] = kafka.LatestOffsetSpec
		}
	}
	return want
}

// ended takes in where a partition ended at some time between began and at. It is called with mu held.
func (r *Reader) ended(p *partition, end, began, at int64) {
	switch {
	case end < 0:
		return
	case p.end > end && began < p.endAt: // two looks crossed
		return
	case p.end > end:
		// It was cut or made anew. How far back it went in between is not known.
		r.past.lower(p.slot, max(0, end-int64(r.o.Most/2)))
	}
	p.end, p.endAt = end, max(at, p.endAt)
}

// remember puts what is known since began into the history.
func (r *Reader) remember(began int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.parts) == 0 {
		return
	}
	r.looked = began
	ends := r.past.add(r.o.Now(), len(r.parts))
	for i, p := range r.parts {
		if ends[i] = -1; !p.gone && p.endAt >= began {
			ends[i] = p.end
		}
	}
	if r.reading {
		for _, p := range r.parts {
			r.begin(p)
		}
	}
}

// unknown returns an error if an end has not been told since began, or a high
// watermark if marks is set.
func (r *Reader) unknown(began int64, marks bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.order {
		if t.err != nil {
			return fmt.Errorf("topic %s: %w", t.name, t.err)
		}
		if !t.asked && t.since < began {
			return fmt.Errorf("topic %s: not known yet", t.name)
		}
		for _, p := range t.parts {
			if !p.gone && (p.end < 0 || p.endAt < began || marks && p.markAt < began) {
				if !p.led {
					return fmt.Errorf("topic %s partition %d has no leader", t.name, p.n)
				}
				return fmt.Errorf("topic %s partition %d: end not told", t.name, p.n)
			}
		}
	}
	return nil
}

func remaining(ctx context.Context) time.Duration {
	until, ok := ctx.Deadline()
	if !ok {
		return lookTimeout
	}
	return min(max(time.Until(until), time.Millisecond), lookTimeout)
}

// A history is where partitions ended, look by look.
type history struct {
	keep  int64  // µs
	most  int    // looks
	looks []look // oldest first
	spare []int64
}

type look struct {
	at   int64   // when the answer was there, µs
	ends []int64 // by slot; -1: not told. Slots that are newer are missing.
}

// add makes room for a look and returns its ends, to be filled in.
func (h *history) add(at int64, slots int) []int64 {
	// The look before the oldest moment that is asked for has to stay.
	drop := 0
	for drop+1 < len(h.looks) && (h.looks[drop+1].at <= at-h.keep || len(h.looks)-drop >= h.most) {
		drop++
	}
	if drop > 0 {
		h.spare = h.looks[drop-1].ends
		n := copy(h.looks, h.looks[drop:])
		clear(h.looks[n:])
		h.looks = h.looks[:n]
	}
	ends := h.spare
	h.spare = nil
	if cap(ends) < slots {
		ends = make([]int64, slots)
	}
	ends = ends[:slots]
	h.looks = append(h.looks, look{at, ends})
	return ends
}

// before returns where a partition ended at the newest look at or before since
// that tells, or else at the oldest one that does, and the time of that look.
func (h *history) before(slot int, since int64) (end, at int64, ok bool) {
	for i := len(h.looks) - 1; i >= 0; i-- {
		l := &h.looks[i]
		if slot >= len(l.ends) {
			break // nor in older ones
		}
		if l.ends[slot] < 0 {
			continue
		}
		end, at, ok = l.ends[slot], l.at, true
		if l.at <= since {
			break
		}
	}
	return end, at, ok
}

// lower puts all ends of a partition that are higher down to end.
func (h *history) lower(slot int, end int64) {
	for i := range h.looks {
		if ends := h.looks[i].ends; slot < len(ends) {
			ends[slot] = min(ends[slot], end)
		}
	}
}

func (h *history) span() (from, to int64) {
	if len(h.looks) == 0 {
		return 0, 0
	}
	return h.looks[0].at, h.looks[len(h.looks)-1].at
}

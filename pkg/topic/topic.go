// Package topic reads the end of Kafka topics back: what was put into them from a
// moment a little ago until now, within milliseconds of being asked.
//
// Where to begin is not looked up by time stamps, which are those of other
// machines: a Reader looks at the ends of its topics a few times a second and
// remembers them, by a clock of the caller. What the package promises:
//
//   - Prime begins at ends that the topics had at or before the moment given, so
//     nothing that was put into them later is missed; where nothing so old is
//     remembered it begins at the oldest that is, and says so.
//   - Records of a partition are handed over in the order of their offsets, none
//     twice and none left out, except those that Kafka has removed or that belong to
//     an aborted transaction.
//   - Through returns only when everything has been handed over that was in the
//     topics when it was called, and with Options.Committed when each transaction that
//     was open then, whoever's, has ended: behind the first open one nothing
//     can be read. It waits no longer than its context; where it cannot be known what
//     there is, it fails.
//   - Looks go on beside all that, on connections that are kept open.
//   - Memory is bounded by what a look weighs, 8 bytes for a partition, the time that
//     looks are kept, and a few MiB of records on their way.
//
// Nothing is ever written to Kafka, no offset is committed and no group is
// joined.
package topic

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/sink"
)

// Defaults of Options.
const (
	DefaultInterval = 250 * time.Millisecond
	DefaultKeep     = 2 * time.Minute
	DefaultMost     = 1_000_000
)

// Errors of Through.
var (
	// ErrTooMany: more records than Options.Most were there.
	ErrTooMany = errors.New("too many records")
	// ErrResting: nothing is being read.
	ErrResting = errors.New("not reading")
	// ErrClosed: the Reader is closed.
	ErrClosed = errors.New("reader is closed")
)

// Options say what a Reader reads. Now and Read are required.
type Options struct {
	// Kafka says how to reach it: Brokers, Properties, TLS and SASL, as for a sink.
	// Properties that do not concern a consumer are left out, and the other fields
	// are not used.
	Kafka sink.Options

	// Topics are followed from the start, as with Follow.
	Topics []string

	// Interval is the time between looks at the ends and Keep how long one is
	// remembered; 0 means the defaults.
	Interval, Keep time.Duration

	// Committed leaves out what belongs to transactions that are open or aborted.
	// What Prime begins at is then before the first open one, and Through waits for
	// the end of those that are open when it is called.
	Committed bool

	// Most is the greatest number of records that are read for one Prime; 0
	// means DefaultMost.
	Most int

	// Read is called for each record, always from one goroutine. It must not call
	// the Reader.
	Read func(*Record)

	// Now tells the caller's time in µs; it must not go back.
	Now func() int64

	// Log takes what the Kafka client has to say, at most a few lines a second.
	// nil discards it.
	Log *slog.Logger
}

// A Record is one that was read. Its slices are valid during the call and not to
// be changed.
type Record struct {
	Topic     string
	Partition int32
	Offset    int64
	Time      int64  // ms since 1970, as Kafka has it; 0 if it has none
	Key       []byte // nil if it has none
	Value     []byte // nil for a tombstone
	Header    []byte // bmpha's own, not checked; nil if it has none
}

// Progress says what has been read since Prime.
type Progress struct {
	Records int
	Bytes   int64 // of keys and values
	// From is the time, in µs of Options.Now, of the latest look at which reading
	// of a partition began. When it is later than what Prime was given, records
	// from between the two may not have been read.
	From int64
	// Took is the time from Prime until the end was first reached, or until now.
	Took time.Duration
}

// Status is what operators may want to know.
type Status struct {
	Topics     int   // followed
	Partitions int   // of them that exist
	Known      int   // of these, whose end the last look told
	From, To   int64 // times of the oldest and the newest look that is remembered, µs of Options.Now; 0 for none
	Reading    bool
	Last       Progress // of the Prime under way, or of the last one

	LastError   string // of looks and of the Kafka client; "" for none yet
	LastErrorAt time.Time
}

// A Reader remembers where topics ended and reads them from there. The methods
// are safe for concurrent use; Close ends it.
type Reader struct {
	o        Options
	consumer *kafka.Consumer
	// A broker answers the requests of one connection one after the other, and a fetch
	// waits for records, so looks have a client of their own. It produces nothing.
	looker *kafka.Producer
	looks  *kafka.AdminClient
	asking chan struct{} // holds a token while looks is in use
	redact func(string) string
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	tasks  sync.WaitGroup // calls that use the clients, and poll
	rest   sync.WaitGroup // what ends with the clients
	wake   chan struct{}  // something for poll to do

	// steer is held while the consumer is polled or told what to read, so that no
	// event of an earlier assignment is taken for one of the next. It is taken
	// before mu.
	steer sync.Mutex

	mu     sync.Mutex // everything below
	closed bool
	topics map[string]*followed
	order  []*followed  // by time of Follow
	parts  []*partition // by slot
	past   history
	looked int64 // when the last look of Run began, µs

	reading  bool
	found    bool          // a partition waits for being read
	stopped  error         // why nothing is read
	since    int64         // of Prime
	begun    time.Time     // of Prime
	through  bool          // the end has been reached since
	progress Progress      // of Prime
	moved    chan struct{} // closed and replaced when a goal is reached or reading ends

	lastError   string
	lastErrorAt time.Time
}

// A followed is a topic of which the ends are remembered.
type followed struct {
	name    string
	since   int64 // followed, µs
	parts   []*partition
	named   bool      // looks is asked for it with all the others
	asked   bool      // it is known whether it exists
	absent  bool      // it did not exist when last asked
	missing time.Time // since when it is said to be absent although it was there
	err     error     // why it is not known
}

// A partition of a followed topic.
type partition struct {
	topic *followed
	n     int32
	slot  int
	born  bool // it was not there before it was first seen
	gone  bool // its topic vanished

	led   bool  // it had a leader when last asked
	end   int64 // of what can be read; -1: not known
	endAt int64
	// The high watermark. It is behind end while a transaction is open, if Committed.
	mark, markAt int64

	wanted bool  // is to be read, as soon as poll comes to it
	read   bool  // is being read
	held   bool  // the consumer has it assigned
	next   int64 // the offset up to which it has been read
	goal   int64 // somebody waits for next to be there
}

// New makes a Reader. It does not wait for a broker; an error is one of the
// options.
func New(o Options) (*Reader, error) {
	if o.Read == nil || o.Now == nil {
		return nil, errors.New("topic reader: Read and Now are required")
	}
	if o.Interval <= 0 {
		o.Interval = DefaultInterval
	}
	if o.Keep <= 0 {
		o.Keep = DefaultKeep
	}
	if o.Most <= 0 {
		o.Most = DefaultMost
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	reach, read, err := settings(&o)
	if err != nil {
		return nil, err
	}
	r := &Reader{
		o: o, redact: o.Kafka.Redactor(), wake: make(chan struct{}, 1), asking: make(chan struct{}, 1), topics: map[string]*followed{},
		past:  history{keep: o.Keep.Microseconds(), most: int(2*o.Keep/o.Interval) + 16},
		moved: make(chan struct{}), stopped: ErrResting,
	}
	if r.consumer, err = kafka.NewConsumer(&read); err != nil {
		return nil, fmt.Errorf("topic reader: %s", r.redact(err.Error()))
	}
	if r.looker, err = kafka.NewProducer(&reach); err != nil {
		_ = r.consumer.Close()
		return nil, fmt.Errorf("topic reader: %s", r.redact(err.Error()))
	}
	r.looks, _ = kafka.NewAdminClientFromProducer(r.looker) // which is open
	r.ctx, r.cancel = context.WithCancel(context.Background())
	for _, t := range o.Topics {
		r.Follow(t)
	}
	r.tasks.Go(r.poll)
	r.rest.Go(func() { r.passLogs(r.consumer.Logs()) })
	r.rest.Go(func() { r.passLogs(r.looker.Logs()) })
	r.rest.Go(func() {
		for e := range r.looker.Events() {
			if err, ok := e.(kafka.Error); ok {
				r.fault(err)
			}
		}
	})
	return r, nil
}

// Close ends the Reader and whatever it is doing. It takes a few tenths of a second.
func (r *Reader) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return ErrClosed
	}
	r.closed, r.reading, r.stopped = true, false, ErrClosed
	r.notify()
	r.mu.Unlock()
	r.cancel()
	r.tasks.Wait()
	r.steer.Lock()
	defer r.steer.Unlock()
	r.looker.Close()
	err := r.consumer.Close()
	r.rest.Wait()
	if err != nil {
		return fmt.Errorf("topic reader: close: %w", err)
	}
	return nil
}

// enter keeps Close from ending the client, until the function returned is called.
func (r *Reader) enter() (leave func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	r.tasks.Add(1)
	return r.tasks.Done, nil
}

// Follow remembers the ends of a topic from now on, whether it exists yet or not.
// It may be called for the same one again.
func (r *Reader) Follow(topic string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.topics[topic] == nil {
		t := &followed{name: topic, since: r.o.Now()}
		r.topics[topic] = t
		r.order = append(r.order, t)
	}
}

// Prime begins to read where the topics ended at or before since, µs of
// Options.Now, or at the oldest end that is remembered, and goes on with what
// comes. What was being read before is left off. A partition whose end is not known at all
// is read from the first end that is told of it.
func (r *Reader) Prime(since int64) error {
	leave, err := r.enter()
	if err != nil {
		return err
	}
	defer leave()
	begun := time.Now()
	r.steer.Lock()
	defer r.steer.Unlock()
	r.stop(ErrResting)

	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return ErrClosed
	}
	r.reading, r.stopped, r.through = true, nil, false
	r.since, r.begun, r.progress = since, begun, Progress{From: min(since, r.o.Now())}
	for _, p := range r.parts {
		p.goal = 0
		r.begin(p)
	}
	r.mu.Unlock()
	r.assign()
	select {
	case r.wake <- struct{}{}:
	default:
	}
	return nil
}

// begin says where to read a partition from, if that is known. It is called with mu held.
func (r *Reader) begin(p *partition) {
	if p.wanted || p.read || p.gone {
		return
	}
	from, at, ok := r.past.before(p.slot, r.since)
	switch {
	case ok && at <= r.since:
	case p.born:
		from, at = 0, r.since
	case ok:
	case p.end >= 0:
		from, at = p.end, p.endAt
	default:
		return
	}
	r.progress.From = max(r.progress.From, at)
	p.next, p.wanted = from, true
	r.found = true
}

// assign tells the consumer what else to read. It is called with steer held.
func (r *Reader) assign() {
	r.mu.Lock()
	var again, list []kafka.TopicPartition
	if r.reading && r.found {
		for _, p := range r.parts {
			if p.wanted {
				if p.held { // its topic was made anew
					again = append(again, kafka.TopicPartition{Topic: &p.topic.name, Partition: p.n})
				}
				p.wanted, p.read, p.held = false, true, true
				list = append(list, kafka.TopicPartition{Topic: &p.topic.name, Partition: p.n, Offset: kafka.Offset(p.next)})
			}
		}
	}
	r.found = false
	r.mu.Unlock()
	if len(list) == 0 {
		return
	}
	var err error
	if len(again) > 0 {
		err = r.consumer.IncrementalUnassign(again)
	}
	if err == nil {
		err = r.consumer.IncrementalAssign(list)
	}
	if err != nil {
		err = fmt.Errorf("begin to read: %w", err)
		r.fault(err)
		r.stop(err)
	}
}

// Rest stops reading. Looks go on and connections stay.
func (r *Reader) Rest() {
	leave, err := r.enter()
	if err != nil {
		return
	}
	defer leave()
	r.steer.Lock()
	defer r.steer.Unlock()
	r.stop(ErrResting)
}

// stop ends reading, for a reason. It is called with steer held.
func (r *Reader) stop(why error) {
	r.mu.Lock()
	was := r.reading
	if was {
		r.reading, r.stopped = false, why
		r.settle()
	}
	held := false
	for _, p := range r.parts {
		held = held || p.held
		p.wanted, p.read, p.held = false, false, false
	}
	r.notify()
	r.mu.Unlock()
	if !held {
		return
	}
	if err := r.consumer.Unassign(); err != nil {
		r.fault(fmt.Errorf("stop reading: %w", err))
	}
}

// settle fixes how long it took. It is called with mu held.
func (r *Reader) settle() {
	if !r.through {
		r.progress.Took = time.Since(r.begun)
		r.through = true
	}
}

// notify lets those who wait look again. It is called with mu held.
func (r *Reader) notify() {
	close(r.moved)
	r.moved = make(chan struct{})
}

// Polling waits this long for something to come, and at rest this long for
// errors to be taken out of the client.
const (
	pollWait = 10 * time.Millisecond
	restWait = time.Second
)

// poll takes records and errors out of the client.
func (r *Reader) poll() {
	rest := time.NewTimer(restWait)
	defer rest.Stop()
	for r.ctx.Err() == nil {
		r.steer.Lock()
		r.mu.Lock()
		reading, found := r.reading, r.found
		r.mu.Unlock()
		if found {
			r.assign()
		}
		wait := 0
		if reading {
			wait = int(pollWait / time.Millisecond)
		}
		for range 1000 {
			e := r.consumer.Poll(wait)
			if e == nil {
				break
			}
			r.take(e)
			wait = 0
		}
		r.steer.Unlock()
		if reading {
			continue
		}
		rest.Reset(restWait)
		select {
		case <-r.wake:
		case <-rest.C:
		case <-r.ctx.Done():
		}
	}
}

// take handles one event. It is called with steer held.
func (r *Reader) take(e kafka.Event) {
	switch e := e.(type) {
	case *kafka.Message:
		r.takeMessage(e)
	case kafka.PartitionEOF:
		r.mu.Lock()
		if p := r.partition(e.Topic, e.Partition); p != nil && p.read && int64(e.Offset) > p.next {
			r.reach(p, int64(e.Offset)) // behind it there is nothing but what is no record
		}
		r.mu.Unlock()
	case kafka.Error:
		r.fault(e)
	}
}

func (r *Reader) takeMessage(m *kafka.Message) {
	tp := &m.TopicPartition
	if tp.Error != nil {
		r.fault(tp.Error)
		return
	}
	r.mu.Lock()
	p := r.partition(tp.Topic, tp.Partition)
	if !r.reading || p == nil || !p.read || int64(tp.Offset) < p.next {
		r.mu.Unlock()
		return
	}
	if r.progress.Records >= r.o.Most {
		r.mu.Unlock()
		r.stop(ErrTooMany)
		return
	}
	r.progress.Records++
	r.progress.Bytes += int64(len(m.Key) + len(m.Value))
	r.mu.Unlock()

	rec := Record{
		Topic: p.topic.name, Partition: p.n, Offset: int64(tp.Offset), Key: m.Key, Value: m.Value,
	}
	if m.TimestampType != kafka.TimestampNotAvailable {
		rec.Time = m.Timestamp.UnixMilli()
	}
	for i := range m.Headers {
		if m.Headers[i].Key == record.HeaderName { // bmpha's own is the last
			rec.Header = m.Headers[i].Value
		}
	}
	r.o.Read(&rec)

	r.mu.Lock()
	r.reach(p, int64(tp.Offset)+1)
	r.mu.Unlock()
}

// partition is called with mu held.
func (r *Reader) partition(topic *string, n int32) *partition {
	if topic == nil {
		return nil
	}
	t := r.topics[*topic]
	if t == nil || n < 0 || int(n) >= len(t.parts) {
		return nil
	}
	return t.parts[n]
}

// reach says up to where a partition has been read. It is called with mu held.
func (r *Reader) reach(p *partition, next int64) {
	waited := p.goal > p.next
	p.next = next
	if waited && next >= p.goal {
		r.notify()
	}
}

// retryLook is the pause between looks of Through that do not tell all.
const retryLook = 20 * time.Millisecond

// Through waits until everything that was in the topics when it was called has
// been read, or is known to be aborted, and says what has been read since Prime. It fails when ctx ends, when more
// than Options.Most records were there, and when reading is stopped meanwhile.
func (r *Reader) Through(ctx context.Context) (Progress, error) {
	leave, err := r.enter()
	if err != nil {
		return Progress{}, err
	}
	defer leave()
	if p, err := r.state(); err != nil {
		return p, err
	}
	var goals []goal
	for {
		if err = r.look(ctx, true, false); err == nil {
			if goals, err = r.goals(); err == nil {
				break
			}
		}
		if p, err := r.state(); err != nil {
			return p, err
		}
		pause := time.NewTimer(retryLook)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			p, _ := r.state()
			return p, fmt.Errorf("ends of topics: %w: %w", context.Cause(ctx), err)
		}
	}
	for {
		r.mu.Lock()
		moved, p, err := r.moved, r.now(), r.stopped
		goals = slices.DeleteFunc(goals, func(g goal) bool { return g.p.gone || (g.p.read || g.p.wanted) && g.p.next >= g.end })
		if err == nil && len(goals) == 0 {
			r.settle()
			p = r.now()
		}
		for _, g := range goals {
			g.p.goal = max(g.p.goal, g.end)
		}
		r.mu.Unlock()
		if err != nil || len(goals) == 0 {
			return p, err
		}
		select {
		case <-moved:
		case <-ctx.Done():
			g := goals[0]
			r.mu.Lock()
			p, next, last := r.now(), g.p.next, r.lastError
			open := g.p.end >= 0 && g.p.end < g.end && next >= g.p.end
			r.mu.Unlock()
			if last != "" {
				last = ", last error: " + last
			}
			if open {
				last = ", where a transaction is open" + last
			}
			return p, fmt.Errorf("topic %s partition %d is read up to %d of %d%s: %w", g.p.topic.name, g.p.n, next, g.end, last, context.Cause(ctx))
		}
	}
}

// A goal is an offset that a partition has to be read up to.
type goal struct {
	p   *partition
	end int64
}

// goals returns where all partitions end, with all that is in open transactions, and
// has those read that are not yet.
func (r *Reader) goals() ([]goal, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped != nil {
		return nil, r.stopped
	}
	var goals []goal
	for _, p := range r.parts {
		if p.gone {
			continue
		}
		r.begin(p)
		goals = append(goals, goal{p, p.mark})
	}
	return goals, nil
}

// now returns the progress. It is called with mu held.
func (r *Reader) now() Progress {
	p := r.progress
	if r.reading && !r.through {
		p.Took = time.Since(r.begun)
	}
	return p
}

// state returns the progress, and why nothing is being read.
func (r *Reader) state() (Progress, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now(), r.stopped
}

// Status returns how things are.
func (r *Reader) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := Status{
		Topics: len(r.order), Reading: r.reading, Last: r.now(), LastError: r.lastError, LastErrorAt: r.lastErrorAt,
	}
	s.From, s.To = r.past.span()
	for _, p := range r.parts {
		if p.gone {
			continue
		}
		s.Partitions++
		if p.led && p.end >= 0 && p.endAt >= r.looked {
			s.Known++
		}
	}
	return s
}

func (r *Reader) fault(err error) {
	text := r.redact(err.Error())
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lastError, r.lastErrorAt = text, time.Now()
}

package sink

/*
#cgo CFLAGS: -O2 -Wall
#cgo noescape bk_hand
#cgo nocallback bk_hand
#cgo noescape bk_poll
#cgo nocallback bk_poll
#cgo nocallback bk_transact
#include <stdlib.h>
#include "shim.h"
*/
import "C"

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/bmpha/bmpha/pkg/record"
)

// reportsPerPoll is how many streams one call into C can report; more take more
// calls.
const reportsPerPoll = 256

// quiet are the flags of a poll that needs no attention.
const quiet = C.BK_CONNECTED | C.BK_PROGRESS<<C.BK_BULK

// pollSlice bounds how long a call into C waits, so that Close and a new dead
// letter are not kept waiting for longer.
const pollSlice = 100 * time.Millisecond

// confirmTimeout bounds how long Options.Confirm may take. A transaction is open
// meanwhile, and has to end before its own time-out.
const confirmTimeout = 3 * time.Second

// askTimeout bounds the wait for a broker that is asked how many partitions a
// topic has.
const askTimeout = 500 * time.Millisecond

// kafkaSink is the Sink over librdkafka with the window kept in C: a batch
// crosses in one call, and so do the reports of all streams that moved. The Go
// side holds what is rare: names, dead letters, log lines, the making of
// producers.
//
// There are up to three producers. What a broker refuses, it refuses as a batch,
// and librdkafka then reports every record of it as too large or invalid. So the
// stream stops (ErrBatchRefused), and after its Reset these records go through a
// second producer whose batches hold one record. What is refused there goes to
// the dead-letter file. A third one takes the topics that were refused or
// unknown: shim.h says why.
//
// With transactions each of the three has an id and transactions of its own, and a
// goroutine that spends its life in bk_transact. A stream is in one of them at a
// time.
type kafkaSink struct {
	c          *C.bk_sink
	window     int
	deadLetter string
	fencing    bool
	confirm    func(context.Context) error
	journal    *journal

	mu     sync.RWMutex // held for reading while c is in use, for writing to free it
	closed bool
	last   Stats // once closed

	topicMu sync.Mutex
	topics  map[string]uint32
	names   []string

	pollMu     sync.Mutex // Poll and Close
	reports    []C.bk_report
	closing    atomic.Bool
	done       chan struct{}   // closed by Close: ends a Poll that waits and the goroutines
	confirming context.Context // ends when Close has waited long enough
	unconfirm  context.CancelFunc
	tasks      sync.WaitGroup

	taskMu   sync.Mutex
	probing  bool
	building [C.BK_LANES]bool
	failures [C.BK_LANES]int  // rebuilds in a row without a record acknowledged
	recalled [C.BK_LANES]bool // the next rebuild is for no failure
	rebuilt  uint64
}

var (
	_ Fencer   = (*kafkaSink)(nil)
	_ Recaller = (*kafkaSink)(nil)
)

// NewKafka returns the Sink over librdkafka that bmpha uses. It does not wait
// for a broker. An error is one of the configuration.
func NewKafka(o Options) (Sink, error) {
	properties, err := o.properties()
	if err != nil {
		return nil, err
	}
	if C.bk_linked() == 0 {
		return nil, errors.New("librdkafka is not linked in")
	}
	name := C.CString(record.HeaderName)
	defer C.free(unsafe.Pointer(name))
	k := &kafkaSink{
		c:          C.bk_new(C.uint32_t(o.window()), name),
		window:     o.window(),
		deadLetter: o.DeadLetter,
		fencing:    o.TransactionalID != "",
		confirm:    o.Confirm,
		journal:    newJournal(&o),
		topics:     map[string]uint32{},
		reports:    make([]C.bk_report, reportsPerPoll),
		done:       make(chan struct{}),
	}
	if k.c == nil {
		return nil, errors.New("no memory for a Kafka producer")
	}
	if err := configure(k.c, properties); err != nil {
		C.bk_free(k.c)
		return nil, errors.New(k.journal.redact(err.Error()))
	}
	if k.fencing {
		id := C.CString(o.TransactionalID)
		defer C.free(unsafe.Pointer(id))
		if C.bk_fencing(k.c, id, C.int(max(o.commitInterval()/time.Millisecond, 1))) != 0 {
			C.bk_free(k.c)
			return nil, errors.New("no memory for a Kafka producer")
		}
	}
	if _, err := k.build(C.BK_BULK); err != nil {
		C.bk_free(k.c)
		return nil, errors.New(k.journal.redact(err.Error()))
	}
	k.confirming, k.unconfirm = context.WithCancel(context.Background())
	if k.fencing {
		k.tasks.Go(func() { k.transact(C.BK_BULK) })
	}
	return k, nil
}

// configure sets properties, in the order of their names so that errors do not
// change from run to run.
func configure(c *C.bk_sink, properties map[string]string) error {
	var text [512]C.char
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		n, v := C.CString(name), C.CString(properties[name])
		failed := C.bk_conf(c, n, v, &text[0], C.size_t(len(text))) != 0
		C.free(unsafe.Pointer(n))
		C.free(unsafe.Pointer(v))
		if failed {
			return fmt.Errorf("property %s: %s", name, C.GoString(&text[0]))
		}
	}
	return nil
}

func checkWithLibrary(properties map[string]string) error {
	if C.bk_linked() == 0 {
		return errors.New("librdkafka is not linked in")
	}
	name := C.CString(record.HeaderName)
	defer C.free(unsafe.Pointer(name))
	c := C.bk_new(1, name)
	if c == nil {
		return errors.New("no memory for a Kafka configuration")
	}
	defer C.bk_free(c)
	o := Options{Properties: properties}
	if err := configure(c, properties); err != nil {
		return errors.New(o.Redactor()(err.Error()))
	}
	return nil
}

// Version returns the version of librdkafka.
func Version() string { return C.GoString(C.bk_version()) }

// build makes the producer of a lane and tells whether it was missing.
func (k *kafkaSink) build(lane C.int) (built bool, err error) {
	var text [512]C.char
	switch C.bk_build(k.c, lane, &text[0], C.size_t(len(text))) {
	case 0:
		return true, nil
	case 1:
		return false, nil
	default:
		return false, fmt.Errorf("make a Kafka producer: %s", C.GoString(&text[0]))
	}
}

func (k *kafkaSink) Topic(name string) (uint32, error) {
	if err := checkTopic(name); err != nil {
		return 0, err
	}
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.closed {
		return 0, ErrClosed
	}
	k.topicMu.Lock()
	defer k.topicMu.Unlock()
	if h, ok := k.topics[name]; ok {
		return h, nil
	}
	s := C.CString(name)
	defer C.free(unsafe.Pointer(s))
	h := C.bk_topic(k.c, s)
	if h < 0 {
		return 0, fmt.Errorf("topic %q: more than %d topics", name, int(C.BK_MAX_TOPICS))
	}
	k.topics[name] = uint32(h)
	k.names = append(k.names, name)
	return uint32(h), nil
}

func (k *kafkaSink) topicName(h uint32) string {
	k.topicMu.Lock()
	defer k.topicMu.Unlock()
	if int(h) < len(k.names) {
		return k.names[h]
	}
	return ""
}

func (k *kafkaSink) Hand(stream uint32, pos uint64, b *record.Batch, from int) (int, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.closed {
		return 0, ErrClosed
	}
	recs := b.Recs[from:]
	if len(recs) == 0 {
		return 0, nil
	}
	h := C.bk_hand(k.c, C.uint32_t(stream), C.uint64_t(pos),
		unsafe.Pointer(unsafe.SliceData(b.Data)), C.uint64_t(len(b.Data)),
		unsafe.Pointer(unsafe.SliceData(recs)), C.uint32_t(len(recs)))
	switch h.err {
	case C.BK_OK:
		return int(h.n), nil
	case C.BK_STOPPED:
		return 0, ErrStopped
	case C.BK_CLOSED:
		return 0, ErrClosed
	case C.BK_POSITION:
		return 0, fmt.Errorf("stream %d: position %d does not follow the last one", stream, pos)
	case C.BK_BAD_RECORD:
		return 0, fmt.Errorf("stream %d: position %d: record outside of its batch", stream, pos)
	case C.BK_NO_TOPIC:
		return 0, fmt.Errorf("stream %d: position %d: no topic with handle %d", stream, pos, recs[0].Topic)
	default:
		return 0, fmt.Errorf("stream %d was never Reset", stream)
	}
}

func (k *kafkaSink) Poll(d time.Duration, dst []Report) []Report {
	k.pollMu.Lock()
	defer k.pollMu.Unlock()
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.poll(d, dst)
}

// poll is called with pollMu and mu held.
func (k *kafkaSink) poll(d time.Duration, dst []Report) []Report {
	until := time.Now().Add(d)
	had := len(dst)
	for wait := d; ; {
		if k.closed {
			return dst
		}
		// Rounded up: a wait of less than a millisecond must not spin.
		ms := (min(wait, pollSlice) + time.Millisecond - 1) / time.Millisecond
		p := C.bk_poll(k.c, C.int(max(ms, 0)), &k.reports[0], C.uint32_t(len(k.reports)))
		for i := range k.reports[:p.n] {
			dst = append(dst, k.report(&k.reports[i]))
		}
		if p.flags != quiet {
			k.attend(p.flags)
		}
		if p.flags&C.BK_HAS_DEAD != 0 || p.n == reportsPerPoll {
			wait = 0
			continue // there is more to report
		}
		if wait = time.Until(until); wait <= 0 || len(dst) > had {
			return dst
		}
		select {
		case <-k.done:
			return dst
		default:
		}
	}
}

func (k *kafkaSink) report(r *C.bk_report) Report {
	out := Report{Stream: uint32(r.stream), Acked: uint64(r.acked), Outstanding: uint32(r.outstanding)}
	if r.err == 0 {
		return out
	}
	var why error
	switch r.err {
	case C.BK_ABORTED:
		out.Err = ErrAborted
		return out
	case C.BK_RECALLED:
		out.Err = ErrRecalled
		return out
	case C.BK_FENCED:
		out.Err = ErrFenced
		k.journal.fault(out.Err.Error())
		return out
	case C.BK_DEAD_LETTER:
		why = errors.New("the dead-letter file could not take the record")
	default:
		why = errors.New(C.GoString(C.bk_err2str(C.int(r.err))))
	}
	if r.again != 0 {
		why = fmt.Errorf("%w: %w", ErrBatchRefused, why)
	}
	out.Err = fmt.Errorf("topic %s: position %d: %w", k.topicName(uint32(r.topic)), uint64(r.err_pos), why)
	if r.err != C.BK_DEAD_LETTER { // which has told more
		k.journal.fault(out.Err.Error())
	}
	return out
}

// attend does what is rare.
func (k *kafkaSink) attend(flags C.uint32_t) {
	if flags&C.BK_HAS_TEXT != 0 {
		for t := C.bk_take_text(k.c); t != nil; {
			next := t.next
			text, facility := C.GoString(&t.text[0]), C.GoString(&t.fac[0])
			if facility == "" { // an error event
				facility = C.GoString(C.bk_err2str(C.int(t.err)))
				if t.err == allBrokersDown {
					k.journal.symptom(facility + ": " + text)
				} else {
					k.journal.fault(facility + ": " + text)
				}
			}
			k.journal.line(int(t.level), facility, text)
			C.bk_free_text(t)
			t = next
		}
	}
	if flags&C.BK_HAS_DEAD != 0 {
		for d := C.bk_take_dead(k.c); d != nil; {
			next := d.next
			k.bury(d)
			d = next
		}
	}
	k.taskMu.Lock()
	defer k.taskMu.Unlock()
	if flags&C.BK_CONNECTED == 0 && !k.probing {
		k.probing = true
		k.tasks.Go(k.probe)
	}
	if flags&C.BK_ASK != 0 {
		k.tasks.Go(func() { C.bk_ask(k.c, C.int(askTimeout/time.Millisecond)) })
	}
	for lane := range k.building {
		if flags&(C.BK_PROGRESS<<lane) != 0 {
			k.failures[lane] = 0
		}
		if flags&(C.BK_WANT<<lane) != 0 && !k.building[lane] {
			k.building[lane] = true
			k.tasks.Go(func() { k.rebuild(C.int(lane)) })
		}
	}
}

// bury sets aside a record that Kafka will never take.
func (k *kafkaSink) bury(d *C.bk_dead) {
	data := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(d), C.sizeof_bk_dead)), d.key_len+d.header_len+d.value_len+d.more_len)
	part := func(n C.size_t) (p []byte) {
		p, data = data[:n], data[n:]
		return p
	}
	key, header, value, more := part(d.key_len), part(d.header_len), part(d.value_len), part(d.more_len)
	r := deadRecord{
		Time:      time.Now().UTC(),
		Topic:     k.topicName(uint32(d.topic)),
		Header:    header,
		Timestamp: int64(d.timestamp),
		Error:     C.GoString(C.bk_err2str(C.int(d.err))),
	}
	if d.has_key != 0 {
		r.Key = key
	}
	if d.has_value != 0 {
		r.Value = value
	}
	if p := int32(d.partition); p != -1 {
		r.Partition = &p
	}
	_ = record.EachMore(more, func(name, value []byte) { // well formed, it was made in C
		r.Headers = append(r.Headers, deadHeader{string(name), value})
	})
	ok := C.int(1)
	if err := appendDeadLetter(k.deadLetter, &r); err != nil {
		ok = 0
		k.journal.fault(fmt.Sprintf("topic %s: record of %d bytes: %s: %v", r.Topic, len(value), r.Error, err))
	} else {
		k.journal.fault(fmt.Sprintf("topic %s: record of %d bytes set aside: %s", r.Topic, len(value), r.Error))
	}
	C.bk_dead_done(k.c, d, ok)
}

// probe finds out whether a broker can be reached: librdkafka tells when all are
// gone, but not when one is back.
func (k *kafkaSink) probe() {
	C.bk_probe(k.c, 500)
	k.sleep(200 * time.Millisecond)
	k.taskMu.Lock()
	k.probing = false
	k.taskMu.Unlock()
}

// Recall is Recaller's.
func (k *kafkaSink) Recall() {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.closed {
		return
	}
	k.taskMu.Lock() // before a rebuild
	defer k.taskMu.Unlock()
	good := C.bk_recall(k.c)
	for lane := range k.recalled {
		k.recalled[lane] = k.recalled[lane] || good&(1<<lane) != 0
	}
}

// rebuild makes the producer of a lane, for the first time, after a fatal error or
// a recall.
func (k *kafkaSink) rebuild(lane C.int) {
	C.bk_retire(k.c, lane)
	defer func() {
		C.bk_retire(k.c, lane) // what failed since, if another was built before this
		k.taskMu.Lock()
		k.building[lane] = false
		k.taskMu.Unlock()
	}()
	for {
		k.taskMu.Lock()
		wait := time.Duration(0)
		if k.failures[lane] > 0 {
			wait = backoff(k.failures[lane] - 1)
		}
		if k.recalled[lane] {
			k.recalled[lane] = false
			wait = min(wait, backoff(0))
		} else {
			k.failures[lane]++
		}
		k.taskMu.Unlock()
		if !k.sleep(wait) {
			return
		}
		built, err := k.build(lane)
		if err == nil {
			if built && lane == C.BK_BULK {
				k.taskMu.Lock()
				k.rebuilt++
				k.taskMu.Unlock()
			}
			if built && k.fencing {
				k.tasks.Go(func() { k.transact(lane) })
			}
			return
		}
		k.journal.fault(err.Error())
	}
}

// transact does the work of a transactional producer for as long as it lives.
func (k *kafkaSink) transact(lane C.int) {
	for C.bk_transact(k.c, lane) == C.BK_CONFIRM {
		ok := C.int(1)
		if k.confirm != nil {
			ctx, cancel := context.WithTimeout(k.confirming, confirmTimeout)
			if err := k.confirm(ctx); err != nil {
				ok = 0
				k.journal.fault(fmt.Sprintf("nothing is committed: %v", err))
			}
			cancel()
		}
		C.bk_confirm(k.c, lane, ok)
	}
}

// Fence is Fencer's. Each producer of the other sink has an id of its own; all are
// initialised at the same time.
func (k *kafkaSink) Fence(ctx context.Context, transactionalID string) error {
	if transactionalID == "" {
		return errors.New("fence: no transactional id")
	}
	errs := make(chan error, C.BK_LANES)
	for lane := range C.int(C.BK_LANES) {
		go func() { errs <- k.fence(ctx, transactionalID, lane) }()
	}
	var err error
	for range C.int(C.BK_LANES) {
		if e := <-errs; e != nil {
			err = e
		}
	}
	if err != nil {
		return fmt.Errorf("fence %s: %w", transactionalID, err)
	}
	return nil
}

func (k *kafkaSink) fence(ctx context.Context, transactionalID string, lane C.int) error {
	id := C.CString(transactionalID)
	defer C.free(unsafe.Pointer(id))
	var text [512]C.char
	k.mu.RLock()
	if k.closed {
		k.mu.RUnlock()
		return ErrClosed
	}
	p := C.bk_fence_new(k.c, id, lane, &text[0], C.size_t(len(text)))
	k.mu.RUnlock()
	if p == nil {
		return errors.New(k.journal.redact(C.GoString(&text[0])))
	}
	defer C.bk_fence_free(p)
	for tries := C.int(0); ; {
		switch C.bk_fence(p, &tries, &text[0], C.size_t(len(text))) {
		case 0:
			return nil
		case -1:
			return errors.New(k.journal.redact(C.GoString(&text[0])))
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%w: %s", err, k.journal.redact(C.GoString(&text[0])))
		}
	}
}

// sleep waits for d, or returns false when the sink is closed.
func (k *kafkaSink) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-k.done:
		return false
	}
}

func (k *kafkaSink) Reset(stream uint32, pos uint64) error {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.closed {
		return ErrClosed
	}
	switch C.bk_reset(k.c, C.uint32_t(stream), C.uint64_t(pos)) {
	case C.BK_OK:
		return nil
	case C.BK_CLOSED:
		return ErrClosed
	case C.BK_BUSY:
		return fmt.Errorf("stream %d has outstanding records", stream)
	case C.BK_NO_STREAM:
		return fmt.Errorf("stream %d: streams are numbered below %d", stream, int(C.BK_MAX_STREAMS))
	default:
		return fmt.Errorf("stream %d: no memory", stream)
	}
}

func (k *kafkaSink) Stats() Stats {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.closed {
		return k.last
	}
	return k.stats()
}

func (k *kafkaSink) stats() Stats {
	var c C.bk_stats
	C.bk_get_stats(k.c, &c)
	s := Stats{
		Handed: uint64(c.handed), Acked: uint64(c.acked), Failed: uint64(c.failed), Dead: uint64(c.dead),
		Bytes: uint64(c.bytes), Outstanding: uint64(c.outstanding), Window: uint64(k.window),
		Fenced: uint64(c.fenced), Unsure: uint64(c.unsure),
		Connected: c.connected != 0,
	}
	s.LastError, s.LastErrorAt = k.journal.last()
	k.taskMu.Lock()
	s.Rebuilt = k.rebuilt
	k.taskMu.Unlock()
	return s
}

func (k *kafkaSink) Close(d time.Duration) error {
	if !k.closing.CompareAndSwap(false, true) {
		return ErrClosed
	}
	until := time.Now().Add(d)
	C.bk_stop(k.c)
	close(k.done)
	k.pollMu.Lock()
	defer k.pollMu.Unlock()
	k.mu.RLock()
	var rest []Report
	for {
		rest = k.poll(0, rest[:0]) // also with no time: reports may be waiting
		left := time.Until(until)
		if k.stats().Outstanding == 0 || left <= 0 {
			break
		}
		rest = k.poll(min(left, pollSlice), rest[:0])
	}
	k.mu.RUnlock()
	C.bk_quit(k.c)
	k.unconfirm()
	k.tasks.Wait()

	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	k.last = k.stats()
	C.bk_free(k.c)
	k.c = nil
	if n := k.last.Outstanding; n > 0 {
		return fmt.Errorf("%d records left without a report", n)
	}
	return nil
}

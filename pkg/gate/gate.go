// Package gate decides, for one router, what of its log goes to Kafka and when
// an entry of the log may be forgotten.
//
// A Stream is one router's log with a send cursor. There is one log and two
// states: on a collector that sends for the router the cursor moves and entries
// leave when all their records are acknowledged; on one that holds, the cursor
// rests at the tail and entries leave when the sender's low-water mark has
// passed them. Taking over is moving the cursor, so nothing can fall between
// two queues.
//
// What it promises:
//
//   - An entry leaves only because its records are acknowledged, because the
//     sender says that Kafka has everything up to a later arrival, because the
//     window of a sender without marks has passed, or because a standby is full;
//     each is counted, so that received = acknowledged + freed + dropped + held.
//   - Records are handed over in the order of the log. After a failure, and only
//     when nothing is outstanding, the cursor goes back to the first record that
//     is not acknowledged.
//   - A stream that is to go on behind another sender waits until it is known what
//     Kafka has (Await, Scan, Join), and leaves that out.
//   - The state that decoding needs is always that of the entry it is used for:
//     freed entries are observed, not forgotten.
//
// It is pure logic: no I/O, no goroutine, no clock. Times are microseconds on a
// clock of the caller that never goes back. A Stream is not safe for concurrent
// use; the caller holds one lock per stream around every method except Fill,
// which may run beside Append and Report between Begin and End.
package gate

import (
	"math"

	"github.com/bmpha/bmpha/pkg/hold"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/seam"
)

// A Codec turns the entries of one BMP session into records. It is at one place
// of the session's stream and moves with each call.
type Codec interface {
	// Open, Message and Close append the records of an entry to b. at is the
	// arrival in µs since the Unix epoch. An error of Message says what could
	// not be decoded; what was appended counts.
	Open(b *record.Batch, o *record.Origin, at int64)
	Message(b *record.Batch, o *record.Origin, at int64, msg []byte) error
	Close(b *record.Batch, o *record.Origin, at int64)
	// Observe moves past a message without making records.
	Observe(msg []byte)
	// Clone returns an independent codec at the same place.
	Clone() Codec
}

// Config is what a Stream is made with.
type Config struct {
	ID       uint32 // of the stream, for the caller
	Instance uint64 // of the collector, for record headers
	// Open makes the codec of a session from the body of its Opened entry. It is
	// called from Fill too and must be safe for concurrent use.
	Open func(session uint32, body []byte) Codec
	// Await makes a stream that becomes wanted wait for Join.
	Await bool
	// Beside is how long, in µs, an entry whose records are acknowledged is kept all
	// the same while another may send as well, unless memory gets scarce. Of the two
	// the one that is behind may speak last; when the other has stopped, the stream, if
	// it Awaits, looks what Kafka has and says again what is newer here. What the other
	// was further behind than this stays as it said it.
	Beside int64
	// Identify tells what record i of b says, which was made of an entry; false if
	// it has no key. Required with Await.
	Identify func(e *hold.Entry, b *record.Batch, i int) (w seam.Word, ok bool)
	// OnError is called for each message that could not be fully decoded. It may
	// be nil.
	OnError func(session uint32, err error)
}

// A State says what a stream does.
type State uint8

const (
	Holding  State = iota // the cursor rests at the tail
	Sending               // records are handed over from the cursor
	Draining              // handing over stopped, reports are outstanding
)

func (s State) String() string {
	return [...]string{"holding", "sending", "draining"}[s]
}

// Counters count entries (BMP messages, openings and closings of sessions) since
// the stream was made.
type Counters struct {
	Received      uint64
	ReceivedBytes uint64
	Acknowledged  uint64 // left because Kafka has their records
	FreedMark     uint64 // left below the sender's low-water mark
	FreedWindow   uint64 // left because the window without marks had passed
	Dropped       uint64 // left because a standby was full: lost if no one else has them
	Replayed      uint64 // encoded again or after having been held
	Records       uint64 // encoded
	Errors        uint64 // messages that could not be fully decoded
	Rollbacks     uint64 // times the cursor went back after a failure
	Skipped       uint64 // records left out because Kafka had them from another sender
	Doubtful      uint64 // records sent although Kafka may have them
}

// A mark ties the end of an entry's records to the entry.
type mark struct {
	records uint64 // position after the entry's last record
	pos     uint64 // position after the entry in the log
}

// fill is what encoding needs without the lock.
type fill struct {
	cur      hold.Cursor
	codec    Codec // at cur
	origin   record.Origin
	from     uint64 // position of cur at Begin
	end      uint64 // of the log at Begin
	replay   uint64 // replayUntil at Begin
	held     uint64 // heldUntil at Begin
	using    *seam.Plan
	coming   *seam.Ahead
	skip     uint64 // records of the first entry that are acknowledged already
	filled   []mark
	errors   uint64
	replayed uint64
}

// A Stream is the gate of one router. See the package comment for locking.
type Stream struct {
	cfg   Config
	log   *hold.Log
	state State
	want  bool // the role says: send

	uncovered bool // nobody else is known to send

	token  uint64
	shared bool

	tail     Codec  // at the tail of the log; nil outside a session
	tailFrom uint64 // position of the first record of the tail entry
	tailDone uint64 // records of the tail entry that are acknowledged already

	pending     ring   // marks of encoded entries not yet acknowledged
	next        uint64 // position of the next record to encode
	acked       uint64 // position of the first record not acknowledged
	handed      uint64 // position of the first record not handed over
	undone      uint64 // after a failure: records whose reports are still to come
	failed      bool
	replayUntil uint64 // entries before this may be in Kafka already
	heldUntil   uint64 // as well, unless a plan knows better

	sent    uint64     // entries before this that are still there are in Kafka
	awaits  bool       // wanted, and to wait for Join
	plan    *seam.Plan // what of the log Kafka has, nil if that is not known
	started *seam.Plan // the one at the last Start
	scan    scan

	ahead     *seam.Ahead // what others had sent and is still to come here, as a plan knew
	aheadTill int64       // it is waited for until something arrives at that time

	busy bool // between Begin and End
	fill      // owned by whoever is between Begin and End

	vouched int64  // mark of a stream that has stopped, 0 when there is none
	stopped int64  // lastSeen when it stopped
	unsent  uint64 // forgotten until it stopped without a word that Kafka has it

	breaks uint64 // see Unbroken
	doubts uint64 // those after which Kafka need not have what was appended, or not last

	beside bool // what was said from here may be Kafka's last, and older than what another had said

	open     bool  // a session is open at the end of the log
	lastSeen int64 // arrival of the newest entry
	lowWater int64 // last mark of the sender, -1 when there is none

	n Counters
}

// New returns a stream over l, which it owns from now on.
func New(cfg Config, l *hold.Log) *Stream {
	s := &Stream{cfg: cfg, log: l, lowWater: -1}
	s.cur = l.Tail()
	s.origin.Instance = cfg.Instance
	return s
}

// ID returns the number given in the Config.
func (s *Stream) ID() uint32 { return s.cfg.ID }

// State returns what the stream does now.
func (s *Stream) State() State { return s.state }

// Wanted reports whether the role wants the stream to send.
func (s *Stream) Wanted() bool { return s.want }

// Counters returns what happened so far.
func (s *Stream) Counters() Counters { return s.n }

// Held returns the entries and bytes in the log and the arrival of the oldest
// (0 when it is empty).
func (s *Stream) Held() (entries int, bytes int64, oldest int64) {
	if e, ok := s.log.Oldest(); ok {
		oldest = e.Arrival
	}
	return s.log.Len(), s.log.Bytes(), oldest
}

// SetCovered says whether another collector is known to send for the router. A
// new stream is covered.
func (s *Stream) SetCovered(covered bool) { s.uncovered = !covered }

// Append adds an entry that arrived at now. It reports false when it must wait:
// memory is full and what the router said may be nowhere else, because the stream
// is to send or nobody is known to, so that TCP has to slow the router down. A
// stream that only holds what another sends never makes the router wait: it drops
// the oldest instead.
func (s *Stream) Append(kind hold.Kind, session uint32, now int64, body []byte) bool {
	for !s.TryAppend(kind, session, now, body) {
		if s.want || s.uncovered || !s.MakeRoom() {
			return false
		}
	}
	return true
}

// TryAppend is Append for a caller that has another place for what finds no room:
// nothing is dropped, and it reports false when memory is full.
func (s *Stream) TryAppend(kind hold.Kind, session uint32, now int64, body []byte) bool {
	now = max(now, s.lastSeen)
	if !s.log.Append(kind, session, now, body) {
		before := s.log.Len()
		s.release(math.MaxInt64) // what is kept only because another may send as well
		if s.log.Len() == before || !s.log.Append(kind, session, now, body) {
			return false
		}
	}
	s.lastSeen = now
	s.n.Received++
	s.n.ReceivedBytes += uint64(len(body))
	switch kind {
	case hold.Opened:
		s.open = true
	case hold.Closed:
		s.open = false
	}
	return true
}

// Unbroken returns a number that stays the same for as long as this stream alone
// sends for the router and nothing of what was appended was lost. So if it has not
// changed since something was appended, Kafka has that or will get it from here,
// and nothing that somebody else has sent has come after it. It reports false if
// the stream does not send, or another may.
func (s *Stream) Unbroken() (number uint64, ok bool) { return s.breaks, s.want && !s.shared }

// Lost says that something that the router said was not appended and nobody will
// append it.
func (s *Stream) Lost() {
	s.breaks++
	s.doubts++
}

// Repeated says that what the log holds was said before: records of it are
// flagged as replayed.
func (s *Stream) Repeated() { s.heldUntil = max(s.heldUntil, s.log.End()) }

// Needed reports whether nothing may be dropped: the stream is to send, or nobody
// is known to.
func (s *Stream) Needed() bool { return s.want || s.uncovered }

// Positions returns where the log begins and ends, in entries since the stream was
// made.
func (s *Stream) Positions() (from, to uint64) {
	tail := s.log.Tail()
	return tail.Pos(), s.log.End()
}

// roomStep is how many bytes of bodies a full standby frees at a time.
const roomStep = 256 << 10

// MakeRoom frees what the sender has sent, without the margin, or else drops the
// oldest, which is only for a stream that is not Needed. It reports false if
// nothing could be freed.
func (s *Stream) MakeRoom() bool {
	if s.freeBefore(s.lowWater, &s.n.FreedMark) > 0 {
		return true
	}
	goal := max(0, s.log.Bytes()-roomStep)
	before := s.log.Len()
	for s.log.Len() > 0 && s.mayFree() {
		s.free(&s.n.Dropped)
		if s.log.Bytes() <= goal {
			break
		}
	}
	return s.log.Len() < before
}

// mayFree reports whether the tail is out of the reach of a running Fill.
func (s *Stream) mayFree() bool {
	tail := s.log.Tail()
	return !s.busy || tail.Pos() < s.from
}

// free lets the tail entry go and moves the decoding state past it.
func (s *Stream) free(counter *uint64) {
	e, _ := s.log.Oldest()
	s.tail = s.past(s.tail, &e)
	s.log.Free()
	s.tailDone = 0
	*counter++
	if counter == &s.n.Dropped || counter == &s.n.FreedWindow {
		s.Lost()
	}
}

func (s *Stream) freeBefore(t int64, counter *uint64) (n int) {
	for s.mayFree() {
		e, ok := s.log.Oldest()
		if !ok || e.Arrival >= t {
			break
		}
		s.free(counter)
		n++
	}
	return n
}

// Trim lets a stream that does not send forget what is safe. lowWater is the
// sender's mark: everything that it received before is in Kafka; -1 when no
// sender gives marks. margin covers the skew between the two sessions. Without
// a mark, what is older than window leaves.
func (s *Stream) Trim(now, lowWater, margin, window int64) {
	if s.want || s.state == Sending {
		return
	}
	s.lowWater = lowWater
	if lowWater >= s.vouched {
		s.vouched = 0
	}
	if s.Outstanding() > 0 {
		// What is under way may come behind what the sender has sent. Then only this
		// log has the newer words; but for them, MakeRoom goes by the mark.
		return
	}
	if lowWater >= 0 {
		s.freeBefore(lowWater-margin, &s.n.FreedMark)
	} else {
		s.freeBefore(now-window, &s.n.FreedWindow)
	}
}

// Mark returns the stream's own low-water mark: everything that arrived before
// is acknowledged. It stands still while no session is open, because then
// another collector may hear what this one does not. A stream that has stopped
// goes on to vouch for what it had sent, until another sender vouches for as
// much, so that whoever takes over need not send it again. It reports false when
// the stream has nothing to vouch for or never heard its router.
func (s *Stream) Mark(now int64) (int64, bool) {
	if s.n.Received == 0 {
		return 0, false
	}
	if !s.want {
		return s.vouched, s.vouched > 0
	}
	if e, ok := s.log.Oldest(); ok {
		// What was said before this session began was not heard here: others
		// keep it until at least the opening is in Kafka, the table dump behind.
		return e.Arrival, e.Kind != hold.Opened
	}
	if s.open {
		return max(now, s.lastSeen), true
	}
	return s.lastSeen, true
}

// SetWanted follows the role. token and shared go into the headers of what is
// encoded from now on; shared says that another collector may send at the same
// time. A stream that is wanted begins with Start; one that no longer is stops
// at once, and what is outstanding is left to drain.
func (s *Stream) SetWanted(want bool, token uint64, shared bool) {
	if s.want && s.shared && !shared {
		// What came in until now may have been sent by the other as well.
		s.heldUntil = max(s.heldUntil, s.log.End())
	}
	if shared {
		s.breaks++
	}
	if want && s.shared && !shared {
		s.Again()
	}
	if shared || s.shared {
		s.doubts++
		s.beside = true
	}
	s.token, s.shared = token, shared
	if want == s.want {
		return
	}
	s.want = want
	s.breaks++
	s.awaits = want && s.cfg.Await
	if want {
		s.heldUntil = max(s.heldUntil, s.log.End())
		s.lowWater = -1
		return
	}
	s.plan, s.ahead, s.scan = nil, nil, scan{}
	s.vouched, s.stopped, s.unsent = 0, s.lastSeen, s.n.Dropped+s.n.FreedWindow
	if s.state != Holding {
		s.vouch()
	}
	if s.state == Sending {
		s.stop()
	}
}

// vouch renews the mark of a stream that has stopped while what it had handed
// over is being acknowledged.
func (s *Stream) vouch() {
	if s.n.Dropped+s.n.FreedWindow != s.unsent {
		return // what is gone from the log need not be in Kafka
	}
	s.vouched = s.stopped
	if e, ok := s.log.Oldest(); ok {
		s.vouched = min(s.vouched, e.Arrival)
		if e.Kind == hold.Opened {
			s.vouched = 0 // as in Mark
		}
	}
}

// Start begins to send from the tail if the stream is wanted and nothing of it
// is outstanding. It reports whether it started, and then the position that the
// sink has to be Reset to.
func (s *Stream) Start() (pos uint64, ok bool) {
	if !s.want || s.state != Holding || s.busy || s.awaits {
		return 0, false
	}
	if s.plan != s.started {
		// What was acknowledged of the tail entry was counted by another plan.
		s.started, s.tailDone = s.plan, 0
	}
	s.state = Sending
	s.cur = s.log.Tail()
	s.codec = nil
	if s.tail != nil {
		s.codec = s.tail.Clone()
	}
	s.next, s.handed = s.acked, s.acked
	s.failed = false
	s.tailFrom = s.acked - s.tailDone
	return s.acked, true
}

// stop ends sending. Records that were encoded but not handed over are encoded
// again when the stream starts anew.
func (s *Stream) stop() {
	s.replayUntil = max(s.replayUntil, s.fillFrom()) // what was handed over is not sent again as if it were new
	s.state = Draining
	s.drained()
}

// drained ends draining once nothing is under way.
func (s *Stream) drained() {
	if s.state == Draining && s.Outstanding() == 0 && !s.busy {
		s.rest()
	}
}

// rest is reached when nothing is outstanding.
func (s *Stream) rest() {
	s.state = Holding
	for {
		m, ok := s.pending.front()
		if !ok || m.records > s.acked {
			break
		}
		s.sent = m.pos
		s.pending.pop()
	}
	s.pending.reset()
	s.codec = nil
}

// Begin prepares a Fill. It reports false if there is nothing to encode. After
// a Begin that reports true comes a Fill and then an End.
func (s *Stream) Begin() bool {
	if s.state != Sending || s.busy || s.cur.Pos() >= s.log.End() {
		return false
	}
	s.log.Sync(&s.cur)
	s.busy = true
	s.from = s.cur.Pos()
	s.end = s.log.End()
	s.origin.Token = s.token
	s.origin.Flags = 0
	if s.shared {
		s.origin.Flags |= record.FlagShared
	}
	// At the tail, records that an earlier attempt got acknowledged are left out.
	s.replay, s.held, s.using = s.replayUntil, s.heldUntil, s.plan
	if s.ahead != nil && (s.ahead.Len() == 0 || s.lastSeen > s.aheadTill) {
		s.ahead = nil
	}
	s.coming = s.ahead
	s.skip = 0
	if tail := s.log.Tail(); s.from == tail.Pos() {
		s.skip = s.tailDone
	}
	return true
}

// mostEntries bounds what one Fill passes over if it makes few records or none.
const mostEntries = 8192

// Fill appends the records of the next entries to b, which must be empty, until
// it holds at least most records or size bytes or the log is at its end. wall is
// what must be added to an arrival to make it µs since the Unix epoch. It may
// run without the lock, see the package comment.
func (s *Stream) Fill(b *record.Batch, most, size int, wall int64) {
	flags := s.origin.Flags
	for len(s.filled) < mostEntries && b.Len() < most && len(b.Data) < size {
		e, ok := s.cur.Next(s.end)
		if !ok {
			break
		}
		s.origin.Session, s.origin.Message = e.Session, e.Pos
		s.origin.Flags = flags
		if e.Pos < s.replay {
			s.flag()
		}
		if s.using != nil && s.using.Covers(e.Pos) {
			s.fillPlanned(b, &e, wall)
		} else {
			if e.Pos < s.held {
				s.flag()
			}
			from := b.Len()
			s.encode(b, &e, e.Arrival+wall)
			if s.coming != nil {
				s.doubtAhead(b, &e, from)
			}
		}
		if e.Pos == s.from && s.skip > 0 {
			rest := copy(b.Recs, b.Recs[min(s.skip, uint64(len(b.Recs))):])
			b.Recs = b.Recs[:rest]
		}
		s.filled = append(s.filled, mark{records: s.next + uint64(b.Len()), pos: e.Pos + 1})
	}
}

func (s *Stream) encode(b *record.Batch, e *hold.Entry, at int64) {
	var err error
	if s.codec, err = s.records(s.codec, b, &s.origin, e, at); err != nil {
		s.errors++
		if s.cfg.OnError != nil {
			s.cfg.OnError(e.Session, err)
		}
	}
}

// records appends the records of an entry, which c has come to, and returns the codec
// behind it.
func (s *Stream) records(c Codec, b *record.Batch, o *record.Origin, e *hold.Entry, at int64) (Codec, error) {
	switch {
	case e.Kind == hold.Opened:
		c = s.cfg.Open(e.Session, e.Body)
		c.Open(b, o, at)
	case c == nil: // the opening was dropped on a full standby
	case e.Kind == hold.Message:
		return c, c.Message(b, o, at, e.Body)
	case e.Kind == hold.Closed:
		c.Close(b, o, at)
		return nil, nil
	}
	return c, nil
}

// past moves c past an entry without making records.
func (s *Stream) past(c Codec, e *hold.Entry) Codec {
	switch {
	case e.Kind == hold.Opened:
		return s.cfg.Open(e.Session, e.Body)
	case e.Kind == hold.Closed:
		return nil
	case c != nil:
		c.Observe(e.Body)
	}
	return c
}

// End finishes a Fill that made n records. It returns the position of the first
// of them and reports false if they must not be handed over, because the stream
// was stopped meanwhile.
func (s *Stream) End(n int) (pos uint64, ok bool) {
	s.busy = false
	s.n.Records += uint64(n)
	s.n.Errors += s.errors
	s.n.Replayed += s.replayed
	s.errors, s.replayed = 0, 0
	ok = s.state == Sending
	if ok {
		for _, m := range s.filled {
			s.pending.push(m)
		}
		pos = s.next
		s.next += uint64(n)
		s.settle()
	}
	s.filled = s.filled[:0]
	s.drained()
	return pos, ok
}

// Handed tells that n more records were given to the sink. The caller holds its
// lock from before giving them until after this call.
func (s *Stream) Handed(n int) { s.handed += uint64(n) }

// Outstanding returns the records that were handed over and not reported.
func (s *Stream) Outstanding() uint64 {
	if s.failed {
		return s.undone
	}
	return s.handed - s.acked
}

// Report follows a report of the sink: records before acked are in Kafka. failed
// stops the stream; outstanding then says how many reports are still to come,
// and when it is 0 the stream can Start again. Reports may arrive late, but not
// out of order.
func (s *Stream) Report(acked, outstanding uint64, failed bool) {
	if s.state == Draining && acked > s.acked && (!s.want || s.awaits) {
		s.Lost() // it may have come behind what another has sent meanwhile
	}
	s.acked = max(s.acked, acked)
	s.settle()
	if failed && (s.state == Sending || s.state == Draining) {
		if !s.failed {
			s.n.Rollbacks++
			s.replayUntil = max(s.replayUntil, s.fillFrom())
		}
		s.failed, s.undone = true, outstanding
		s.state = Draining
	}
	if s.state == Draining && !s.want {
		s.vouch()
	}
	s.drained()
}

// fillFrom returns the position of the first entry that was never handed over,
// or a little more while a Fill is under way.
func (s *Stream) fillFrom() uint64 {
	if s.busy {
		return s.end
	}
	return s.cur.Pos()
}

// besideMost is how full the log may be, in percent of what it can take, before
// nothing is kept only because another may send as well.
const besideMost = 50

// settle frees the entries of which all records are acknowledged, but for those that
// are kept because another may send as well.
func (s *Stream) settle() {
	until := int64(math.MaxInt64)
	if (s.shared || s.awaits) && s.cfg.Await && s.log.Filled() <= besideMost {
		until = s.lastSeen - s.cfg.Beside
	}
	s.release(until)
}

// release frees the entries that arrived up to until and of which all records are
// acknowledged.
func (s *Stream) release(until int64) {
	for {
		m, ok := s.pending.front()
		if !ok {
			return
		}
		if tail := s.log.Tail(); m.pos > tail.Pos() { // not freed by other means
			if m.records > s.acked {
				s.tailDone = max(s.tailDone, s.acked-min(s.acked, s.tailFrom))
				return
			}
			if e, ok := s.log.Oldest(); ok && e.Arrival > until || !s.mayFree() {
				return
			}
			s.free(&s.n.Acknowledged)
		}
		s.pending.pop()
		s.tailFrom = m.records
		s.passed()
	}
}

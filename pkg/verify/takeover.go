package verify

import (
	"fmt"
	"time"

	"github.com/bmpha/bmpha/pkg/record"
)

// Bounds of what is known of the last records of routers, so that what is repeated at
// a takeover is found: of each router, and of all together. Few routers have more.
const (
	mostTail  = 16 << 10
	leastTail = 1 << 10
	mostTails = 4 << 20
)

// A Sender is who sent records, as their headers say, or without headers their
// writer_id.
type Sender struct {
	Instance string `json:"instance,omitempty"` // 16 hexadecimal digits
	Token    uint64 `json:"token,omitempty"`
	// Writer is the writer_id of its records, which names process and pid by default.
	Writer string `json:"writer,omitempty"`
}

func senderIn(h *record.Header, writer []byte) Sender {
	return Sender{fmt.Sprintf("%016x", h.Instance), h.Token, string(writer)}
}

// String returns s in one line.
func (s *Sender) String() string {
	switch {
	case s.Instance == "" && s.Writer == "":
		return "unnamed"
	case s.Instance == "":
		return printable(s.Writer)
	case s.Writer == "":
		return fmt.Sprintf("%s token %d", s.Instance, s.Token)
	}
	return fmt.Sprintf("%s (%s) token %d", s.Instance, printable(s.Writer), s.Token)
}

// A Takeover is a place at which a sender with a larger token went on where another
// had been. Counts are of records of its router that came behind it.
type Takeover struct {
	Partition int32     `json:"partition"`
	Offset    int64     `json:"offset"` // of the first record
	Time      time.Time `json:"time"`   // of the first record
	From      Sender    `json:"from"`
	By        Sender    `json:"by"`
	Gap       float64   `json:"gap_s"` // from the last record before to the first

	Behind
}

// Behind counts records that came behind a takeover, up to the next.
type Behind struct {
	// Repeated said what a sender before had said, as far as it was the next of that;
	// some of them were flagged as replayed or shared.
	Repeated        int64 `json:"repeated"`
	RepeatedFlagged int64 `json:"repeated_flagged"`
	// Back are those of the repeated after which something newer had been said about
	// the same. A router looks alike that goes back to what it has said before, at that
	// moment.
	Back        int64 `json:"back"`
	BackFlagged int64 `json:"back_flagged"`
	// Unmatched are flagged as replayed, and nobody had said the same.
	Unmatched int64 `json:"unmatched"`
	// Late are of senders with a smaller token, LateFlagged those of them that say that
	// two could send.
	Late        int64 `json:"late"`
	LateFlagged int64 `json:"late_flagged"`
}

func (n *Behind) add(o *Behind) {
	n.Repeated += o.Repeated
	n.RepeatedFlagged += o.RepeatedFlagged
	n.Back += o.Back
	n.BackFlagged += o.BackFlagged
	n.Unmatched += o.Unmatched
	n.Late += o.Late
	n.LateFlagged += o.LateFlagged
}

// AtTakeovers is the sum over all takeovers, listed or not.
type AtTakeovers struct {
	Takeovers int64 `json:"takeovers"`
	Behind
}

// A tailRecord is one record of a tail.
type tailRecord struct {
	key, value uint64
	before     int64 // seq of the one before of the same key, -1 without
	life       uint32
}

// A tail is the end of what was said about a router.
type tail struct {
	recs []tailRecord
	base int64 // seq of recs[0]
	from int   // index of the first that counts; those before are gone
	last map[uint64]int64
}

func (t *tail) end() int64 { return t.base + int64(len(t.recs)) }

// add appends a record, of a router that may have most.
func (t *tail) add(key, value uint64, life uint32, most int) {
	if t.last == nil {
		t.last = make(map[uint64]int64)
	}
	before, ok := t.last[key]
	if !ok {
		before = -1
	}
	t.last[key] = t.end()
	t.recs = append(t.recs, tailRecord{key, value, before, life})
	for len(t.recs)-t.from > most {
		r := &t.recs[t.from]
		if t.last[r.key] == t.base+int64(t.from) {
			delete(t.last, r.key)
		}
		t.from++
	}
	if t.from > most {
		n := copy(t.recs, t.recs[t.from:])
		t.recs, t.base, t.from = t.recs[:n], t.base+int64(t.from), 0
	}
}

// at returns the record with a number, nil if it is gone.
func (t *tail) at(seq int64) *tailRecord {
	if i := seq - t.base; i >= int64(t.from) && i < int64(len(t.recs)) {
		return &t.recs[i]
	}
	return nil
}

// A seam follows what comes behind a takeover.
type seam struct {
	index int   // in report.Takeovers, -1 if it is not listed
	begin int64 // number in the tail at the takeover
	left  int   // records that may be repeated without a flag
	// next is, by key, the numbers of what was said before and is to come next if it
	// is told again.
	next map[uint64][]int64
}

// takeover follows who sends in a partition, and tells whether the record says what a
// sender before the last takeover had said.
func (rt *router) takeover(l *Ledger, f *fields, r *Record, h *record.Header) (again bool) {
	largest, seen := rt.tokens[r.Partition]
	last := rt.newest[r.Partition]
	if last == nil {
		last = new(sentAt)
		rt.newest[r.Partition] = last
	}
	if seen && h.Token > largest {
		s := &seam{index: -1, begin: rt.tail.end(), left: mostTail, next: make(map[uint64][]int64)}
		rt.report.AtTakeovers.Takeovers++
		if len(rt.report.Takeovers) < mostStints {
			s.index = len(rt.report.Takeovers)
			rt.report.Takeovers = append(rt.report.Takeovers, Takeover{
				Partition: r.Partition, Offset: r.Offset, Time: r.Time, From: last.sender, By: senderIn(h, f.writer), Gap: r.Time.Sub(last.at).Seconds(),
			})
		}
		rt.seams[r.Partition] = s
	}
	if late := h.Token < largest; !late {
		if !seen || h.Token > largest || h.Instance != last.instance {
			last.sender, last.instance = senderIn(h, f.writer), h.Instance
		}
		last.at = r.Time
	}
	life := uint32(0) // what is no route does not depend on its peer's
	if len(f.prefix) > 0 {
		life = rt.lives[string(f.peer)]
	}
	if s := rt.seams[r.Partition]; s != nil {
		var n Behind
		switch {
		case h.Token < largest:
			n.Late = 1
			if h.Flags&record.FlagShared != 0 {
				n.LateFlagged = 1
			}
		case h.Flags&record.FlagReplayed != 0 || s.left > 0:
			s.left = max(0, s.left-1)
			var back bool
			if h.Keyed() {
				again, back = s.align(&rt.tail, h.KeyHash, h.ValueHash, life)
			}
			n.told(again, back, h.Flags)
		}
		rt.report.AtTakeovers.add(&n)
		if s.index >= 0 {
			rt.report.Takeovers[s.index].add(&n)
		}
	}
	if h.Keyed() {
		rt.tail.add(h.KeyHash, h.ValueHash, life, min(mostTail, max(leastTail, mostTails/len(l.routers))))
	}
	return again
}

// told counts a record of the sender that has taken over.
func (n *Behind) told(again, back bool, flags uint8) {
	switch {
	case again:
		n.Repeated = 1
		if back {
			n.Back = 1
		}
		if flags&(record.FlagReplayed|record.FlagShared) != 0 {
			n.RepeatedFlagged, n.BackFlagged = 1, n.Back
		}
	case flags&record.FlagReplayed != 0:
		n.Unmatched = 1
	}
}

// align tells whether a record says what was said before the takeover, and whether
// something newer had been said about the same.
func (s *seam) align(t *tail, key, value uint64, life uint32) (again, back bool) {
	next, known := s.next[key]
	if !known {
		// The values before the takeover, the newest first.
		var all []int64
		at, ok := t.last[key]
		for r := t.at(at); ok && r != nil && r.life == life; r = t.at(at) {
			if at < s.begin {
				all = append(all, at)
			}
			at = r.before
		}
		// It begins with the newest that is equal.
		for i, at := range all {
			if t.at(at).value == value {
				next, again = all[:i], true
				break
			}
		}
		s.next[key] = next
		return again, again && len(next) > 0
	}
	if len(next) == 0 {
		return false, false
	}
	r := t.at(next[len(next)-1])
	next = next[:len(next)-1]
	if r == nil || r.value != value || r.life != life {
		next = nil
	} else {
		again = true
	}
	s.next[key] = next
	return again, again && len(next) > 0
}

// sentAt is who has sent last in a partition, and when.
type sentAt struct {
	sender   Sender
	instance uint64
	at       time.Time
}

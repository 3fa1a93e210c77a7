package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
)

// A tally is what a consumer of the topic makes of it: the routers' tables, how
// often each numbered route came, who sent, and whether the order was kept.
type tally struct {
	mu    sync.Mutex
	table replay.Consumer
	// fenced is the table of a consumer that ignores records with a smaller token
	// than one before, unless it was said that several may send.
	fenced  replay.Consumer
	token   map[int32]uint64  // the largest of each partition
	numbers map[uint64]int    // by number of the route
	events  map[[2]string]int // by router and event_type, bmp_msg_type or log_type
	senders []stint           // in the order of the records
	last    map[place]record.Header
	faults  []string // what should never be seen
	count   int
}

// A stint is a run of records of one sender.
type stint struct {
	instance    uint64
	token       uint64
	first, last time.Time // by the producer's clock, to the millisecond
	records     int
}

// A place is where records of one session are in order.
type place struct {
	partition int32
	instance  uint64
	session   uint32
	token     uint64
}

func newTally() *tally {
	return &tally{numbers: make(map[uint64]int), token: make(map[int32]uint64), events: make(map[[2]string]int), last: make(map[place]record.Header)}
}

func (t *tally) fault(format string, args ...any) {
	if len(t.faults) < 20 {
		t.faults = append(t.faults, fmt.Sprintf(format, args...))
	}
}

// record takes one record.
func (t *tally) record(r rig.Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count++
	if err := t.table.Record(r.Value); err != nil {
		t.fault("partition %d offset %d: %v", r.Partition, r.Offset, err)
		return
	}
	var v struct {
		Event  string `json:"event_type"`
		Type   string `json:"bmp_msg_type"`
		Log    string `json:"log_type"`
		Prefix string `json:"ip_prefix"`
		Router string `json:"bmp_router"`
	}
	if err := json.Unmarshal(r.Value, &v); err != nil {
		t.fault("partition %d offset %d: %v", r.Partition, r.Offset, err)
		return
	}
	for _, name := range []string{v.Event, v.Type, v.Log} {
		if name != "" {
			t.events[[2]string{v.Router, name}]++
		}
	}
	if n, ok := replay.Number(v.Prefix); ok {
		t.numbers[n]++
	}
	raw := r.Header(record.HeaderName)
	if raw == nil {
		_ = t.fenced.Record(r.Value) // was good above
		return
	}
	h, err := record.ParseHeader(raw)
	if err != nil {
		t.fault("partition %d offset %d: %v", r.Partition, r.Offset, err)
		return
	}
	if h.Token >= t.token[r.Partition] || h.Flags&record.FlagShared != 0 {
		_ = t.fenced.Record(r.Value)
	}
	t.token[r.Partition] = max(t.token[r.Partition], h.Token)
	t.sender(h, r.Timestamp)
	// P4. After a failure the cursor goes back, and what is then sent again is
	// marked; it never skips ahead and comes back for what it left out.
	p := place{r.Partition, h.Instance, h.Session, h.Token}
	before, seen := t.last[p]
	if seen && h.Flags&record.FlagReplayed == 0 && (h.Message < before.Message || h.Message == before.Message && h.Index <= before.Index) {
		t.fault("partition %d offset %d: message %d.%d of session %d came after %d.%d",
			r.Partition, r.Offset, h.Message, h.Index, h.Session, before.Message, before.Index)
	}
	t.last[p] = h
}

func (t *tally) sender(h record.Header, at time.Time) {
	n := len(t.senders)
	if n == 0 || t.senders[n-1].instance != h.Instance || t.senders[n-1].token != h.Token {
		t.senders = append(t.senders, stint{instance: h.Instance, token: h.Token, first: at})
		n++
	}
	s := &t.senders[n-1]
	s.last = at
	s.records++
}

func (t *tally) Count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.count
}

// eventsOf counts the records of a router with that event_type, bmp_msg_type or
// log_type.
func (t *tally) eventsOf(router, name string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.events[[2]string{router, name}]
}

// stints returns who sent, one after the other.
func (t *tally) stints() []stint {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]stint(nil), t.senders...)
}

// numbered returns how many numbered routes have come, and how many records of
// them came again.
func (t *tally) numbered() (routes, repeats int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.numbers {
		repeats += n - 1
	}
	return len(t.numbers), repeats
}

// routes returns the table.
func (t *tally) routes() map[replay.Key]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.table.Routes()
}

// fencedRoutes is routes by the rule of tokens.
func (t *tally) fencedRoutes() map[replay.Key]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.fenced.Routes()
}

// routesOf returns the table of one router.
func (t *tally) routesOf(address string) map[replay.Key]string {
	all := t.routes()
	maps.DeleteFunc(all, func(k replay.Key, _ string) bool { return k.Router != address })
	return all
}

// firstAfter returns when the first record of a sender other than instance was
// produced after at.
func (t *tally) firstAfter(at time.Time, instance uint64) (time.Time, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var first time.Time
	for _, s := range t.senders {
		if s.instance != instance && s.last.After(at) && (first.IsZero() || s.first.Before(first)) {
			first = s.first
		}
	}
	return first, !first.IsZero()
}

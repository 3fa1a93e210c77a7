// Package dump writes out the tables of routers from time to time, as pmacct's
// bmp_dump_* do: to a topic, to files, or both.
//
// # When
//
// A Plan gives each router a slot in each period. Slots are counted from the Unix
// epoch, and the place of a router among them comes from its name alone, so that
// all collectors of a cluster have the same plan and a takeover goes on with it.
// A router is due once in a period: from its slot on, if it was heard before, and
// unless someone is known to have dumped it already in this period. The slot is
// the timestamp of all records of the dump, however late it is written.
//
// # What
//
// One dump of a router is dump_init, a record for each route, records of the
// messages that tell the state of the router (Initiation; Peer Up, the last
// Statistics Report or the last Peer Down of each peer), and dump_close. Messages
// follow routes, as with pmacct. Unlike there, each dump has them, not only those
// since the dump before, so that a dump can be read without an earlier one.
//
// The table goes on changing meanwhile. A route that is there all the time is in
// the dump exactly once, with a value that it had during the dump; one that comes
// or goes meanwhile may or may not be. Who reads the live records from the
// timestamp on, too, ends with the table of the router.
//
// # Half dumps
//
// A dump that has no dump_close is not whole, and so it is if the dump_close says
// "interrupted", with the reason. That is written by a collector that has to stop
// while it can still write: another one takes over, or the session ended. A
// collector that dies writes nothing more; its successor, or it itself, begins the
// router's dump again with a dump_init, at once if it has heard the router since
// before the slot, else in the next slot. A reader therefore drops what it has of
// a router's dump when it reads a dump_init.
//
// A router that is still telling its table is waited for, for half a period.
// A dump that begins then has "unsettled" in its dump_init.
//
// Files are whole or are not there.
//
// # How
//
// A Dump makes the records, a Stream takes them to a sink, and WriteFile to a
// file. A Stream keeps what is not acknowledged, little as that is, and begins
// there again after a failure.
//
// The package starts no goroutine and reads no clock; only WriteFile does I/O of
// its own.
package dump

import (
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/table"
)

// A Source is a router's table: a *table.Table.
type Source interface {
	Walk(w *table.Walk, n int, each func(*table.Route)) (more bool)
	Initiation() []byte
	Peers() []table.PeerStatus
}

// An Encoder makes the records of one dump and appends them to b, of which it
// keeps nothing.
type Encoder interface {
	Init(b *record.Batch, settled bool)         // dump_init
	Route(b *record.Batch, r *table.Route)      // of a route
	Event(b *record.Batch, msg []byte)          // of a BMP message
	Close(b *record.Batch, interruption string) // dump_close; "" if the dump is whole
}

// walkStep is how many routes are walked at a time: the table cannot change
// meanwhile, so it is some tenths of a millisecond.
const walkStep = 128

// A Dump is one dump of one router on its way. It is not safe for concurrent use.
type Dump struct {
	src     Source
	enc     Encoder
	settled bool
	stats   bool
	stage   stage
	walk    table.Walk
	events  [][]byte
	routes  uint64
	records uint64
	half    bool // interrupted
}

type stage uint8

const (
	opening stage = iota
	walking
	telling // events
	closing
	ended
)

// Options say what a dump has in it.
type Options struct {
	Settled bool // the router has told its table
	Stats   bool // Statistics Reports are wanted
}

// New returns a dump of src that has not begun.
func New(src Source, enc Encoder, o Options) *Dump {
	return &Dump{src: src, enc: enc, settled: o.Settled, stats: o.Stats}
}

// Routes returns how many routes are in the dump so far.
func (d *Dump) Routes() uint64 { return d.routes }

// Records returns how many records were made so far.
func (d *Dump) Records() uint64 { return d.records }

// Ended reports whether all records were made.
func (d *Dump) Ended() bool { return d.stage == ended }

// Interrupted reports whether the dump ended before it was whole.
func (d *Dump) Interrupted() bool { return d.half }

// Fill appends further records to b until it has about as many records or bytes,
// or the dump has Ended.
func (d *Dump) Fill(b *record.Batch, records, bytes int) {
	before := b.Len()
	for d.stage != ended && b.Len() < records && len(b.Data) < bytes {
		switch d.stage {
		case opening:
			d.enc.Init(b, d.settled)
			d.stage = walking
		case walking:
			n := b.Len()
			more := d.src.Walk(&d.walk, min(walkStep, records-n), func(r *table.Route) { d.enc.Route(b, r) })
			d.routes += uint64(b.Len() - n)
			if !more {
				d.collect()
				d.stage = telling
			}
		case telling:
			if len(d.events) == 0 {
				d.stage = closing
				break
			}
			d.enc.Event(b, d.events[0])
			d.events[0] = nil
			d.events = d.events[1:]
		case closing:
			d.enc.Close(b, "")
			d.stage = ended
		}
	}
	d.records += uint64(b.Len() - before)
}

// interrupt appends to b what ends a dump that is not whole.
func (d *Dump) interrupt(b *record.Batch, why string) {
	d.enc.Close(b, why)
	d.records++
	d.stage, d.half = ended, true
	d.events = nil
}

// collect takes the messages of the table.
func (d *Dump) collect() {
	if m := d.src.Initiation(); m != nil {
		d.events = append(d.events, m)
	}
	for _, p := range d.src.Peers() {
		d.events = append(d.events, p.PeerUps...)
		if p.Stats != nil && d.stats {
			d.events = append(d.events, p.Stats)
		}
		if p.Down != nil {
			d.events = append(d.events, p.Down)
		}
	}
}

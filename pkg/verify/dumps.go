package verify

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/bmpha/bmpha/pkg/record"
)

// Dumps finds the last whole dump of each router's table in a topic (package dump,
// and pmacct's bmp_dump_*). A dump is whole if its dump_init and its dump_close are
// there, without "interrupted", and no other dump of the router began in between.
// Two tables of each router are in memory. It is not safe for concurrent use.
type Dumps struct {
	router  netip.Addr
	routers map[string]*dumpsOf
	report  DumpReport
}

type dumpsOf struct {
	open  *dump
	whole *dump
}

type dump struct {
	base   Base
	sender string
	table  routes
}

// A Base is a dump that a table can begin with.
type Base struct {
	Router    string    `json:"router"`
	Partition int32     `json:"partition"`
	Offset    int64     `json:"offset"` // of its dump_init
	Time      time.Time `json:"time"`   // of its dump_init, in Kafka
	Routes    int       `json:"routes"`
}

// A DumpReport says what there was of dumps.
type DumpReport struct {
	Topic  string `json:"topic"`
	Whole  int64  `json:"whole"`
	Broken int64  `json:"broken"` // without an end, or interrupted
	Bases  []Base `json:"bases"`  // the last whole one of each router
	// Unreadable are records of dumps that could not be read. A dump with one is
	// broken.
	Unreadable int64 `json:"unreadable"`
}

// NewDumps returns what knows of no dump yet. It looks at the router with that
// address, as in bmp_router, at all if it is zero.
func NewDumps(router netip.Addr) *Dumps {
	return &Dumps{router: router, routers: make(map[string]*dumpsOf)}
}

// Record takes one record. Records of one partition come in the order of their
// offsets. What does not belong to a dump is passed over.
func (d *Dumps) Record(r Record) {
	f, ok := scan(r.Value)
	if !ok || len(f.router) == 0 || d.router.IsValid() && !sameAddr(string(f.router), d.router) {
		return
	}
	of := d.routers[string(f.router)]
	sender := senderOf(&f, r.Header)
	switch string(f.event) {
	case "dump_init":
		if of == nil {
			of = new(dumpsOf)
			d.routers[string(f.router)] = of
		}
		if of.open != nil {
			d.report.Broken++
		}
		of.open = &dump{sender: sender, base: Base{Router: string(f.router), Partition: r.Partition, Offset: r.Offset, Time: r.Time}}
	case "dump":
		// What another sender has left of its own dump belongs to none.
		if of == nil || of.open == nil || of.open.sender != sender {
			return
		}
		err := error(nil)
		if r.Partition != of.open.base.Partition {
			err = fmt.Errorf("the dump began in partition %d", of.open.base.Partition)
		} else {
			err = of.open.table.dumped(r.Value)
		}
		if err != nil {
			d.report.Unreadable++
			d.report.Broken++
			of.open = nil
		}
	case "dump_close":
		if of == nil || of.open == nil || of.open.sender != sender {
			return
		}
		if isSet(r.Value, "interrupted") || r.Partition != of.open.base.Partition {
			d.report.Broken++
		} else {
			d.report.Whole++
			of.whole = of.open
			of.whole.base.Routes = of.whole.table.count()
		}
		of.open = nil
	}
}

// senderOf tells senders apart.
func senderOf(f *fields, header []byte) string {
	if h, err := record.ParseHeader(header); err == nil {
		return fmt.Sprintf("%016x", h.Instance)
	}
	return string(f.writer)
}

// Report returns what was found so far.
func (d *Dumps) Report() *DumpReport {
	rep := d.report
	for _, of := range d.routers {
		if of.open != nil {
			rep.Broken++
		}
		if of.whole != nil {
			rep.Bases = append(rep.Bases, of.whole.base)
		}
	}
	slices.SortFunc(rep.Bases, func(a, b Base) int { return compareAddrs(a.Router, b.Router) })
	return &rep
}

// Load lets the tables of routers begin with their last whole dump. The records that
// follow have to begin at, or before, what the dump has seen. d is used up.
func (l *Ledger) Load(d *Dumps) {
	for name, of := range d.routers {
		if of.whole == nil {
			continue
		}
		rt := newRouter(name)
		rt.table = of.whole.table
		l.routers[name] = rt
	}
	d.routers = nil
}

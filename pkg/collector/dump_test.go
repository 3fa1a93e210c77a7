package collector

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/dump"
	"github.com/bmpha/bmpha/pkg/pmacct"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
)

const dumpTopic = "lab.dump"

// dumping makes a collector dump its tables to the topic, and to files below dir
// if it is not empty.
func dumping(period time.Duration, dir string) func(*Options) {
	return func(o *Options) {
		o.Table = &TableOptions{}
		o.Dump = &DumpOptions{
			Plan: dump.Plan{Period: period, Slots: 1}, Stats: true,
			Topic: func(netip.Addr, uint16) string { return dumpTopic },
		}
		if dir == "" {
			return
		}
		o.Dump.File = func(addr netip.Addr, _ uint16, slot time.Time) (path, latest string) {
			return filepath.Join(dir, fmt.Sprintf("%s-%d.json", addr, slot.Unix())), filepath.Join(dir, "latest")
		}
		o.Dump.FileEncoder, _ = pmacct.NewEncoder(pmacct.Options{Zone: time.UTC})
	}
}

// A dumpRead is what a reader has of one dump.
type dumpRead struct {
	instance     uint64
	slot         string
	unsettled    bool
	records      int
	table        replay.Consumer
	closed       bool
	interruption string
}

func (d *dumpRead) String() string {
	return fmt.Sprintf("dump of %s by %x: %d records, unsettled %t, closed %t, interrupted %q", d.slot, d.instance, d.records, d.unsettled, d.closed, d.interruption)
}

// A dumpReader reads dumps, by several collectors.
type dumpReader struct {
	sub  *rig.Consumer
	at   int // in it
	all  []*dumpRead
	open map[uint64]*dumpRead // by instance
}

// read takes one record in. It returns an error if the record is of no dump.
func (r *dumpReader) read(value []byte, instance uint64) error {
	var v struct {
		Event       string `json:"event_type"`
		Slot        string `json:"timestamp"`
		Prefix      string `json:"ip_prefix"`
		Unsettled   int    `json:"unsettled"`
		Interrupted string `json:"interrupted"`
	}
	if err := json.Unmarshal(value, &v); err != nil {
		return err
	}
	if v.Event == "dump_init" {
		if r.open == nil {
			r.open = make(map[uint64]*dumpRead)
		}
		r.open[instance] = &dumpRead{instance: instance, slot: v.Slot, unsettled: v.Unsettled != 0}
		r.all = append(r.all, r.open[instance])
	}
	d := r.open[instance]
	if d == nil || d.slot != v.Slot {
		return fmt.Errorf("%s is not of the %s", value, d)
	}
	d.records++
	switch {
	case v.Event == "dump_close":
		d.closed, d.interruption = true, v.Interrupted
		delete(r.open, instance)
	case v.Prefix != "":
		update := bytes.Replace(value, []byte(`"event_type": "dump"`), []byte(`"event_type": "log", "log_type": "update"`), 1)
		return d.table.Record(update)
	}
	return nil
}

// dumps returns the dumps in the topic.
func (r *dumpReader) dumps(t *testing.T) []*dumpRead {
	t.Helper()
	if r.sub.Count() == r.at {
		return r.all
	}
	records := r.sub.Records()
	for _, rec := range records[r.at:] {
		h, err := record.ParseHeader(rec.Header(record.HeaderName))
		if err == nil {
			err = r.read(rec.Value, h.Instance)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	r.at = len(records)
	return r.all
}

func (l *lab) dumpTopic() *dumpReader {
	l.t.Helper()
	if err := l.kafka.CreateTopic(l.t.Context(), dumpTopic, 1); err != nil {
		l.t.Fatal(err)
	}
	sub, err := rig.Consume(l.t.Context(), l.kafka.Brokers(), dumpTopic)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(sub.Close)
	return &dumpReader{sub: sub}
}

// A whole dump has the router's table, in the topic and in a file.
func TestDumps(t *testing.T) {
	l := newLab(t)
	sub := l.dumpTopic()
	dir := t.TempDir()
	m := l.start("a", dumping(2*time.Second, dir), patient)
	l.role(m, control.RoleActive)
	r := l.router(synthetic(t, replay.Synthetic{Prefixes: 500, IPv6: 0.3}), 0, m)
	var last *control.Dump
	l.until("a dump of the whole table", func() error {
		list := sub.dumps(t)
		for _, d := range list {
			if d.closed && d.interruption == "" && !d.unsettled && replay.Compare(r.Table(), d.table.Routes()).Empty() {
				last = m.Status().Dump
				if last.Whole < 2 || last.Last == nil {
					break
				}
				return nil
			}
		}
		return fmt.Errorf("%d dumps: %v", len(list), list)
	})
	for _, d := range sub.dumps(t) {
		if d.interruption != "" {
			t.Errorf("%s", d)
		}
	}
	if last.LastError != "" || last.Failed != 0 || last.Last.Routes != uint64(len(r.Table())) ||
		last.Last.Router != "127.0.0.1" && !strings.HasPrefix(last.Last.Router, "127.") {
		t.Errorf("status: %+v, last %+v", last, last.Last)
	}
	b, err := os.ReadFile(filepath.Join(dir, "latest"))
	if err != nil {
		t.Fatal(err)
	}
	var file dumpReader
	for line := range bytes.Lines(b) {
		if err := file.read(line, 0); err != nil {
			t.Fatal(err)
		}
	}
	if len(file.all) != 1 || !file.all[0].closed || !replay.Compare(r.Table(), file.all[0].table.Routes()).Empty() {
		t.Errorf("in the file there are %v", file.all)
	}
}

// When another collector is to send in the middle of a dump, the dump says that it
// is not whole, and the other one dumps the table again for the same slot. Only
// the sender dumps.
func TestDumpIsHandedOver(t *testing.T) {
	l := newLab(t)
	sub := l.dumpTopic()
	a := l.start("a", dumping(10*time.Second, ""), patient)
	l.role(a, control.RoleActive)
	b := l.start("b", dumping(10*time.Second, ""), patient)
	l.role(b, control.RoleStandby)
	r := l.router(synthetic(t, replay.Synthetic{Prefixes: 2_000}), 0, a, b)
	l.until("the whole table", func() error {
		if n := a.Status().Routers; len(n) == 0 || !r.Counters().Ended {
			return fmt.Errorf("%+v", r.Counters())
		}
		return nil
	})
	sender, other := a, b
	for try := range 10 {
		before := sender.Status().Dump.Interrupted
		seen := sub.sub.Count()
		l.until("a dump under way", func() error {
			if sub.sub.Count() == seen || sender.Status().Dump.Running == "" {
				return fmt.Errorf("%d records", sub.sub.Count())
			}
			return nil
		})
		if err := sender.Regenerate(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.role(other, control.RoleActive)
		l.until("the end of the dump", func() error {
			if of := sender.Status().Dump.Running; of != "" {
				return fmt.Errorf("dump of %s", of)
			}
			return nil
		})
		if sender.Status().Dump.Interrupted > before {
			break
		}
		if sender, other = other, sender; try == 9 {
			t.Fatal("no dump was interrupted")
		}
	}
	var half *dumpRead
	l.until("the dump once more", func() error {
		list := sub.dumps(t)
		for i, d := range list {
			if d.interruption == "" {
				continue
			}
			if half = d; i+1 < len(list) && list[i+1].closed {
				again := list[i+1]
				if again.interruption != "" || again.slot != d.slot || again.instance == d.instance || d.interruption != "handover" {
					t.Fatalf("%s, and then %s", d, again)
				}
				if diff := replay.Compare(r.Table(), again.table.Routes()); !diff.Empty() {
					t.Fatalf("%s: %s", again, diff)
				}
				return nil
			}
		}
		return fmt.Errorf("%d dumps: %v", len(list), list)
	})
	whole := map[string]int{}
	for _, d := range sub.dumps(t) {
		if d.closed && d.interruption == "" {
			whole[d.slot]++
		}
		if whole[d.slot] > 1 {
			t.Errorf("two whole dumps of one slot: %s", d)
		}
	}
	if half.records >= len(r.Table()) {
		t.Errorf("the half dump is whole: %s", half)
	}
}

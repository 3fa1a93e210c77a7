package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
)

// A dumped is a table dump of one sender, or what came of one.
type dumped struct {
	instance uint64
	slot     string // timestamp that all its records carry
	opened   int    // dump_init
	closed   int    // dump_close
	first    int    // index in the topic of its first record
	count    int
	replayed int // records flagged so
	table    replay.Consumer
	repeats  int // routes that it had already
	seen     map[string]bool
}

// dumps reads the topic of dumps: a run of records of one slot and one sender is
// one dump.
func dumps(records []rig.Record) ([]*dumped, error) {
	var list []*dumped
	var d *dumped
	for i, r := range records {
		var v struct {
			Event  string `json:"event_type"`
			Slot   string `json:"timestamp"`
			Type   string `json:"bmp_msg_type"`
			Prefix string `json:"ip_prefix"`
			Peer   string `json:"peer_ip"`
		}
		if err := json.Unmarshal(r.Value, &v); err != nil {
			return nil, fmt.Errorf("record %d: %w", i, err)
		}
		h, err := record.ParseHeader(r.Header(record.HeaderName))
		if err != nil {
			return nil, fmt.Errorf("record %d: %w", i, err)
		}
		if d == nil || d.instance != h.Instance || d.slot != v.Slot {
			d = &dumped{instance: h.Instance, slot: v.Slot, first: i, seen: make(map[string]bool)}
			list = append(list, d)
		}
		d.count++
		if h.Flags&record.FlagReplayed != 0 {
			d.replayed++
		}
		switch v.Event {
		case "dump_init":
			d.opened++
		case "dump_close":
			d.closed++
		case "dump":
			if v.Prefix == "" {
				break // an event since the dump before
			}
			if key := v.Peer + " " + v.Prefix; d.seen[key] {
				d.repeats++
			} else {
				d.seen[key] = true
			}
			// A route in a dump is to its table what an update is to the live one.
			update := bytes.Replace(r.Value, []byte(`"event_type": "dump"`), []byte(`"event_type": "log", "log_type": "update"`), 1)
			if err := d.table.Record(update); err != nil {
				return nil, fmt.Errorf("record %d: %w", i, err)
			}
		default:
			return nil, fmt.Errorf("record %d: event_type %q in the topic of dumps", i, v.Event)
		}
	}
	return list, nil
}

func (d *dumped) String() string {
	return fmt.Sprintf("dump of %s by %016x: %d records, %d routes, dump_init %d, dump_close %d, flagged as replayed %d, routes again %d",
		d.slot, d.instance, d.count, len(d.seen), d.opened, d.closed, d.replayed, d.repeats)
}

// whole returns an error unless the dump has its beginning, all routes of the
// router once, and its end.
func (d *dumped) whole(router map[replay.Key]string) error {
	if d.opened != 1 || d.closed != 1 || d.repeats != 0 {
		return fmt.Errorf("%s", d)
	}
	if diff := replay.Compare(router, d.table.Routes()); !diff.Empty() {
		return fmt.Errorf("%s: %s", d, diff)
	}
	return nil
}

// ended returns an error unless a dump_close is among the records.
func ended(records []rig.Record) error {
	for i := len(records) - 1; i >= 0; i-- {
		if bytes.Contains(records[i].Value, []byte(`"event_type": "dump_close"`)) {
			return nil
		}
	}
	return fmt.Errorf("%d records, no dump_close", len(records))
}

// killInside kills a collector in the middle of a dump, of which n records and not the
// end have come, and returns how many records there were before that dump. Whether it
// is in the middle shows when nothing more comes of one that stands still.
func (l *lab) killInside(m *member, sub *rig.Consumer, n int) (start int) {
	l.t.Helper()
	for {
		start = sub.Count()
		l.untilWithin(2*time.Minute, "a dump under way", func() error {
			if come := sub.Count() - start; come < n {
				return fmt.Errorf("%d records", come)
			}
			return nil
		})
		l.must(m.Pause())
		count, since := sub.Count(), time.Now()
		l.until("the last records", func() error {
			if now := sub.Count(); now != count {
				count, since = now, time.Now()
			}
			if still := time.Since(since); still < 500*time.Millisecond {
				return fmt.Errorf("%d records, the last %s ago", count, still)
			}
			return nil
		})
		if ended(sub.Records()[start:]) != nil {
			l.must(m.Kill())
			return start
		}
		l.t.Log("the dump was through before the collector could be killed")
		l.must(m.Resume())
		m.role(control.RoleActive)
	}
}

// TestLongDumps: pmbmpd dumps its table every minute. The active one's dump is in
// Kafka, whole, once. The active collector is killed in the middle of one; the next
// is whole again.
func TestLongDumps(t *testing.T) { dumpLife(t, "pmbmpd", true) }

// TestLongDumpsNfacctd is that with nfacctd's BMP thread, without the kill.
func TestLongDumpsNfacctd(t *testing.T) { dumpLife(t, "nfacctd", false) }

func dumpLife(t *testing.T, program string, kill bool) {
	long(t)
	rig.Require(t, rig.PmbmpdPart)
	const routes = 50_000
	l := newLab(t, withDefaultTimers, with("BMPHA_HOLD_MEMORY=1GiB")).consume(4)
	topic := l.name + "-dump"
	l.must(l.kafka.CreateTopic(l.within(30*time.Second), topic, 1))
	sub, err := rig.Consume(t.Context(), l.kafka.Brokers(), topic, l.kafka.Client()...)
	l.must(err)
	t.Cleanup(sub.Close)
	config := []string{
		"bmp_dump_kafka_broker_host: 127.0.0.1", "bmp_dump_kafka_broker_port: INTAKE_PORT",
		"bmp_dump_kafka_topic: " + topic, "bmp_dump_kafka_partition_key: $bmp_router",
		"bmp_dump_output: json", "bmp_dump_refresh_time: 60",
	}
	a := l.station("a", program, config)
	a.role(control.RoleActive)
	b := l.station("b", program, config)
	b.role(control.RoleStandby)
	r := l.router(replay.Config{
		Stream: l.stream(replay.Synthetic{Prefixes: routes / 4, IPv6: 0.3}), Source: netip.MustParseAddr("127.0.0.1"), Rate: 15_000,
	}, a.member, b.member)
	l.untilWithin(2*time.Minute, "the whole table in Kafka", func() error {
		if !r.Counters().Ended {
			return fmt.Errorf("%d routes said", r.Counters().Routes)
		}
		if n := l.tally.Count(); n < routes {
			return fmt.Errorf("%d records", n)
		}
		return nil
	})
	table := maps.Clone(r.Table())
	instance := map[uint64]string{a.instance(): "a", b.instance(): "b"}

	// next waits for the end of the first dump that begins after what had been read
	// at a time.
	next := func(after int) *dumped {
		t.Helper()
		looked, begun := after, false
		err := sub.Wait(l.within(3*time.Minute), func(records []rig.Record) bool {
			for ; looked < len(records); looked++ {
				switch value := records[looked].Value; {
				case bytes.Contains(value, []byte(`"event_type": "dump_init"`)):
					begun = true
				case begun && bytes.Contains(value, []byte(`"event_type": "dump_close"`)):
					return true
				}
			}
			return false
		})
		l.must(err)
		list, err := dumps(sub.Records()[after:])
		l.must(err)
		for _, d := range list {
			if d.opened > 0 && d.closed > 0 {
				return d
			}
		}
		t.Fatalf("no dump has both ends: %v", list)
		return nil
	}
	// The first dump may have begun while the table was still coming in.
	start := sub.Count()
	for d := next(start); d.whole(table) != nil; d = next(start) {
		t.Logf("not the whole table yet: %s", d)
		start = sub.Count()
	}
	start = sub.Count()
	if !kill {
		l.must(next(start).whole(table))
	} else {
		start = l.killInside(a.member, sub, routes/20)
		b.role(control.RoleActive)
		// b's own dump of that slot, as far as it held it, and then the next one.
		l.until("the end of the slot in which a was killed", func() error { return ended(sub.Records()[start:]) })
		l.must(next(sub.Count()).whole(table))
	}

	list, err := dumps(sub.Records())
	l.must(err)
	var torn []*dumped
	slots := map[string]int{}
	for _, d := range list {
		t.Logf("at %d, %s: %s", d.first, instance[d.instance], d)
		slots[d.slot]++
		switch {
		case d.closed == 0:
			torn = append(torn, d)
		case instance[d.instance] == "b" && !kill:
			t.Errorf("the standby's: %s", d)
		}
	}
	switch {
	case !kill && (len(torn) != 0 || len(slots) != len(list)):
		t.Errorf("%d dumps of %d slots, %d without an end", len(list), len(slots), len(torn))
	case kill && (len(torn) != 1 || instance[torn[0].instance] != "a" || slots[torn[0].slot] != 2 || len(slots) != len(list)-1):
		t.Errorf("%d dumps of %d slots, without an end %v", len(list), len(slots), torn)
	}
	l.same(r)
}

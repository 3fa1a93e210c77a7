package main

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
)

// TestLongTableDumps: the sender of a router dumps its table every minute, to a
// topic and to files, and nobody else does. It is killed in the middle of a dump;
// that has no end then, and its heir dumps the table for the same slot as a whole.
func TestLongTableDumps(t *testing.T) {
	long(t)
	t.Parallel()
	const routes = 100_000
	l := newLab(t, withDefaultTimers, with("BMPHA_HOLD_MEMORY=1GiB", "BMPHA_DUMP_PERIOD=1m")).consume(1)
	topic := l.name + "-dump"
	l.must(l.kafka.CreateTopic(l.within(30*time.Second), topic, 1))
	sub, err := rig.Consume(t.Context(), l.kafka.Brokers(), topic, l.kafka.Client()...)
	l.must(err)
	t.Cleanup(sub.Close)
	dirs := map[string]string{"a": t.TempDir(), "b": t.TempDir()}
	start := func(name string) *member {
		return l.start(name, "BMPHA_DUMP_TOPIC="+topic, "BMPHA_DUMP_FILE="+dirs[name]+"/$bmp_router/%H%M%S.json",
			"BMPHA_DUMP_LATEST="+dirs[name]+"/$bmp_router/latest")
	}
	a := start("a")
	a.role(control.RoleActive)
	b := start("b")
	b.role(control.RoleStandby)
	r := l.router(replay.Config{
		Stream: l.stream(replay.Synthetic{Prefixes: routes / 4, IPv6: 0.3}), Source: netip.MustParseAddr("127.0.0.1"), Rate: 20_000,
	}, a, b)
	l.untilWithin(2*time.Minute, "the whole table", func() error {
		if c := r.Counters(); !c.Ended {
			return fmt.Errorf("%d routes said", c.Routes)
		}
		return nil
	})
	table := maps.Clone(r.Table())
	instance := map[uint64]string{a.instance(): "a", b.instance(): "b"}
	written := func(m *member, n uint64) {
		t.Helper()
		l.untilWithin(3*time.Minute, "a dump to topic and file", func() error {
			if d := m.status().Dump; d == nil || d.Whole < n {
				return fmt.Errorf("%+v", d)
			}
			return nil
		})
	}
	inFile := func(name string) {
		t.Helper()
		latest := filepath.Join(dirs[name], "127_0_0_1", "latest")
		text, err := os.ReadFile(latest)
		l.must(err)
		var c replay.Consumer
		for line := range bytes.Lines(text) {
			if !bytes.Contains(line, []byte(`"ip_prefix"`)) {
				continue
			}
			l.must(c.Record(bytes.Replace(line, []byte(`"event_type": "dump"`), []byte(`"event_type": "log", "log_type": "update"`), 1)))
		}
		if diff := replay.Compare(table, c.Routes()); !diff.Empty() {
			t.Errorf("%s: %s", latest, diff)
		}
		if info, err := os.Stat(latest); err != nil || info.Mode().Perm() != 0o640 {
			t.Errorf("%s: %v, %v", latest, info.Mode(), err)
		}
	}
	written(a, 2)
	inFile("a")
	l.killInside(a, sub, routes/50)
	b.role(control.RoleActive)
	written(b, 2)
	inFile("b")

	l.must(sub.CatchUp(l.within(20 * time.Second)))
	list, err := dumps(sub.Records())
	l.must(err)
	for i, d := range list {
		t.Logf("at %d, %s: %s", d.first, instance[d.instance], d)
		switch {
		case i < len(list)-2: // a's, until it was killed
			if err := d.whole(table); err != nil || instance[d.instance] != "a" {
				t.Errorf("%s: %v", instance[d.instance], err)
			}
		case i == len(list)-2:
			if d.opened != 1 || d.closed != 0 || instance[d.instance] != "a" || d.slot != list[i+1].slot {
				t.Errorf("the dump in which a was killed: %s", d)
			}
		default:
			if err := d.whole(table); err != nil || instance[d.instance] != "b" {
				t.Errorf("the dump of a's heir: %v", err)
			}
		}
	}
	if len(list) < 3 {
		t.Errorf("%d dumps", len(list))
	}
	l.same(r)
}

package verify

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/record"
)

// A dumping is a record of a topic of dumps.
type dumping struct {
	sender    uint64
	value     string
	partition int32
}

func mark(event, more string) string {
	return fmt.Sprintf(`{"event_type": %q, %s"bmp_router": "192.0.2.1"}`, event, more)
}

func row(prefix int, v string) string {
	return strings.NewReplacer(`"log_type": "update", `, "", `"event_type": "log"`, `"event_type": "dump"`).Replace(route(peerA, prefix, v))
}

// Which dumps are a base: the last whole one, and never half of one.
func TestDumps(t *testing.T) {
	begin, end := mark("dump_init", `"dump_period": 60, `), mark("dump_close", "")
	broken := mark("dump_close", `"interrupted": "session ended", `)
	up := strings.Replace(event(peerA, "peer_up", ""), `"event_type": "log"`, `"event_type": "dump"`, 1)
	one := []dumping{{1, begin, 0}, {1, row(1, "1"), 0}, {1, row(2, "1"), 0}, {1, up, 0}, {1, end, 0}}
	with := func(more ...dumping) []dumping { return append(one[:len(one):len(one)], more...) }
	for _, test := range []struct {
		name          string
		records       []dumping
		want          string // prefixes of the base, "-" without one
		whole, broken int64
		bad           int64
	}{
		{"nothing", nil, "-", 0, 0, 0},
		{"one", one, "1 2", 1, 0, 0},
		{"two", with(dumping{1, begin, 0}, dumping{1, row(3, "1"), 0}, dumping{1, end, 0}), "3", 2, 0, 0},
		{"an empty table", with(dumping{1, begin, 0}, dumping{1, end, 0}), "", 2, 0, 0},
		{"not at its end yet", with(dumping{1, begin, 0}, dumping{1, row(3, "1"), 0}), "1 2", 1, 1, 0},
		{"interrupted", with(dumping{1, begin, 0}, dumping{1, row(3, "1"), 0}, dumping{1, broken, 0}), "1 2", 1, 1, 0},
		{"interrupted and empty", []dumping{{1, begin, 0}, {1, broken, 0}}, "-", 0, 1, 0},
		{"begun again by itself", []dumping{{1, begin, 0}, {1, row(3, "1"), 0}, {1, begin, 0}, {1, row(4, "1"), 0}, {1, end, 0}}, "4", 1, 1, 0},
		{"begun again by its heir", []dumping{{1, begin, 0}, {1, row(3, "1"), 0}, {2, begin, 0}, {2, row(4, "1"), 0}, {2, end, 0}}, "4", 1, 1, 0},
		{"begun again by its heir, and the dead one still writes", []dumping{{1, begin, 0}, {1, row(3, "1"), 0}, {2, begin, 0}, {1, row(5, "1"), 0}, {1, end, 0}, {2, row(4, "1"), 0}, {2, end, 0}}, "4", 1, 1, 0},
		{"its beginning was deleted", []dumping{{1, row(3, "1"), 0}, {1, end, 0}}, "-", 0, 0, 0},
		{"in two partitions", []dumping{{1, begin, 0}, {1, row(3, "1"), 0}, {1, row(4, "1"), 1}, {1, end, 0}}, "-", 0, 1, 1},
		{"its end in another partition", []dumping{{1, begin, 0}, {1, row(3, "1"), 0}, {1, end, 1}}, "-", 0, 1, 0},
		{"unreadable", []dumping{{1, begin, 0}, {1, strings.Replace(row(3, "1"), `"afi": 1`, `"afi": "one"`, 1), 0}, {1, end, 0}}, "-", 0, 1, 1},
		{"live records among it", []dumping{{1, begin, 0}, {1, row(3, "1"), 0}, {1, route(peerA, 4, "1"), 0}, {1, end, 0}}, "3", 1, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := NewDumps(netip.Addr{})
			for i, r := range test.records {
				o := record.Origin{Instance: r.sender}
				d.Record(Record{Partition: r.partition, Offset: int64(i), Time: start.Add(time.Duration(i) * time.Second), Value: []byte(r.value), Header: record.AppendHeader(nil, &o, 0)})
			}
			rep := d.Report()
			l := New(Options{Partial: true})
			l.Load(d)
			got := "-"
			if routes, ok := l.Routes(testRouter); ok {
				got = ""
				for k := range routes {
					got += " " + strings.TrimSuffix(strings.TrimPrefix(k.Prefix, "198.18."), ".0/24")
				}
				if got == " 2 1" {
					got = " 1 2"
				}
				got = strings.TrimPrefix(got, " ")
				if len(rep.Bases) != 1 || rep.Bases[0].Routes != len(routes) || rep.Bases[0].Router != testRouter {
					t.Errorf("%+v", rep)
				}
			} else if len(rep.Bases) != 0 {
				t.Errorf("%+v", rep)
			}
			if got != test.want || rep.Whole != test.whole || rep.Broken != test.broken || rep.Unreadable != test.bad {
				t.Errorf("%q, %+v", got, rep)
			}
		})
	}
}

// With a dump a table is whole: what the collector has more is missing, and what it
// has not is a withdrawal that was lost. Of a router without one this is not known.
func TestDumpsAsBase(t *testing.T) {
	d := NewDumps(netip.Addr{})
	for i, v := range []string{mark("dump_init", ""), row(1, "1"), row(2, "1"), row(3, "1"), mark("dump_close", "")} {
		d.Record(Record{Offset: int64(i), Time: start, Value: []byte(v)})
	}
	l := New(Options{Partial: true})
	l.Load(d)
	other := strings.NewReplacer(`"192.0.2.1"`, `"192.0.2.2"`)
	for _, s := range []string{route(peerA, 1, ""), route(peerA, 2, "2"), route(peerA, 99, ""), other.Replace(route(peerA, 1, "1"))} {
		l.Record(Record{Value: []byte(s)})
	}
	m := NewMatch(l, Scope{})
	pass(t, m, told(peerA, 2, "2"), told(peerA, 4, "1"), other.Replace(told(peerA, 1, "1")), other.Replace(told(peerA, 7, "1")))
	c := m.Result("s", 0)
	if c.Equal != 2 || names(c.Missing) != "4" || names(c.Extra) != "3" || names(c.NotMentioned) != "7" || c.Different.Count != 0 {
		t.Errorf("%+v", c)
	}
	d = NewDumps(netip.MustParseAddr("192.0.2.9"))
	d.Record(Record{Value: []byte(mark("dump_init", ""))})
	if rep := d.Report(); rep.Broken != 0 {
		t.Errorf("%+v", rep)
	}
}

// Whatever stands in a topic of dumps, it is a dump or it is not.
func FuzzDumps(f *testing.F) {
	f.Add([]byte(strings.Join([]string{mark("dump_init", ""), row(1, "1"), mark("dump_close", "")}, "\n")))
	f.Add([]byte(strings.Join([]string{mark("dump_init", ""), row(1, "1"), mark("dump_close", `"interrupted": "x", `), mark("dump_init", ""), mark("dump_close", `"interrupted": 0, `)}, "\n")))
	f.Fuzz(func(t *testing.T, topic []byte) {
		d := NewDumps(netip.Addr{})
		inits := int64(0)
		for line := range strings.Lines(string(topic)) {
			if v, ok := scan([]byte(line)); ok && string(v.event) == "dump_init" {
				inits++
			}
			d.Record(Record{Value: []byte(line)})
		}
		rep := d.Report()
		if rep.Whole+rep.Broken > inits || int64(len(rep.Bases)) > rep.Whole {
			t.Fatalf("%d begun: %+v", inits, rep)
		}
		l := New(Options{})
		l.Load(d)
		n := 0
		for _, r := range l.Report().Routers {
			n += r.Routes
		}
		for _, b := range rep.Bases {
			n -= b.Routes
		}
		if n != 0 {
			t.Fatalf("%+v", rep)
		}
	})
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
)

// TestVerifyTablesFRR, TestVerifyTablesGoBGP and TestVerifyTables: a pair with
// tables hears a router that goes on talking while its session to the active
// collector opens again and that one is killed and comes back. At rest the topic
// says what each of the two has, in each form of records; and a record too many is
// found.
func TestVerifyTablesFRR(t *testing.T) {
	rig.Require(t, rig.FRRPart)
	verifyTables(t, realTables(startFRR))
}

func TestVerifyTablesGoBGP(t *testing.T) {
	rig.Require(t, rig.GoBGPPart)
	verifyTables(t, realTables(startGoBGP))
}

func TestVerifyTables(t *testing.T) { verifyTables(t, playedTables) }

// A talking is a router for verifyTables.
type talking struct {
	until func(what string, cond func() error) // talks until something is so
	cut   func()                               // ends the session to the first collector; another one begins
	rest  func()                               // says what holds in the end, which is in Kafka then, and no more
}

func realTables(start func(context.Context, rig.RouterOptions) (rig.Router, error)) func(*lab, ...*member) talking {
	return func(l *lab, ms ...*member) talking {
		l.t.Helper()
		router, talk := l.talkative(start, ms...)
		talk.everything()
		return talking{talk.until,
			func() {
				router.Link(0).Cut()
				l.must(router.Link(0).Restore())
			},
			func() {
				// See realRouter: between two samples of a router that talks, an older
				// word about a route can be the last. What it says now must hold.
				talk.everything()
				gone := talk.prefixes[17:40]
				l.must(talk.s.Withdraw(gone...))
				l.untilWithin(time.Minute, "Kafka says what the router says", func() error {
					want, err := router.Table(l.within(10 * time.Second))
					if err != nil {
						return err
					}
					got, err := l.postPolicy()
					if err != nil {
						return err
					}
					if only, missing := want.Diff(got); len(only)+len(missing) > 0 || len(want) != len(talk.prefixes)-len(gone) {
						return fmt.Errorf("of %d routes Kafka lacks %d and has %d more", len(want), len(only), len(missing))
					}
					return nil
				})
			}}
	}
}

func playedTables(l *lab, ms ...*member) talking {
	r := l.router(replay.Config{
		Stream: l.stream(replay.Synthetic{Prefixes: 300, IPv6: 0.3, PostPolicy: true, Churn: replay.Churn{Withdraw: 0.2, Announce: 0.5, Flap: 0.1, Repeat: 0.2, PeerFlap: 0.001}}),
		Rate:   2000,
	}, ms...)
	return talking{
		func(what string, cond func() error) { l.until(what, cond) },
		func() { r.Cut(ms[0].listen, 500*time.Millisecond) },
		func() { l.same(r) },
	}
}

func verifyTables(t *testing.T, start func(*lab, ...*member) talking) {
	for _, rib := range []string{"off", "on"} {
		t.Run("rib_"+rib, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, with("BMPHA_TABLE=full", "BMPHA_REDUMP=diff", "BMPHA_OUTPUT_RIB="+rib)).consume(1)
			ms := l.cluster("a", "b")
			a, b := ms[0], ms[1]
			router := start(l, a, b)
			heard := func(m *member) error {
				if st := m.status(); len(st.Routers) != 1 || st.Routers[0].Session == nil || !st.Routers[0].Heard || st.Routers[0].PeersUp == 0 {
					return fmt.Errorf("%s hears %+v", m.name, st.Routers)
				}
				return nil
			}
			router.until("both hear the router", func() error {
				if err := heard(a); err != nil {
					return err
				}
				return heard(b)
			})
			more := func(what string, n int) {
				t.Helper()
				n += l.tally.Count()
				router.until(what, func() error {
					if got := l.tally.Count(); got < n {
						return fmt.Errorf("%d records, want %d", got, n)
					}
					return nil
				})
			}
			more("records", 1000)
			session := a.status().Routers[0].Session.ID
			router.cut()
			router.until("another session", func() error {
				if s := a.status().Routers[0].Session; s == nil || s.ID == session {
					return fmt.Errorf("session %+v", s)
				}
				return heard(a)
			})
			more("records after that", 300)
			l.must(a.Kill())
			router.until("takeover", func() error { return roleOf(b, control.RoleActive) })
			l.must(a.Restart(t.Context()))
			router.until("a is back", func() error {
				if err := roleOf(a, control.RoleStandby); err != nil {
					return err
				}
				return heard(a)
			})
			more("records after the takeover", 300)
			router.rest()

			for _, m := range []*member{b, a} {
				l.untilWithin(time.Minute, "verify finds the tables of "+m.name+" equal", func() error {
					o := l.verify("--collector", "--socket", m.socket, "--json")
					if o.code != 0 {
						return fmt.Errorf("exit code %d: %s%s", o.code, o.errOut, o.out[max(0, len(o.out)-3000):])
					}
					r := parseResult(t, o)
					if c := r.Collector; c == nil || c.Equal < 500 || len(c.Routers) != 1 || c.Differences()+c.NotMentioned.Count != 0 {
						return fmt.Errorf("%+v", r.Collector)
					}
					return nil
				})
			}
			// As a file names the socket.
			o := l.command("verify", "-c", b.file, "--collector")
			if o.code != 0 || !strings.Contains(o.out, "\ntables are equal, no faults\n") || !strings.Contains(o.out, b.socket+", 1 router: ") {
				t.Errorf("exit code %d: %s%s", o.code, o.errOut, o.out)
			}
			// From now on nothing has been said.
			all, err := rig.ReadTopic(l.within(20*time.Second), l.kafka.Brokers(), l.name, l.kafka.Client()...)
			l.must(err)
			o = l.verify("--collector", "--socket", a.socket, "--from", fmt.Sprint(len(all)), "--settle", "0s", "--json")
			r := parseResult(t, o)
			if c := r.Collector; o.code != 0 || c.Equal != 0 || c.Differences() != 0 || c.NotMentioned.Count < 500 {
				l.errorf("exit code %d, %s: %+v", o.code, o.errOut, c)
			}
			l.tamper(b)
		})
	}
}

// tamper withdraws a route of the topic that its router has not withdrawn, and sees
// verify find it.
func (l *lab) tamper(m *member) {
	l.t.Helper()
	records, err := rig.ReadTopic(l.within(20*time.Second), l.kafka.Brokers(), l.name, l.kafka.Client()...)
	l.must(err)
	table := l.tally.routes()
	for i := len(records) - 1; i >= 0; i-- {
		var v struct {
			Log    string `json:"log_type"`
			Prefix string `json:"ip_prefix"`
		}
		l.must(json.Unmarshal(records[i].Value, &v))
		if v.Log != "update" {
			continue
		}
		here := false
		for k := range table {
			here = here || k.Prefix == v.Prefix
		}
		if !here {
			continue
		}
		cl, err := kgo.NewClient(append(l.kafka.Client(), kgo.SeedBrokers(l.kafka.Brokers()), kgo.DefaultProduceTopic(l.name))...)
		l.must(err)
		defer cl.Close()
		lie := bytes.Replace(records[i].Value, []byte(`"log_type": "update"`), []byte(`"log_type": "withdraw"`), 1)
		l.must(cl.ProduceSync(l.within(30*time.Second), &kgo.Record{Value: lie}).FirstErr())
		o := l.verify("--collector", "--socket", m.socket, "--settle", "1s")
		if o.code != exitUnsound || !strings.Contains(o.out, " 1 missing, 0 extra, 0 different; 1 differed at first") ||
			!strings.Contains(o.out, "\n! missing in Kafka:\n    router ") || !strings.Contains(o.out, " "+v.Prefix) {
			l.t.Errorf("a false withdrawal of %s: exit code %d: %s%s", v.Prefix, o.code, o.errOut, o.out)
		}
		return
	}
	l.t.Fatal("no route in the topic")
}

// TestVerifyFromDump: a table begins with the last whole dump of the router, goes on
// with the records since, and is compared with a collector's; and what hinders that.
func TestVerifyFromDump(t *testing.T) {
	t.Parallel()
	v := newVerifyTopic(t, 1, rig.KafkaOptions{})
	tables := smallTables(t)
	full := lookingGlass(t, func() []control.RouterTable { return tables[:1] })
	empty := lookingGlass(t, func() []control.RouterTable { return nil })
	off := lookingGlass(t, nil)
	topic := v.name + "-dump"
	v.must(v.kafka.CreateTopic(v.within(30*time.Second), topic, 1))
	at := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	produce := func(topic string, after time.Duration, values ...string) {
		t.Helper()
		for _, value := range values {
			v.must(v.client.ProduceSync(v.within(30*time.Second), &kgo.Record{Topic: topic, Timestamp: at.Add(after), Value: []byte(value)}).FirstErr())
		}
	}
	row := func(kind string, n int) string {
		return fmt.Sprintf(`{%s, "bmp_router": "127.0.0.1", "peer_ip": "192.0.2.7", "is_post": 0, "is_in": 1, "afi": 1, "safi": 1, "ip_prefix": "203.0.113.%d/32", "bgp_nexthop": "192.0.2.7", "as_path": "64501 64502", "origin": "i"}`, kind, n)
	}
	const (
		dump     = `"event_type": "dump"`
		update   = `"event_type": "log", "log_type": "update"`
		withdraw = `"event_type": "log", "log_type": "withdraw"`
		begin    = `{"event_type": "dump_init", "bmp_router": "127.0.0.1"}`
		end      = `{"event_type": "dump_close", "bmp_router": "127.0.0.1"}`
	)
	produce(v.name, 0, row(update, 8))
	produce(topic, time.Hour, begin, row(dump, 1))
	base := []string{"--from", "dump", "--dump-topic", topic, "--collector", "--settle", "0s", "--socket"}
	check := func(what string, code int, want string, args ...string) {
		t.Helper()
		if o := v.verify(args...); o.code != code || !strings.Contains(o.out+o.errOut, want) {
			t.Errorf("%s: exit code %d, want %d, and %q: %s%s", what, o.code, code, want, o.errOut, o.out)
		}
	}
	check("half a dump", 1, "bmpha: topic "+topic+": no whole dump in it, and 1 that are not", append(base, full)...)
	produce(topic, time.Hour, begin, row(dump, 1), row(dump, 3), end)
	produce(topic, 2*time.Hour, begin, row(dump, 9)) // never ends
	produce(v.name, time.Hour+time.Second, row(update, 2))
	check("a withdrawal is lost", exitUnsound, "2 equal, 0 missing, 1 extra, 0 different; 1 differed at first", append(base, full)...)
	produce(v.name, time.Hour+time.Second, row(withdraw, 3))
	check("a dump and the records since", 0, "127.0.0.1: 2 routes, partition 0 offset 2, 2026-01-02 04:00:00.000", append(base, full)...)
	check("the dumps are not in this topic", 1, "no whole dump in it, and 0 that are not", "--from", "dump", "--collector", "--socket", full)
	check("the records alone", 0, "1 equal, 0 missing, 0 extra, 0 different\n  not mentioned since the start, and so no difference: 1 route\n    router 127.0.0.1 peer 192.0.2.7 adj-in-pre 203.0.113.1/32",
		"--from", "1", "--collector", "--socket", full)
	check("the whole topic", exitUnsound, "1 equal, 1 missing, 1 extra, 0 different", "--collector", "--settle", "0s", "--socket", full)

	check("another router", control.ExitNotFound, "no table of router 192.0.2.200", "--collector", "--router", "192.0.2.200", "--socket", full)
	check("no router yet", control.ExitNotFound, "no router has connected yet", "--collector", "--socket", empty)
	check("no tables", control.ExitNoTable, "table: full", "--collector", "--socket", off)
	check("not running", control.ExitNotRunning, "nobody listens", "--collector", "--socket", full+"x")
	given := tables[0]
	given.Table, given.Off = nil, "no room"
	none := lookingGlass(t, func() []control.RouterTable { return []control.RouterTable{given} })
	check("a table that was given up", control.ExitNoTable, "keeps no table of router 127.0.0.1: no room", "--collector", "--socket", none)
}

// TestLongVerifyFromDump: what a collector dumps is a base for what it sends after.
func TestLongVerifyFromDump(t *testing.T) {
	long(t)
	t.Parallel()
	l := newLab(t, with("BMPHA_TABLE=full", "BMPHA_DUMP_PERIOD=1m")).consume(1)
	topic := l.name + "-dump"
	l.must(l.kafka.CreateTopic(l.within(30*time.Second), topic, 1))
	a := l.start("a", "BMPHA_DUMP_TOPIC="+topic)
	a.role(control.RoleActive)
	r := l.router(replay.Config{
		Stream: l.stream(replay.Synthetic{Prefixes: 2000, IPv6: 0.3, Churn: replay.Churn{Withdraw: 0.2, Announce: 0.6, Flap: 0.1, Repeat: 0.1}}), Rate: 1000,
	}, a)
	// The records of a minute before a dump are read with it; these begin later.
	l.untilWithin(4*time.Minute, "two dumps", func() error {
		if d := a.status().Dump; d == nil || d.Whole < 2 {
			return fmt.Errorf("%+v", d)
		}
		return nil
	})
	l.more(2000)
	l.same(r)
	o := l.verify("--from", "dump", "--dump-topic", topic, "--collector", "--socket", a.socket, "--json")
	res := parseResult(t, o)
	if c := res.Collector; o.code != 0 || c.Equal != int64(len(r.Table())) || c.Differences()+c.NotMentioned.Count != 0 || len(res.Dumps.Bases) != 1 || res.Dumps.Bases[0].Routes < 1000 {
		t.Errorf("exit code %d, %s: %+v, %+v", o.code, o.errOut, c, res.Dumps)
	}
	if res.Partitions[0].From == 0 {
		t.Error("the whole topic was read")
	}
	l.tamper(a)
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
)

// TestRedumpFRR and TestRedumpGoBGP: when a real router opens its session again
// and says its whole table again, Kafka gets what is new and no more, of what has
// vanished meanwhile a withdrawal, and in the end says what the router says.
func TestRedumpFRR(t *testing.T) {
	rig.Require(t, rig.FRRPart)
	redump(t, startFRR)
}

func TestRedumpGoBGP(t *testing.T) {
	rig.Require(t, rig.GoBGPPart)
	redump(t, startGoBGP)
}

func redump(t *testing.T, start func(context.Context, rig.RouterOptions) (rig.Router, error)) {
	for _, rib := range []string{"off", "on"} {
		t.Run("rib_"+rib, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, with("BMPHA_REDUMP=diff", "BMPHA_OUTPUT_RIB="+rib)).consume(1)
			m := l.start("a")
			m.role(control.RoleActive)
			// Right after its start a collector does not know yet that it is alone.
			m.seen("some time in office", func(st *control.Status) error {
				if d := time.Since(st.Since); d < 3*fastExpiry {
					return fmt.Errorf("active for %v", d)
				}
				return nil
			})
			router, talk := l.talkative(start, m)
			talk.everything()
			says := func(what string, routes int) {
				t.Helper()
				l.untilWithin(time.Minute, what, func() error {
					want, err := router.Table(l.within(10 * time.Second))
					if err != nil {
						return err
					}
					got, err := l.postPolicy()
					if err != nil {
						return err
					}
					if only, missing := want.Diff(got); len(only)+len(missing) > 0 || len(want) != routes {
						return fmt.Errorf("of %d routes Kafka lacks %d %.2v and has %d more %.2v", len(want), len(only), only, len(missing), missing)
					}
					return nil
				})
			}
			says("all routes", 600)
			m.seen("the end of the dump", func(st *control.Status) error {
				if len(st.Routers) == 0 || st.Routers[0].Table == nil || !st.Routers[0].Table.Settled {
					return fmt.Errorf("%+v", st.Routers)
				}
				return nil
			})
			before := l.lines(0)
			router.Link(0).Cut()
			m.seen("the end of the session", func(st *control.Status) error {
				if st.Routers[0].Session != nil {
					return fmt.Errorf("session is open")
				}
				return nil
			})
			talk.announce(talk.prefixes[10:15]...)
			l.must(talk.s.Withdraw(talk.prefixes[100:107]...))
			l.until("the router knows", func() error {
				now, err := router.Table(l.within(10 * time.Second))
				if err == nil && len(now) != 593 {
					err = fmt.Errorf("%d routes", len(now))
				}
				return err
			})
			l.must(router.Link(0).Restore())
			says("what has changed meanwhile", 593)
			for _, r := range l.lines(len(before)) {
				p, err := netip.ParsePrefix(r.Prefix)
				if r.Log == "end-of-rib" || r.Log == "update" && (err != nil || !contains(talk.prefixes[10:15], p)) || r.Type == "peer_up" && r.Loc == 0 {
					l.errorf("is no news: %+v", r)
				}
				gone := "withdraw"
				if rib == "on" {
					gone = "delete"
				}
				if (r.Log == "withdraw" || r.Log == "delete") && (r.Log != gone || !contains(talk.prefixes[100:107], p) || (r.ASPath != "") != (rib == "on")) {
					l.errorf("went in another way: %+v", r)
				}
			}
			if t.Failed() {
				return
			}

			if rib == "on" { // else the table has hashes only
				l.verified(m)
			}

			// A neighbour that goes takes its routes along, whatever was left out. FRR
			// says that it is down, GoBGP withdraws them first. A pmacct with a table
			// tells of each route either way.
			dropped := len(l.lines(0))
			l.must(talk.s.Drop())
			says("nothing", 0)
			l.until("a record for each route", func() error {
				went := 0
				for _, r := range l.lines(dropped) {
					if (r.Log == "withdraw" || r.Log == "delete") && r.Post == 1 && r.ASPath != "" {
						went++
					}
				}
				if want := 593; rib == "on" && went != want || rib == "off" && went != 0 {
					return fmt.Errorf("%d with attributes", went)
				}
				return nil
			})
		})
	}
}

// TestRedumpAndTakeovers: sessions of a busy router are cut again and again, those
// to the active one and those to the standby, while collectors are killed and come
// back: what is left out of a re-dump is never missing.
func TestRedumpAndTakeovers(t *testing.T) {
	for _, rib := range []string{"off", "on"} {
		t.Run("rib_"+rib, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, with("BMPHA_TABLE=full", "BMPHA_OUTPUT_RIB="+rib)).consume(1)
			ms := l.cluster("a", "b")
			r := l.router(replay.Config{Stream: l.stream(replay.Synthetic{Peers: 3, Prefixes: 500, Seed: 7, Churn: replay.Churn{Withdraw: 0.2, Announce: 0.5, Flap: 0.1, Repeat: 0.2, PeerFlap: 0.0002}}), Rate: 500}, ms...)
			for range 3 {
				for _, m := range ms {
					r.Cut(m.listen, 50*time.Millisecond)
					l.more(200)
				}
				active, standby := ms[0], ms[1]
				l.must(active.Kill())
				standby.role(control.RoleActive)
				l.more(200)
				r.Cut(standby.listen, 50*time.Millisecond)
				l.more(200)
				l.must(active.Restart(t.Context()))
				active.role(control.RoleStandby)
				ms[0], ms[1] = standby, active
			}
			// One that has been in office for a while leaves something out.
			m := ms[0]
			m.seen("some time in office", func(st *control.Status) error {
				if d := time.Since(st.Since); d < 3*fastExpiry {
					return fmt.Errorf("active for %v", d)
				}
				return nil
			})
			before := m.repeated()
			l.untilWithin(time.Minute, "routes that are not sent again", func() error {
				if st := m.status().Routers; len(st) == 0 || st[0].Session == nil || st[0].Table == nil || !st[0].Table.Settled {
					return fmt.Errorf("%+v", st)
				}
				r.Cut(m.listen, 50*time.Millisecond)
				l.more(100)
				if now := m.repeated(); now == before {
					return fmt.Errorf("still %d", now)
				}
				return nil
			})
			l.same(r)
			for _, m := range ms {
				l.verified(m)
			}
		})
	}
}

// verified asks as an operator would whether Kafka has what a collector has heard.
func (l *lab) verified(m *member) {
	l.t.Helper()
	if o := l.verify("--collector", "--socket", m.socket); o.code != 0 {
		l.t.Errorf("verify against %s: exit code %d\n%s%s", m.name, o.code, o.out, o.errOut)
	}
}

// repeated returns how many routes a collector did not send again.
func (m *member) repeated() (n uint64) {
	for _, r := range m.status().Routers {
		if r.Table != nil {
			n += r.Table.Repeated
		}
	}
	return n
}

// TestGoneWithATable: the routes of a router that is gone for good are deleted, as
// by a pmacct with a table, but not those of one that another collector still hears.
func TestGoneWithATable(t *testing.T) {
	t.Parallel()
	l := newLab(t, with("BMPHA_REDUMP=all", "BMPHA_OUTPUT_RIB=on")).consume(1)
	ms := l.cluster("a", "b")
	r := l.numbered(500, ms...)
	l.more(1000)
	r.Cut(ms[0].listen, time.Hour)
	ms[1].seen("the router is sent by the one that hears it", func(st *control.Status) error {
		if len(st.Routers) == 0 || !st.Routers[0].Sending {
			return fmt.Errorf("%+v", st.Routers)
		}
		return nil
	})
	l.same(r)
	r.Pause(false)
	l.more(500)
	l.same(r)
	routes := len(r.Table())
	if n := l.deleted(); n != 0 {
		l.errorf("%d routes deleted that one collector still hears", n)
	}
	l.stop(r)
	l.until("the routes are gone", func() error {
		if n, left := l.deleted(), len(l.tally.routes()); n != routes || left != 0 {
			return fmt.Errorf("%d of %d deleted, %d left", n, routes, left)
		}
		return nil
	})
}

// deleted counts delete records.
func (l *lab) deleted() (n int) {
	l.tally.mu.Lock()
	defer l.tally.mu.Unlock()
	for k, v := range l.tally.events {
		if k[1] == "delete" {
			n += v
		}
	}
	return n
}

func contains(list []netip.Prefix, p netip.Prefix) bool {
	for _, q := range list {
		if q == p {
			return true
		}
	}
	return false
}

// A line is what a record says, as far as tests of tables ask for it.
type line struct {
	Type   string `json:"bmp_msg_type"`
	Log    string `json:"log_type"`
	Prefix string `json:"ip_prefix"`
	ASPath string `json:"as_path"`
	Post   int    `json:"is_post"`
	Loc    int    `json:"is_loc"`
}

// lines returns the records of the topic from one on.
func (l *lab) lines(from int) (all []line) {
	l.t.Helper()
	records, err := rig.ReadTopic(l.within(20*time.Second), l.kafka.Brokers(), l.name, l.kafka.Client()...)
	l.must(err)
	for _, r := range records[from:] {
		var v line
		l.must(json.Unmarshal(r.Value, &v))
		all = append(all, v)
	}
	return all
}

package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
)

// spoolDir is a directory for the spool of one collector, and what tells the
// collector so. Memory is so small that a second of Kafka's absence fills it.
func (l *lab) spoolDir(name string) (dir string, env []string) {
	l.t.Helper()
	root, err := os.MkdirTemp(scratch, "spool")
	l.must(err)
	dir = filepath.Join(root, name)
	return dir, []string{"BMPHA_HOLD_MEMORY=1MiB", "BMPHA_SPOOL_DIR=" + dir, "BMPHA_SPOOL_MAX_BYTES=1GiB"}
}

// withEmbeddedKafka gives a lab an embedded Kafka of its own, which goes and comes
// at once.
func withEmbeddedKafka(l *lab) {
	l.t.Helper()
	k, err := rig.StartEmbeddedKafka(l.within(time.Minute), rig.KafkaOptions{})
	l.must(err)
	l.t.Cleanup(func() { l.must(k.Close()) })
	l.kafka = k
}

// spooled waits until at least n messages are on disk.
func (m *member) spooled(n uint64) {
	m.l.t.Helper()
	m.seen("messages on disk", func(s *control.Status) error {
		if s.Spool == nil || s.Spool.Messages < n {
			return fmt.Errorf("%s: %+v, want %d messages", m.name, s.Spool, n)
		}
		return nil
	})
}

// spoolGone waits until nothing is on disk, as status says and as the directory
// shows.
func (m *member) spoolGone(dir string) {
	m.l.t.Helper()
	m.seen("an empty spool", func(s *control.Status) error {
		if s.Spool == nil || s.Spool.Messages != 0 || s.Spool.Used != 0 || s.Spool.Error != "" {
			return fmt.Errorf("%s: %+v", m.name, s.Spool)
		}
		files, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, f := range files {
			if f.Name() != "lock" {
				return fmt.Errorf("%s: %s is left", m.name, f.Name())
			}
		}
		return nil
	})
}

// unpaused watches until the end of the test that no router of a collector is
// made to wait.
func (l *lab) unpaused(m *member) {
	done, stop := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			s, err := m.client.Status(l.t.Context())
			if err != nil {
				continue // it is being killed
			}
			// Memory has room for two seconds or so in which the disk takes nothing.
			now := time.Now()
			if lost := machine.Lost(now.Add(-5*time.Second), now); s.Hold.Paused != 0 && lost < time.Second {
				l.t.Errorf("%s: a router waits, %s lost lately: %+v", m.name, lost, s.Spool)
				return
			}
		}
	}()
	l.t.Cleanup(func() { close(stop); <-done })
}

// inOrder reports the first record that came after a later one of the same session,
// both as the sender counts messages and, in the router's first session, which began
// before its table had anything in it, as the router numbers its routes. That needs
// a sink that never went back.
func inOrder(records []rig.Record) error {
	type session struct {
		place
		port string
	}
	messages, numbers := map[session]record.Header{}, map[session]uint64{}
	var first string
	for _, r := range records {
		h, err := record.ParseHeader(r.Header(record.HeaderName))
		if err != nil {
			return err
		}
		var v struct {
			Port   int    `json:"bmp_router_port"`
			Prefix string `json:"ip_prefix"`
		}
		if err := json.Unmarshal(r.Value, &v); err != nil {
			return err
		}
		s := session{place{r.Partition, h.Instance, h.Session, h.Token}, strconv.Itoa(v.Port)}
		if first == "" {
			first = s.port
		}
		if before, seen := messages[s]; seen && (h.Message < before.Message || h.Message == before.Message && h.Index <= before.Index) {
			return fmt.Errorf("partition %d offset %d: message %d.%d of session %d came after %d.%d",
				r.Partition, r.Offset, h.Message, h.Index, h.Session, before.Message, before.Index)
		}
		messages[s] = h
		if n, ok := replay.Number(v.Prefix); ok && s.port == first {
			if before, seen := numbers[s]; seen && n <= before {
				return fmt.Errorf("partition %d offset %d: number %d came after %d", r.Partition, r.Offset, n, before)
			}
			numbers[s] = n
		}
	}
	return nil
}

// onePort reports an instance that used the number of a session twice.
func onePort(records []rig.Record) error {
	type session struct {
		instance uint64
		id       uint32
	}
	ports := map[session]int{}
	for _, r := range records {
		h, err := record.ParseHeader(r.Header(record.HeaderName))
		if err != nil {
			return err
		}
		var v struct {
			Port int `json:"bmp_router_port"`
		}
		if err := json.Unmarshal(r.Value, &v); err != nil {
			return err
		}
		s := session{h.Instance, h.Session}
		if port, seen := ports[s]; seen && port != v.Port {
			return fmt.Errorf("offset %d: instance %016x has two sessions %d, from the router's ports %d and %d", r.Offset, h.Instance, h.Session, port, v.Port)
		}
		ports[s] = v.Port
	}
	return nil
}

// TestSpool: Kafka is away and memory is full; the router does not notice. A
// kill -9 meanwhile loses nothing that was on disk.
func TestSpool(t *testing.T) {
	t.Parallel()
	spoolLife(t, withEmbeddedKafka)
}

// TestLongSpool is that with a Kafka that ends and starts.
func TestLongSpool(t *testing.T) {
	long(t)
	spoolLife(t, withKafka(rig.KafkaOptions{}))
}

func spoolLife(t *testing.T, kafka func(*lab)) {
	l := newLab(t, kafka).consume(4)
	const rate = 2000
	dir, env := l.spoolDir("a")
	a := l.start("a", env...)
	a.role(control.RoleActive)
	l.unpaused(a)
	r := l.numbered(rate, a)
	l.more(rate)

	l.must(l.kafka.Away(t.Context(), true))
	a.spooled(2 * rate)
	before, at := a.status().Spool.Messages, time.Now()
	l.must(a.Kill())
	// What came in the last tenth of a second was not on disk yet.
	late := uint64((500*time.Millisecond + machine.Lost(at.Add(-2*time.Second), time.Now())).Seconds() * rate)
	l.must(a.Restart(t.Context()))
	s := a.status()
	if s.Spool.Recovered+late < before || s.Spool.Recovered == 0 {
		t.Errorf("%d messages were found on disk of %d, want all but %d", s.Spool.Recovered, before, late)
	}
	recovered := int(s.Spool.Recovered)
	if recovered > 0 {
		if o := l.command("status", "--socket", a.socket); !strings.Contains(o.out, "recovered") {
			t.Errorf("status does not say what was recovered:\n%s", o.out)
		}
	}
	a.spooled(uint64(recovered) + 2*rate)

	l.must(l.kafka.Away(l.within(time.Minute), false))
	l.more(recovered)
	repeats := l.complete(r)
	// The router says its whole table again after the kill: what was on disk is
	// what comes twice, but for the opening of the session and the Peer Ups.
	if repeats < recovered-20 {
		t.Errorf("%d records came twice, want those of the %d messages found on disk", repeats, recovered)
	}
	a.spoolGone(dir)
	records, err := rig.ReadTopic(l.within(20*time.Second), l.kafka.Brokers(), l.name, l.kafka.Client()...)
	l.must(err)
	// Only a sink that never went back leaves the order for all to see.
	if st := a.status(); st.Routers[0].Rollbacks == 0 && st.RoleChanges[control.RoleActive] == 1 {
		l.must(inOrder(records))
	}
	t.Run("numbers of sessions", func(t *testing.T) {
		if err := onePort(records); err != nil {
			t.Error(err)
		}
	})
	t.Logf("found %d messages on disk; %d records came twice", recovered, repeats)
	l.must(a.Stop())
}

// TestSpoolPair: both collectors of a pair have filled their disks' share, and the
// active one is killed.
func TestSpoolPair(t *testing.T) {
	t.Parallel()
	l := newLab(t, withEmbeddedKafka).consume(4)
	const rate = 2000
	dirA, env := l.spoolDir("a")
	a := l.start("a", env...)
	a.role(control.RoleActive)
	dirB, env := l.spoolDir("b")
	b := l.start("b", env...)
	b.role(control.RoleStandby)
	l.unpaused(a)
	l.unpaused(b)
	r := l.numbered(rate, a, b)
	l.more(rate)

	l.must(l.kafka.Away(t.Context(), true))
	a.spooled(rate)
	b.spooled(rate)
	begin := time.Now()
	l.must(a.Kill())
	b.role(control.RoleActive)
	b.spooled(3 * rate)
	l.must(l.kafka.Away(l.within(time.Minute), false))
	b.spoolGone(dirB)
	// What a had on disk, b has sent: a finds that out and lets it go.
	l.must(a.Restart(t.Context()))
	a.role(control.RoleStandby)
	if n := a.status().Spool.Recovered; n < rate/2 {
		t.Errorf("a found %d messages on disk, want at least %d", n, rate/2)
	}
	l.more(rate)
	a.spoolGone(dirA)
	l.repeated("kill", rate, l.complete(r), mostRepeated, begin)
}

// TestSpoolIntake: pmacct's producer goes on as if nothing were while Kafka is
// away, without a relay that could be slowed.
func TestSpoolIntake(t *testing.T) { spoolIntake(t, withEmbeddedKafka, 4*time.Second) }

// TestLongSpoolIntake is that with Kafka away for longer than a producer is
// patient.
func TestLongSpoolIntake(t *testing.T) {
	long(t)
	spoolIntake(t, withKafka(rig.KafkaOptions{}), 20*time.Second)
}

func spoolIntake(t *testing.T, kafka func(*lab), away time.Duration) {
	rig.Require(t, rig.PmbmpdPart)
	t.Parallel()
	l := newLab(t, kafka).consume(4)
	const rate = 1000
	port, err := rig.FreePort("")
	l.must(err)
	intake := "127.0.0.1:" + strconv.Itoa(port)
	d, err := rig.StartPmbmpd(l.within(30*time.Second), rig.PmbmpdOptions{
		Kafka: intake, Topic: l.name, Config: []string{"bmp_daemon_msglog_kafka_partition_key: $bmp_router"},
	})
	l.must(err)
	t.Cleanup(func() { l.must(d.Close()) })
	dir, env := l.spoolDir("a")
	a := l.start("a", append(env, "BMPHA_INTAKE_LISTEN="+intake)...)
	a.role(control.RoleActive)
	l.unpaused(a)
	r := l.numberedTo(rate, d.Addr())
	l.more(rate)

	l.must(l.kafka.Away(t.Context(), true))
	over := time.Now().Add(away)
	a.spooled(rate)
	l.untilWithin(2*away, "Kafka's absence", func() error {
		if left := time.Until(over); left > 0 {
			return fmt.Errorf("%s to go", left)
		}
		return nil
	})
	s := a.status()
	if len(s.Intake.Producers) != 1 || s.Intake.Refused != 0 {
		t.Errorf("producers: %+v", s.Intake)
	}
	t.Logf("after %s: %d messages on disk, %d bytes", away, s.Spool.Messages, s.Spool.Used)
	l.must(l.kafka.Away(l.within(time.Minute), false))
	l.more(int(s.Spool.Messages))
	if n := l.complete(r); n != 0 {
		l.errorf("%d records repeated", n)
	}
	a.spoolGone(dir)
	l.unharmed(d)
}

// numberedTo is numbered for a router that speaks to something else than a
// collector.
func (l *lab) numberedTo(rate float64, to ...string) *replay.Router {
	l.t.Helper()
	return l.router(replay.Config{Stream: l.stream(replay.Synthetic{Numbered: true}), Rate: rate, To: to})
}

// unharmed looks for what pmacct says when it throws records away.
func (l *lab) unharmed(d *rig.Pmbmpd) {
	l.t.Helper()
	text, err := os.ReadFile(d.LogFile())
	l.must(err)
	for _, bad := range []string{"Connection failed", "Queue full", "timed out", "produce to topic", "unable to get kafka_host"} {
		if strings.Contains(strings.ToLower(string(text)), strings.ToLower(bad)) {
			l.t.Errorf("pmacct's log says %q:\n%s", bad, text)
			return
		}
	}
}

// TestSpoolUnusable: a collector whose spool cannot be had does not start, and says
// why.
func TestSpoolUnusable(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	dir, env := l.spoolDir("a")
	a := l.start("a", env...)

	file := filepath.Join(t.TempDir(), "file")
	l.must(os.WriteFile(file, nil, 0o600))
	cases := []struct{ name, dir, want string }{
		{"a file is in the way", filepath.Join(file, "spool"), file + ": not a directory"},
		{"used by another process", dir, fmt.Sprintf("%s is in use by process %d", dir, a.PID())},
		{"of a file system that takes no files", "/proc/bmpha", "/proc/bmpha: no such file or directory"},
	}
	if os.Getuid() != 0 { // root may write everywhere
		closed := filepath.Join(t.TempDir(), "closed")
		l.must(os.Mkdir(closed, 0o500))
		cases = append(cases, struct{ name, dir, want string }{"not writable", closed, "permission denied"})
	}
	for _, c := range cases {
		_, err := l.tryStart("b", "b", "BMPHA_SPOOL_DIR="+c.dir)
		if err == nil {
			t.Errorf("%s: it has started", c.name)
		} else if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "exit status 1") {
			t.Errorf("%s: %v\nwant %q", c.name, err, c.want)
		}
	}
	if s := a.status(); s.Spool.Error != "" {
		t.Errorf("the spool of the first: %+v", s.Spool)
	}
	// The lock goes with its process, however that ends.
	l.must(a.Kill())
	b := l.start("b", env...)
	l.must(b.Stop())
}

// TestSpoolFull: when the disk has no room either, the router waits, and nothing
// is lost.
func TestSpoolFull(t *testing.T) {
	t.Parallel()
	l := newLab(t, withEmbeddedKafka).consume(1)
	dir, env := l.spoolDir("a")
	a := l.start("a", append(env, "BMPHA_SPOOL_MAX_BYTES=64MiB")...)
	a.role(control.RoleActive)
	first := l.dial(a, "127.0.6.1")
	first.send(smallOpening(), smallRoute(1, true))
	l.until("the first route", func() error { return l.has("127.0.6.1", 1) })
	l.must(l.kafka.Away(t.Context(), true))

	// Messages that fill the disk and make no record, until the router has to wait.
	filler := mirrored(60_000)
	var said atomic.Int64
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				first.send(smallRoute(2, true))
				return
			default:
			}
			first.send(filler)
			said.Add(1)
		}
	}()
	a.problem("spool_full")
	a.problem("routers_paused")
	before, since := said.Load(), time.Now()
	l.until("the router waits", func() error {
		if n := said.Load(); n != before {
			before, since = n, time.Now()
		}
		if still := time.Since(since); still < 300*time.Millisecond {
			return fmt.Errorf("the last of %d messages was taken %s ago", before, still)
		}
		return nil
	})
	if o := l.command("status", "--socket", a.socket); o.code != control.ExitDegraded || !strings.Contains(o.out, "the spool is full") {
		t.Errorf("status: exit code %d\n%s", o.code, o.out)
	}
	s := a.status()
	if s.Spool.Used > s.Spool.Limit || s.Hold.Dropped["full"] != 0 {
		t.Errorf("spool %+v, dropped %v", s.Spool, s.Hold.Dropped)
	}
	// Another router is not heard until there is room, and then it is.
	second := l.dial(a, "127.0.6.2")
	second.send(smallOpening(), smallRoute(7, true))

	close(stop)
	l.must(l.kafka.Away(l.within(time.Minute), false))
	l.until("the routes of both routers", func() error {
		if err := l.has("127.0.6.1", 1, 2); err != nil {
			return err
		}
		return l.has("127.0.6.2", 7)
	})
	<-done
	a.spoolGone(dir)
	a.seen("every message was taken", func(s *control.Status) error {
		for _, r := range s.Routers {
			want := uint64(said.Load()) + 4 // Initiation, Peer Up, two routes
			if r.Identity == "127.0.6.1" && r.Messages != want {
				return fmt.Errorf("%d messages of %d", r.Messages, want)
			}
		}
		for _, p := range s.Problems {
			if p.Code == "spool_full" || p.Code == "routers_paused" || p.Code == "hold_dropped" {
				return fmt.Errorf("%v", p)
			}
		}
		return nil
	})
	first.close()
	second.close()
}

// mirrored is a Route Mirroring message of so many bytes, of which no record is
// made.
func mirrored(size int) []byte {
	m := bmp.AppendHeader(nil, bmp.TypeRouteMirroring)
	m = append(m, smallPeer...)
	m = binary.BigEndian.AppendUint16(m, 0)
	m = binary.BigEndian.AppendUint16(m, uint16(size))
	return bmp.AppendLength(append(m, make([]byte, size)...), 0)
}

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
)

// A lab is a cluster of collectors, each a process of the binary, between routers
// and a topic that is read all the time.
type lab struct {
	t     *testing.T
	redis rig.Redis
	kafka rig.Kafka
	name  string // of the cluster and of the topic
	tally *tally
	slow  bool // the default timers
	links bool
	env   []string
	where string    // Redis, as in the configuration; "": its address
	view  []kgo.Opt // what the consumer of the topic sees
	began time.Time

	members []*member
}

var labs atomic.Int64

// newLab makes a lab. Without a Redis or a Kafka of its own it uses the common
// one.
func newLab(t *testing.T, change ...func(*lab)) *lab {
	t.Helper()
	l := &lab{t: t, name: fmt.Sprintf("lab%d", labs.Add(1)), tally: newTally(), began: time.Now()}
	for _, f := range change {
		f(l)
	}
	var err error
	if l.redis == nil && l.where == "" {
		l.redis, err = commonRedis()
		l.must(err)
	}
	if l.kafka == nil {
		l.kafka, err = commonKafka()
		l.must(err)
	}
	return l
}

// consume makes the topic and reads it until the test ends.
func (l *lab) consume(partitions int, config ...string) *lab {
	l.t.Helper()
	l.must(l.kafka.CreateTopic(l.within(30*time.Second), l.name, partitions, config...))
	sub, err := rig.ConsumeEach(context.Background(), l.kafka.Brokers(), l.name, l.tally.record, append(l.kafka.Client(), l.view...)...)
	l.must(err)
	l.t.Cleanup(func() {
		sub.Close()
		for _, f := range l.tally.ends() {
			l.t.Error(f)
		}
	})
	return l
}

// fastExpiry and fastHeartbeat are those of tests that are not about the default
// timers: with many heartbeats in an expiry that is long enough that nobody is taken
// for dead because the machine stands still for a second or two.
const (
	fastExpiry    = 3 * time.Second
	fastHeartbeat = 200 * time.Millisecond
)

// Those of withDefaultTimers.
const (
	slowExpiry    = 2 * time.Second
	slowHeartbeat = time.Second
)

func (l *lab) timers() (heartbeat, expiry time.Duration) {
	if l.slow {
		return slowHeartbeat, slowExpiry
	}
	return fastHeartbeat, fastExpiry
}

// stalled says what stood still, if anything did for a time that is long for the
// timers: who stands still for as long may rightly be replaced, and then other roles
// than planned, and some repeats, are no fault. A collector that was starved alone says
// so itself.
func (l *lab) stalled() (string, bool) {
	heartbeat, expiry := l.timers()
	if d := machine.Longest(l.began, time.Now()); d > (expiry-heartbeat)/2 {
		return fmt.Sprintf("the machine stood still for %s", d.Round(time.Millisecond)), true
	}
	for _, m := range l.members {
		text, _ := os.ReadFile(m.log) // what cannot be read says nothing
		if n := bytes.Count(text, []byte("the process stood still past its expiry")); n > m.pauses {
			return m.name + " says that it stood still past its expiry", true
		}
	}
	return "", false
}

// errorf is Errorf for what holds only as long as nobody has reason to take over.
func (l *lab) errorf(format string, args ...any) {
	l.t.Helper()
	if why, long := l.stalled(); long {
		l.t.Logf("%s, so this is not judged: %s", why, fmt.Sprintf(format, args...))
		return
	}
	l.t.Errorf(format, args...)
}

// withDefaultTimers is for tests that are about them. The others are faster.
func withDefaultTimers(l *lab) { l.slow = true }

// withKafka gives a lab an own Kafka, real if there is one.
func withKafka(o rig.KafkaOptions) func(*lab) {
	return func(l *lab) {
		l.t.Helper()
		k, err := rig.StartKafka(l.within(time.Minute), o)
		l.must(err)
		l.t.Cleanup(func() { l.must(k.Close()) })
		l.kafka = k
	}
}

// withRedis gives a lab an own Redis, real if there is one.
func withRedis(o rig.RedisOptions) func(*lab) {
	return func(l *lab) {
		l.t.Helper()
		r, err := rig.StartRedis(l.within(30*time.Second), o)
		l.must(err)
		l.t.Cleanup(func() { l.must(r.Close()) })
		l.redis = r
	}
}

// withLinks has the collectors hear each other directly.
func withLinks(l *lab) { l.links = true }

// with sets keys of the configuration for all collectors, as the environment does.
func with(env ...string) func(*lab) {
	return func(l *lab) { l.env = append(l.env, env...) }
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// judge is must for what waits in vain if somebody else has taken over.
func (l *lab) judge(err error) {
	l.t.Helper()
	if err == nil {
		return
	}
	if why, long := l.stalled(); long {
		l.t.Skipf("%s, so this is not judged: %v", why, err)
	}
	l.t.Fatal(err)
}

// patience is how many times longer a wait may last than on a machine with time. No
// bound that is promised is measured so.
const patience = 3

// within bounds a wait, with room for a slow machine.
func (l *lab) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(l.t.Context(), patience*d)
	l.t.Cleanup(cancel)
	return ctx
}

// until waits for a condition.
func (l *lab) until(what string, cond func() error) {
	l.t.Helper()
	l.untilWithin(30*time.Second, what, cond)
}

func (l *lab) untilWithin(d time.Duration, what string, cond func() error) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), patience*d)
	defer cancel()
	if err := rig.WaitFor(ctx, cond); err != nil {
		l.judge(fmt.Errorf("%s: %w", what, err))
	}
}

// A member is one collector process.
type member struct {
	*rig.Process
	l      *lab
	name   string
	listen string
	socket string
	file   string // configuration
	log    string
	client *control.Client
	pauses int // by the test
}

// Pause makes the collector stand still.
func (m *member) Pause() error {
	m.pauses++
	return m.Process.Pause()
}

// start runs a collector and returns when it answers on its socket. Env are keys
// of the configuration, as in BMPHA_HOLD_MEMORY=1MiB, and other variables.
func (l *lab) start(name string, env ...string) *member {
	l.t.Helper()
	m, err := l.tryStart(name, name, env...)
	l.must(err)
	return m
}

// tryStart is start with a process name that another may have, too.
func (l *lab) tryStart(process, name string, env ...string) (*member, error) {
	l.t.Helper()
	// The path of a Unix socket has 107 bytes at most, too few for t.TempDir.
	dir, err := os.MkdirTemp(scratch, "m")
	l.must(err)
	port, err := rig.FreePort("")
	l.must(err)
	m := &member{
		l: l, name: name, listen: "127.0.0.1:" + strconv.Itoa(port), socket: filepath.Join(dir, "s"),
		file: filepath.Join(dir, "bmpha.yaml"), log: filepath.Join(dir, "log"),
	}
	heartbeat, expiry := l.timers()
	where := l.where
	if where == "" {
		where = fmt.Sprintf("address: %q", l.redis.Addr())
	}
	if l.links {
		port, err := rig.FreePort("")
		l.must(err)
		env = append([]string{"BMPHA_LINK_LISTEN=127.0.0.1:" + strconv.Itoa(port), "BMPHA_LINK_SECRET=a long word between us"}, env...)
	}
	text := fmt.Sprintf(`process: %s
cluster: {name: %s}
listen: {address: %q}
redis: {%s, heartbeat: %s, expiry: %s}
hold: {memory: 256MiB}
kafka:
  brokers: %q
  topic: %s
  dead_letter: %s
control: {socket: %s}
`, process, l.name, m.listen, where, heartbeat, expiry, l.kafka.Brokers(), l.name, filepath.Join(dir, "dead"), m.socket)
	l.must(os.WriteFile(m.file, []byte(text), 0o600))
	m.client = control.NewClient(m.socket)
	l.t.Cleanup(m.client.Close)
	m.Process, err = rig.Start(l.t.Context(), rig.Command{
		Name: name, Path: program(l.t), Args: []string{"run", "-c", m.file}, Log: m.log,
		Grace: patience * 30 * time.Second, ReadyWithin: patience * 30 * time.Second,
		Env: append(append([]string{"GORACE=exitcode=66 halt_on_error=1 atexit_sleep_ms=0"}, l.env...), env...),
		Ready: func() error {
			_, err := m.client.Status(l.t.Context())
			return err
		},
	})
	l.t.Cleanup(func() { m.end() })
	if err != nil {
		return nil, err
	}
	l.members = append(l.members, m)
	return m, nil
}

// end stops what still runs and looks for what no log may have.
func (m *member) end() {
	t := m.l.t
	if m.Process != nil {
		m.Process.Kill()
	}
	b, err := os.ReadFile(m.log)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	for _, bad := range []string{"panic:", "DATA RACE", "fatal error:"} {
		if bytes.Contains(b, []byte(bad)) {
			t.Errorf("%s: %s in its log", m.name, bad)
		}
	}
	if t.Failed() || t.Skipped() {
		t.Logf("log of %s:\n%s", m.name, b[max(0, len(b)-60000):])
	}
}

// status asks the collector over its socket.
func (m *member) status() *control.Status {
	m.l.t.Helper()
	var s *control.Status
	m.l.until("status of "+m.name, func() (err error) {
		s, err = m.client.Status(m.l.t.Context())
		return err
	})
	return s
}

func (m *member) instance() uint64 {
	m.l.t.Helper()
	n, err := strconv.ParseUint(m.status().Instance, 16, 64)
	m.l.must(err)
	return n
}

// role waits until the collector has a role.
func (m *member) role(want string) {
	m.l.t.Helper()
	m.seen("role", func(s *control.Status) error {
		if s.Role != want {
			return fmt.Errorf("%s is %s (%s), want %s", m.name, s.Role, s.Reason, want)
		}
		return nil
	})
}

// seen waits until the status is as it should be.
func (m *member) seen(what string, cond func(*control.Status) error) {
	m.l.t.Helper()
	m.l.until(what, func() error {
		s, err := m.client.Status(m.l.t.Context())
		if err != nil {
			return err
		}
		return cond(s)
	})
}

// problem waits until the status tells of a problem.
func (m *member) problem(code string) {
	m.l.t.Helper()
	m.seen("problem "+code, func(s *control.Status) error {
		for _, p := range s.Problems {
			if p.Code == code {
				return nil
			}
		}
		return fmt.Errorf("%s has problems %v, want %s", m.name, s.Problems, code)
	})
}

// cluster starts two or more collectors, the first of them active.
func (l *lab) cluster(names ...string) []*member {
	l.t.Helper()
	var ms []*member
	for i, name := range names {
		m := l.start(name)
		if i == 0 {
			m.role(control.RoleActive)
		} else {
			m.role(control.RoleStandby)
		}
		ms = append(ms, m)
	}
	return ms
}

// byAge waits until the oldest of members is active, and returns them in the order in
// which they are to take over. On a busy machine that is not always the one in which
// they were started.
func (l *lab) byAge(ms ...*member) []*member {
	l.t.Helper()
	order := slices.Clone(ms)
	l.until("the oldest is active", func() error {
		s, err := ms[0].client.Status(l.t.Context())
		if err != nil {
			return err
		}
		age := make(map[string]uint64)
		for _, m := range s.Members {
			age[m.Name] = m.Timestamp
		}
		for _, m := range ms {
			if age[m.name] == 0 {
				return fmt.Errorf("%s is not among %+v", m.name, s.Members)
			}
		}
		slices.SortFunc(order, func(x, y *member) int { return cmp.Compare(age[x.name], age[y.name]) })
		if s, err = order[0].client.Status(l.t.Context()); err == nil && s.Role != control.RoleActive {
			err = fmt.Errorf("%s is %s (%s)", order[0].name, s.Role, s.Reason)
		}
		return err
	})
	return order
}

// An outcome is how a command ended.
type outcome struct {
	code        int
	out, errOut string
}

// command runs the binary to its end.
func (l *lab) command(args ...string) outcome {
	l.t.Helper()
	cmd := exec.CommandContext(l.within(time.Minute), program(l.t), args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		l.t.Fatalf("bmpha %s: %v", strings.Join(args, " "), err)
	}
	return outcome{cmd.ProcessState.ExitCode(), out.String(), errOut.String()}
}

// says runs a command until it ends with a code and says something: what it tells of is
// so in the end, but may be behind, and a busy machine has its passing notices.
func (l *lab) says(code int, what string, args ...string) {
	l.t.Helper()
	l.until("bmpha "+strings.Join(args, " "), func() error {
		if o := l.command(args...); o.code != code || !strings.Contains(o.out, what) {
			return fmt.Errorf("exit code %d, want %d and %q:\n%s%s", o.code, code, what, o.out, o.errOut)
		}
		return nil
	})
}

// router starts a router that speaks to members, at most rate messages a second.
func (l *lab) router(c replay.Config, members ...*member) *replay.Router {
	l.t.Helper()
	for _, m := range members {
		c.To = append(c.To, m.listen)
	}
	r, err := replay.NewRouter(c)
	l.must(err)
	r.Start()
	l.t.Cleanup(func() { l.stop(r) })
	l.until("sessions", func() error {
		for _, to := range r.Counters().Collectors {
			if !to.Connected {
				return fmt.Errorf("no session to %s: %s", to.Address, to.LastError)
			}
		}
		return nil
	})
	return r
}

func (l *lab) stop(r *replay.Router) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	// Collectors that were killed take no Termination.
	_ = r.Stop(ctx, replay.Abort)
}

// stream makes up a router's stream.
func (l *lab) stream(s replay.Synthetic) replay.Stream {
	l.t.Helper()
	stream, err := s.Stream()
	l.must(err)
	return stream
}

// numbered is a router whose every message is one new, numbered route.
func (l *lab) numbered(rate float64, members ...*member) *replay.Router {
	l.t.Helper()
	return l.router(replay.Config{Stream: l.stream(replay.Synthetic{Numbered: true}), Rate: rate}, members...)
}

// more waits until so many records that are sent from now on are in Kafka. What was
// sent before, and is still to be read here, does not count.
func (l *lab) more(n int) {
	l.t.Helper()
	now := time.Now()
	got, next := 0, 0
	l.until("records", func() error {
		some := 0
		some, next = l.tally.since(now, next)
		if got += some; got < n {
			return fmt.Errorf("%d records in Kafka, want %d", got, n)
		}
		return nil
	})
}

// complete stops a numbered router, waits until all that it said is in Kafka, and
// returns how many records came again. The tables are then equal.
func (l *lab) complete(r *replay.Router) (repeats int) {
	l.t.Helper()
	r.Pause(true)
	l.same(r)
	routes, repeats := l.tally.numbered()
	if want := len(r.Table()); routes != want {
		l.t.Errorf("%d numbers in Kafka, want %d", routes, want)
	}
	return repeats
}

// same waits until the table in Kafka is the router's.
func (l *lab) same(routers ...*replay.Router) {
	l.t.Helper()
	l.settle(routers, func(table map[replay.Key]string) error {
		if d := replay.Compare(table, l.tally.routes()); !d.Empty() {
			return errors.New(d.String())
		}
		return nil
	})
}

// settle lets routers be silent and waits until compare finds no difference between
// what they have and Kafka. It looks when no other record has come for a moment: to
// look costs more than to read.
func (l *lab) settle(routers []*replay.Router, compare func(map[replay.Key]string) error) {
	l.t.Helper()
	const moment = 50 * time.Millisecond
	fleet := replay.Fleet(routers)
	fleet.Pause(true)
	seen, looked, since := -1, -1, time.Now()
	last := errors.New("records come all the time")
	l.untilWithin(time.Minute, "table in Kafka", func() error {
		if n := l.tally.Count(); n != seen {
			seen, since = n, time.Now()
		} else if n != looked && time.Since(since) >= moment {
			looked, last = n, compare(fleet.Table())
		}
		return last
	})
}

// sameByToken is same after collectors that stood still: what one had given to the
// Kafka library goes out when it wakes up, behind what its successor has sent. A
// consumer that goes by the tokens has the router's table all the same.
func (l *lab) sameByToken(routers ...*replay.Router) {
	l.t.Helper()
	l.settle(routers, func(table map[replay.Key]string) error {
		late := replay.Compare(table, l.tally.routes())
		if late.Empty() {
			return nil
		}
		if d := replay.Compare(table, l.tally.fencedRoutes()); !d.Empty() {
			return fmt.Errorf("%v\nby the tokens: %v", late, d)
		}
		l.t.Logf("late words of collectors that stood still: %v", late)
		return nil
	})
}

// sameRouter is same for one router among others.
func (l *lab) sameRouter(r *replay.Router, address string) {
	l.t.Helper()
	r.Pause(true)
	l.untilWithin(time.Minute, "table of "+address+" in Kafka", func() error {
		if d := replay.Compare(r.Table(), l.tally.routesOf(address)); !d.Empty() {
			return errors.New(d.String())
		}
		return nil
	})
}

// parseStatus reads what `bmpha status --json` printed.
func (l *lab) parseStatus(o outcome) *control.Status {
	l.t.Helper()
	var s control.Status
	if err := json.Unmarshal([]byte(o.out), &s); err != nil {
		l.t.Fatalf("status --json (exit code %d, %s): %v\n%s", o.code, o.errOut, err, o.out)
	}
	return &s
}

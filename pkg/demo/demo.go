// Package demo shows bmpha at work on one machine: an embedded Redis and an
// embedded Kafka in this process, three collectors as processes of their own, and
// two routers that replay captured BMP to all three. It walks through the life of
// the cluster, step by step, and counts what arrives in Kafka.
//
// What it promises:
//
//   - It counts soundly. Each message that a router plays has a timestamp of its
//     own, so each route record in Kafka is one that a router has sent, or is not.
//     What a router has sent and Kafka has not is lost, whatever was going on. And
//     at the end, when the routers are quiet, the table that a consumer builds
//     from Kafka must be the routers' table, as package replay's own reading of
//     BMP knows it.
//   - It waits for conditions. The least time that a step takes is for the people
//     who look on.
//   - It leaves nothing behind: however Run ends, its processes are gone, and its
//     temporary folder too unless it is to be kept. The collectors also end when
//     the demo is killed.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bmpha/bmpha/pkg/capture"
	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
)

const (
	topic       = "demo.bmp"
	clusterName = "demo"
)

// Options are what a demo is made of. Binary is needed.
type Options struct {
	// Binary is the bmpha to run collectors with; Command is how to call it in
	// what people are told to type, Binary if empty.
	Binary, Command string
	// Rate is the BMP messages per second of both routers together; 0 means 3000.
	Rate float64
	// Heartbeat and Expiry are the timers of the election, Margin what the
	// collectors keep beyond what Kafka is known to have; 0 means the defaults of
	// bmpha: 1 s, 2 s and 1 s.
	Heartbeat, Expiry, Margin time.Duration
	// Look is the least time that each step takes, and how long an outage
	// lasts; 0 means 5 s.
	Look time.Duration
	// Patience is the most that a condition is waited for; 0 means 20 s.
	Patience time.Duration
	// Keep leaves the temporary folder, with configurations and logs.
	Keep bool

	// Out takes the events, a line each, or the live timeline; nil for neither.
	Out io.Writer
	// Size returns columns and lines of the terminal that Out is; nil says that it
	// is none, or one that cannot be drawn on.
	Size func() (columns, lines int)
	// Style is how the timeline is drawn.
	Style Style
}

// A scene is everything that a demo has running.
type scene struct {
	o        Options
	dir      string
	began    time.Time
	redis    *rig.EmbeddedRedis
	kafka    *rig.EmbeddedKafka
	sub      *rig.Consumer
	members  []*member
	routers  []*router
	open     openings
	out      output
	stopPoll func() // waits until no collector is being asked

	mu       sync.Mutex
	broken   error // the accounting cannot go on
	current  int   // step
	ledger   *ledger
	gaps     gapMeter
	table    replay.Consumer
	who      succession
	others   map[string]int // "B for frr": senders of single routers in this step, and how often seen
	actives  []string       // per step that has ended: who was active
	view     view
	changed  chan struct{} // closed and made anew with each view
	samples  []sample
	events   []event
	redisUp  bool
	kafkaUp  bool
	names    []string // of the steps
	finished bool
}

// A member is a collector.
type member struct {
	name, addr, socket, log string
	proc                    *rig.Process
	client                  *control.Client
}

// A router is a replayed one.
type router struct {
	*replay.Router
	name string
	addr netip.Addr
}

// A view is what all collectors said at about one moment; who is not running, or
// does not answer, is not in it.
type view struct {
	at     time.Time
	status map[string]*control.Status
}

// role returns a collector's role, "" if it does not answer.
func (v view) role(name string) string {
	if st := v.status[name]; st != nil {
		return st.Role
	}
	return ""
}

// active names those that are active, as in "A+B".
func (v view) active(members []*member) string {
	var names []string
	for _, m := range members {
		if v.role(m.name) == control.RoleActive {
			names = append(names, m.name)
		}
	}
	return strings.Join(names, "+")
}

// An event is something to tell people.
type event struct {
	at   time.Duration // since the beginning
	text string
}

// Run runs the demo to its end, or until ctx ends. The report tells what was found;
// it is nil only when the demo could not begin. An error means that something did
// not happen that should have; what was lost is no error but said by the report.
func Run(ctx context.Context, o Options) (*Report, error) {
	if o.Rate == 0 {
		o.Rate = 3000
	}
	if !(o.Rate > 0) {
		return nil, fmt.Errorf("%v messages per second", o.Rate)
	}
	for _, d := range []struct {
		of  *time.Duration
		def time.Duration
	}{
		{&o.Heartbeat, time.Second}, {&o.Expiry, 2 * time.Second}, {&o.Margin, time.Second},
		{&o.Look, 5 * time.Second}, {&o.Patience, 20 * time.Second},
	} {
		if *d.of == 0 {
			*d.of = d.def
		}
	}
	if o.Command == "" {
		o.Command = o.Binary
	}
	s := &scene{o: o, began: time.Now(), ledger: newLedger(), others: make(map[string]int), changed: make(chan struct{})}
	s.out.begin(s)
	err := s.setUp(ctx)
	started := err == nil
	if started {
		err = s.play(ctx)
	}
	var r *Report
	if started {
		r = s.report()
	}
	// In good order where all went well, at once where not.
	downErr := s.tearDown(err == nil)
	s.out.end()
	return r, errors.Join(err, downErr)
}

// setUp starts everything. What it has started when it fails is for tearDown.
func (s *scene) setUp(ctx context.Context) (err error) {
	if s.dir, err = makeDir(); err != nil {
		return err
	}
	s.tell("logs and configurations in %s", s.dir)
	if s.redis, err = rig.StartEmbeddedRedis(rig.RedisOptions{}); err != nil {
		return err
	}
	if s.kafka, err = rig.StartEmbeddedKafka(ctx, rig.KafkaOptions{Topics: map[string]int{topic: 2}}); err != nil {
		return err
	}
	s.mu.Lock()
	s.redisUp, s.kafkaUp = true, true
	s.mu.Unlock()
	if s.sub, err = rig.ConsumeEach(context.WithoutCancel(ctx), s.kafka.Brokers(), topic, s.arrived); err != nil {
		return err
	}
	s.tell("embedded Redis at %s, embedded Kafka at %s (topic %s)", s.redis.Addr(), s.kafka.Brokers(), topic)
	var members []*member
	for _, name := range []string{"A", "B", "C"} {
		m, err := s.member(name)
		if err != nil {
			return err
		}
		members = append(members, m)
	}
	s.mu.Lock()
	s.members = members // and they stay
	s.mu.Unlock()
	s.startPoll()
	// One after the other, so that A is the oldest.
	for i, m := range s.members {
		if err := m.start(ctx, s.o); err != nil {
			return err
		}
		want := control.RoleStandby
		if i == 0 {
			want = control.RoleActive
		}
		if err := s.role(ctx, m, want); err != nil {
			return err
		}
		s.tell("%s runs (process %d): %s", m.name, m.proc.PID(), want)
	}
	s.tell("look from another shell:  %s", s.hint())
	s.tell("or, without a collector:  %s status --redis %s --cluster %s", s.o.Command, s.redis.Addr(), clusterName)
	return s.startRouters()
}

// hint is what to type in another shell.
func (s *scene) hint() string {
	return fmt.Sprintf("%s status --watch --socket %s", s.o.Command, s.members[0].socket)
}

// makeDir makes a folder whose path leaves room for the names of sockets, which
// the kernel bounds to 107 bytes.
func makeDir() (string, error) {
	dir, err := os.MkdirTemp("", "bmpha-demo-")
	if err == nil && len(dir) > 90 {
		if err := os.Remove(dir); err != nil {
			return "", fmt.Errorf("folder for the demo: %w", err)
		}
		dir, err = os.MkdirTemp("/tmp", "bmpha-demo-")
	}
	if err != nil {
		return "", fmt.Errorf("folder for the demo: %w", err)
	}
	return dir, nil
}

// member makes a collector's configuration.
func (s *scene) member(name string) (*member, error) {
	port, err := rig.FreePort("127.0.0.1")
	if err != nil {
		return nil, fmt.Errorf("collector %s: %w", name, err)
	}
	base := filepath.Join(s.dir, strings.ToLower(name))
	m := &member{
		name: name, addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)),
		socket: base + ".sock", log: base + ".log",
	}
	m.client = control.NewClient(m.socket)
	config := fmt.Sprintf(`# collector %s of the demo
process: %[1]s
cluster: {name: %s}
listen: {address: %q}
redis: {address: %q, heartbeat: %s, expiry: %s}
hold: {memory: 256MiB, margin: %s}
kafka: {brokers: %q, topic: %s, dead_letter: %q}
output: {timestamps: epoch}
control: {socket: %q}
`, name, clusterName, m.addr, s.redis.Addr(), s.o.Heartbeat, s.o.Expiry, s.o.Margin,
		s.kafka.Brokers(), topic, base+".dead", m.socket)
	if err := os.WriteFile(base+".yaml", []byte(config), 0o600); err != nil {
		return nil, fmt.Errorf("configuration of collector %s: %w", name, err)
	}
	return m, nil
}

// start runs the collector's process, for the first time or again.
func (m *member) start(ctx context.Context, o Options) (err error) {
	if m.proc != nil {
		return m.proc.Restart(ctx)
	}
	var env []string
	for _, kv := range os.Environ() {
		// Settings of another bmpha must not reach ours. Empty counts as unset.
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "BMPHA_") {
			env = append(env, name+"=")
		}
	}
	m.proc, err = rig.Start(ctx, rig.Command{
		Name: "collector " + m.name, Path: o.Binary, Env: env, Log: m.log, Grace: 10 * time.Second,
		Args: []string{"run", "-c", strings.TrimSuffix(m.socket, ".sock") + ".yaml"},
		Ready: func() error {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			_, err := m.client.Status(ctx)
			return err
		},
	})
	return err
}

func (s *scene) startRouters() error {
	var to []string
	for _, m := range s.members {
		to = append(to, m.addr)
	}
	var routers []*router
	for i, c := range []struct {
		name string
		data []byte
	}{{"frr", capture.FRR}, {"gobgp", capture.GoBGP}} {
		r := &router{name: c.name, addr: netip.AddrFrom4([4]byte{127, 0, 0, byte(2 + i)})}
		source, err := replay.NewCapture(c.data, true)
		if err != nil {
			return fmt.Errorf("capture of %s: %w", c.name, err)
		}
		stream, err := newStamped(source, r.addr, s.sent)
		if err != nil {
			return fmt.Errorf("router %s: %w", c.name, err)
		}
		r.Router, err = replay.NewRouter(replay.Config{
			Stream: stream, To: to, Source: r.addr, Rate: s.o.Rate / 2, Dial: s.open.dial(r.addr),
		})
		if err != nil {
			return fmt.Errorf("router %s: %w", c.name, err)
		}
		routers = append(routers, r)
	}
	s.mu.Lock()
	s.routers = routers // and they stay
	s.mu.Unlock()
	for _, r := range s.routers {
		s.tell("router %s (%s) replays to A, B and C", r.name, r.addr)
		r.Start()
	}
	return nil
}

// sent is called by the routers' streams.
func (s *scene) sent(ids []identity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, id := range ids {
		s.ledger.sent(s.current, now, id)
	}
}

// arrived is called by the consumer.
func (s *scene) arrived(rec rig.Record) {
	now := time.Now()
	r, ok, err := parseRoute(rec.Value)
	var id identity
	var dumped bool
	if err == nil && ok {
		if id, err = r.identity(); err == nil {
			var addr netip.Addr
			addr, err = netip.ParseAddr(r.Router)
			dumped = s.open.dumped(addr, r.Port, id.at)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		err = s.table.Record(rec.Value)
	}
	if err != nil {
		if s.broken == nil {
			s.broken = fmt.Errorf("from Kafka: %w", err)
		}
		return
	}
	if ok {
		s.ledger.arrived(s.current, id, dumped)
		s.gaps.arrived(s.current, r.Router, now)
	}
}

// tell says something to people.
func (s *scene) tell(format string, args ...any) {
	s.mu.Lock()
	e := event{time.Since(s.began), fmt.Sprintf(format, args...)}
	s.events = append(s.events, e)
	s.mu.Unlock()
	s.out.event(e)
}

// tearDown ends everything, in good order or at once.
func (s *scene) tearDown(order bool) error {
	var errs []error
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	how := replay.Abort
	if order {
		how = replay.Terminate
	}
	var all sync.WaitGroup
	for _, r := range s.routers {
		all.Go(func() { _ = r.Stop(ctx, how) }) // nothing that it has left is missed any more
	}
	all.Wait()
	if s.stopPoll != nil {
		s.stopPoll()
	}
	for _, m := range s.members {
		m.client.Close()
		if m.proc == nil {
			continue
		}
		all.Go(func() {
			if order {
				_ = m.proc.Stop() // never fails
			}
			_ = m.proc.Kill()
		})
	}
	all.Wait()
	if s.sub != nil {
		s.sub.Close()
	}
	if s.kafka != nil {
		errs = append(errs, s.kafka.Close())
	}
	if s.redis != nil {
		errs = append(errs, s.redis.Close())
	}
	if s.dir != "" {
		if s.o.Keep {
			s.tell("kept %s", s.dir)
		} else if err := os.RemoveAll(s.dir); err != nil {
			errs = append(errs, fmt.Errorf("folder of the demo: %w", err))
		}
	}
	return errors.Join(errs...)
}

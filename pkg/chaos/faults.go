package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
)

// size says how much there is of everything.
type size struct {
	Collectors int           `json:"collectors"`
	Generators int           `json:"generated_routers"`
	Peers      int           `json:"peers_of_each"`
	Prefixes   int           `json:"routes_of_each_peer"`
	Rate       int           `json:"messages_per_second"`
	Faults     int           `json:"faults"`
	Time       time.Duration `json:"-"`
	Seed       uint64        `json:"seed"`
}

// A trouble is a run under faults.
type trouble struct {
	*world
	size
	out        io.Writer // for what happens, as it happens
	reader     *reader
	generators []*generator
	real       []*realRouter
	began      time.Time
	strict     bool // what two senders left is a loss, too

	mu     sync.Mutex
	busy   map[*member]bool // hurt by a fault
	down   map[*member]bool // ended by one
	done   []*result
	failed []string
}

// A generator is a generated router with its ways to the collectors.
type generator struct {
	*replay.Router
	talk *talk
	name string // its address
	ways []*rig.Proxy
}

// A result is a fault and what came of it.
type result struct {
	fault
	Whom string `json:"whom,omitempty"` // the collector, the router
	Role string `json:"role,omitempty"` // of the collector, when it came
	Note string `json:"note,omitempty"` // what was drawn, and what did not go as it should
	Seen *tally `json:"seen"`
}

func (t *trouble) fail(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failed = append(t.failed, fmt.Sprintf(format, args...))
	fmt.Fprintf(t.out, "FAILED: "+format+"\n", args...)
}

// runFaults is the command.
func runFaults(ctx context.Context, args []string, out io.Writer) error {
	var o options
	s := size{Collectors: 3, Generators: 4, Peers: 4}
	f := flag.NewFlagSet("faults", flag.ContinueOnError)
	o.flags(f)
	f.DurationVar(&s.Time, "time", 10*time.Minute, "for how long faults come")
	f.IntVar(&s.Faults, "faults", 0, "`number` of faults (0: 20 a minute)")
	f.IntVar(&s.Rate, "rate", 5000, "`messages` a second of all generated routers together")
	f.IntVar(&s.Prefixes, "prefixes", 2000, "`routes` of each of the 16 peers of generated routers")
	f.Uint64Var(&s.Seed, "seed", 0, "`seed` of the schedule (0: the time)")
	var names []string
	for _, k := range kinds {
		names = append(names, k.name)
	}
	chosen := f.String("kinds", "", "only these `faults`: "+strings.Join(names, ", "))
	strict := f.Bool("strict", false, "fail also on what two senders left in Kafka while Redis could not be asked (redis_lost: hold has only one)")
	show := f.Bool("plan", false, "print the schedule and do nothing")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if s.Time < time.Second || s.Rate < s.Generators || s.Rate > 100_000 || s.Prefixes < window || s.Prefixes > 1<<16 || s.Faults < 0 {
		return fmt.Errorf("want -time of at least 1s, -rate from %d to 100000, -prefixes from %d to 65536", s.Generators, window)
	}
	if s.Seed == 0 {
		s.Seed = uint64(time.Now().UnixNano())
	}
	if s.Faults == 0 {
		s.Faults = max(1, int(s.Time.Minutes()*20))
	}
	of, err := chooseKinds(*chosen, o.links)
	if err != nil {
		return err
	}
	faults := plan(s.Seed, s.Time, s.Faults, of)
	if *show {
		g := grid{columns: []string{"", "s", "fault", "lasts s", "for the active"}}
		for _, f := range faults {
			g.row(count(f.N), f.At.String(), f.Kind, f.Lasts.String(), fmt.Sprint(f.Active))
		}
		g.write(out)
		return nil
	}
	if err := o.check(); err != nil {
		return err
	}
	if err := requireParts(rig.RedisServerPart, rig.KafkaPart, rig.FRRPart, rig.GoBGPPart); err != nil {
		return err
	}
	report := &faultsReport{heading: newHeading("faults", append(args, fmt.Sprintf("-seed %d", s.Seed)), &o), size: s, Minutes: s.Time.Minutes()}
	report.heading.write(out)
	fmt.Fprintf(out, "  seed %d: %d faults in %s\n", s.Seed, len(faults), s.Time)
	if err := suffer(ctx, &o, s, faults, *strict, report); err != nil {
		return err
	}
	report.write(out)
	if err := save(o.json, report); err != nil {
		return err
	}
	return report.verdict()
}

// suffer runs all of it.
func suffer(ctx context.Context, o *options, s size, faults []fault, strict bool, report *faultsReport) (err error) {
	t := &trouble{
		world: &world{o: o, cluster: "chaos", dumps: "chaos.dump"}, size: s, out: os.Stderr, strict: strict,
		busy: make(map[*member]bool), down: make(map[*member]bool),
	}
	if t.dir, err = os.MkdirTemp("", "bmpha-"); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	defer os.RemoveAll(t.dir)
	if t.redis, err = rig.StartRedisServer(ctx, rig.RedisOptions{}); err != nil {
		return err
	}
	defer t.redis.Close()
	if t.kafka, err = rig.StartKafkaServer(ctx, rig.KafkaOptions{Paths: s.Collectors, Topics: map[string]int{t.cluster: 4, t.dumps: 1}}); err != nil {
		return err
	}
	defer t.kafka.Close()
	defer func() { err = errors.Join(err, t.close()) }()
	for i := range s.Collectors {
		m, err := t.start(ctx, string(rune('a'+i)), true)
		if err != nil {
			return err
		}
		role := control.RoleStandby
		if i == 0 {
			role = control.RoleActive
		}
		if err := m.role(ctx, role); err != nil {
			return err
		}
	}
	t.reader = newReader(medOf)
	t.reader.tables = true
	consumer, err := rig.ConsumeEach(ctx, t.kafka.Brokers(), t.cluster, t.reader.take, committed)
	if err != nil {
		return err
	}
	defer consumer.Close()
	defer t.silence(context.WithoutCancel(ctx))
	if err := t.routers(ctx); err != nil {
		return err
	}
	if err := t.rest(ctx, time.Minute, "before the first fault"); err != nil {
		return fmt.Errorf("the world did not come up: %w", err)
	}
	t.began = time.Now()
	t.reader.mu.Lock()
	t.reader.whole = tally{} // from here on
	t.reader.mu.Unlock()
	if err := t.carryOut(ctx, faults); err != nil {
		return err
	}
	report.Rest = t.end(ctx)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	t.judge(ctx, report)
	if o.keep != "" || len(t.failed) > 0 {
		folder := o.keep
		if folder == "" {
			if folder, err = os.MkdirTemp("", "bmpha-chaos-logs-"); err != nil {
				return fmt.Errorf("keep the logs: %w", err)
			}
		}
		report.Logs = folder
		err = errors.Join(t.logs(folder), t.tell(ctx, report, folder))
	}
	report.Failed = t.failed
	return err
}

// routers starts what speaks BMP.
func (t *trouble) routers(ctx context.Context) error {
	var listens []string
	for _, m := range t.members {
		listens = append(listens, m.listen)
	}
	rate := float64(t.Rate) / float64(t.Generators)
	for i := range t.Generators {
		g := &generator{name: routerAddr(i).String()}
		g.talk = newTalk(t.Seed+uint64(i), fmt.Sprintf("generated-%d", i+1), t.Peers, t.Prefixes, int(rate*t.Time.Seconds()), time.Duration(float64(time.Second)/rate))
		t.reader.opening = g.talk.opening()
		t.generators = append(t.generators, g)
		var to []string
		for _, listen := range listens {
			p, err := rig.NewProxyFrom(listen, routerAddr(i))
			if err != nil {
				return err
			}
			g.ways = append(g.ways, p)
			to = append(to, p.Addr())
		}
		var err error
		if g.Router, err = replay.NewRouter(replay.Config{Stream: g.talk, To: to, Source: routerAddr(i), Rate: rate}); err != nil {
			return err
		}
		g.Start()
	}
	for i, start := range []func(context.Context, rig.RouterOptions) (rig.Router, error){
		func(ctx context.Context, o rig.RouterOptions) (rig.Router, error) { return rig.StartFRR(ctx, o) },
		func(ctx context.Context, o rig.RouterOptions) (rig.Router, error) { return rig.StartGoBGP(ctx, o) },
	} {
		r, err := startReal(ctx, t.Seed+uint64(100+i), i, start, listens)
		if err != nil {
			return err
		}
		t.real = append(t.real, r)
	}
	return nil
}

// silence ends all routers.
func (t *trouble) silence(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, r := range t.real {
		r.close()
	}
	for _, g := range t.generators {
		if g.Router != nil {
			_ = g.Stop(ctx, replay.Abort)
		}
		for _, p := range g.ways {
			p.Close()
		}
	}
}

// carryOut lets the faults come, and returns when all is healed.
func (t *trouble) carryOut(ctx context.Context, faults []fault) error {
	var going sync.WaitGroup
	defer going.Wait()
	for _, f := range faults {
		if err := sleep(ctx, time.Until(t.began.Add(time.Duration(f.At)))); err != nil {
			return err
		}
		r := &result{fault: f, Seen: new(tally)}
		t.done = append(t.done, r)
		going.Go(func() { t.strike(ctx, r) })
	}
	return nil
}

// choose takes a collector for a fault and marks it as hurt.
func (t *trouble) choose(ctx context.Context, r *result) *member {
	t.mu.Lock()
	var free []*member
	for _, m := range t.members {
		if !t.busy[m] {
			free = append(free, m)
		}
	}
	t.mu.Unlock()
	roles := make(map[*member]string)
	for _, m := range free {
		if s, err := m.status(ctx); err == nil {
			roles[m] = s.Role
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	free = slices.DeleteFunc(free, func(m *member) bool { return t.busy[m] }) // taken meanwhile
	if len(free) == 0 {
		return nil
	}
	m := free[r.Draw%uint64(len(free))]
	for _, one := range free {
		if r.Active && roles[one] == control.RoleActive || !r.Active && roles[m] == control.RoleActive && roles[one] != control.RoleActive {
			m = one
		}
	}
	t.busy[m] = true
	r.Whom, r.Role = m.name, roles[m]
	return m
}

func (t *trouble) free(m *member) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.busy, m)
}

// strike carries out one fault, from its begin to its end.
func (t *trouble) strike(ctx context.Context, r *result) {
	var m *member
	if r.hits == collector {
		if m = t.choose(ctx, r); m == nil {
			r.Note = "left out: no collector was free"
			t.log(r, "")
			return
		}
		defer func() {
			// It needs a while to be of use again.
			_ = sleep(ctx, recovery)
			t.free(m)
		}()
	}
	t.reader.begin(r.Seen)
	// What is ended is begun again, whatever happens to this run.
	err := t.hurt(ctx, r, m)
	t.reader.begin(r.Seen)
	if err != nil && ctx.Err() == nil {
		t.fail("fault %d, %s %s: %v", r.N, r.Kind, r.Whom, err)
	}
}

func (t *trouble) log(r *result, more string) {
	fmt.Fprintf(t.out, "%7.2f s  fault %d: %s %s %s %s %s%s\n", time.Since(t.began).Seconds(), r.N, r.Kind, r.Whom, r.Role, r.Lasts, r.Note, more)
}

// hurt does what the fault is and undoes it.
func (t *trouble) hurt(ctx context.Context, r *result, m *member) error {
	wait := func() { _ = sleep(ctx, time.Duration(r.Lasts)) }
	draw := r.Draw >> 8
	delay := time.Duration(20+draw%380) * time.Millisecond
	// hang stops proxies and lets them go on.
	hang := func(d rig.Direction, ways ...*rig.Proxy) error {
		t.log(r, "")
		for _, p := range ways {
			p.Hang(d)
		}
		wait()
		for _, p := range ways {
			p.Hang(0)
		}
		return nil
	}
	refuse := func(p *rig.Proxy) error {
		t.log(r, "")
		p.Cut()
		wait()
		return p.Restore()
	}
	switch r.Kind {
	case "kill", "stop":
		t.log(r, "")
		t.setDown(m, true)
		end := m.Kill
		if r.Kind == "stop" {
			end = m.Stop
		}
		if err := end(); err != nil {
			return err
		}
		wait()
		err := m.Restart(context.WithoutCancel(ctx))
		t.setDown(m, false)
		return err
	case "pause":
		t.log(r, "")
		if err := m.Pause(); err != nil {
			return err
		}
		wait()
		return m.Resume()
	case "mute", "deaf", "cut-off":
		out, in := []*rig.Proxy{m.redis, m.kafka}, t.sessions(m)
		if m.link != nil {
			in = append(in, m.link)
		}
		// Out begins at the collector, in ends there.
		there, back := rig.ToTarget, rig.ToClient
		switch r.Kind {
		case "deaf":
			there, back = back, there
		case "cut-off":
			there, back = rig.Both, rig.Both
		}
		t.log(r, "")
		for _, p := range out {
			p.Hang(there)
		}
		for _, p := range in {
			p.Hang(back)
		}
		wait()
		for _, p := range append(out, in...) {
			p.Hang(0)
		}
		return nil
	case "redis-mute":
		return hang(rig.ToTarget, m.redis)
	case "redis-deaf":
		return hang(rig.ToClient, m.redis)
	case "redis-refused":
		return refuse(m.redis)
	case "kafka-mute":
		return hang(rig.ToTarget, m.kafka)
	case "kafka-deaf":
		return hang(rig.ToClient, m.kafka)
	case "kafka-refused":
		return refuse(m.kafka)
	case "link-mute":
		return hang(rig.ToClient, m.link)
	case "link-deaf":
		return hang(rig.ToTarget, m.link)
	case "slow-redis":
		r.Note = delay.String()
		t.log(r, "")
		m.redis.Delay(delay)
		wait()
		m.redis.Delay(0)
		return nil
	case "slow-kafka":
		r.Note = delay.String()
		t.log(r, "")
		m.kafka.Delay(delay)
		m.kafka.Rate(300_000)
		wait()
		m.kafka.Delay(0)
		m.kafka.Rate(0)
		return nil
	case "slow-session", "stuck-session":
		ways := t.sessions(m)
		p := ways[draw%uint64(len(ways))]
		r.Note = "router " + t.routerName(int(draw%uint64(len(ways))))
		if r.Kind == "stuck-session" {
			return hang(rig.ToTarget, p)
		}
		t.log(r, "")
		p.Rate(20_000 + int(draw%80_000))
		wait()
		p.Rate(0)
		return nil
	case "handover":
		return t.handover(ctx, r)
	case "reconnect":
		i := int(draw % uint64(len(t.generators)+len(t.real)))
		r.Whom = t.routerName(i)
		whom := t.members
		if draw>>8%3 != 0 {
			at := int(draw >> 16 % uint64(len(t.members)))
			whom = t.members[at : at+1]
		} else {
			r.Note = "all sessions"
		}
		t.log(r, "")
		for _, m := range whom {
			t.sessions(m)[i].Drop()
		}
		return nil
	case "peer-flap":
		i := int(draw % uint64(len(t.generators)+len(t.real)))
		r.Whom = t.routerName(i)
		t.log(r, "")
		if i < len(t.generators) {
			t.generators[i].talk.Flap()
		} else {
			t.real[i-len(t.generators)].flap()
		}
		return nil
	case "redis-restart", "redis-down":
		return t.restart(ctx, r, t.redis.Process, r.Kind == "redis-down")
	case "kafka-restart", "kafka-down":
		return t.restart(ctx, r, t.kafka.Process, r.Kind == "kafka-down")
	case "redis-freeze", "kafka-freeze":
		p := t.redis.Process
		if r.Kind == "kafka-freeze" {
			p = t.kafka.Process
		}
		t.log(r, "")
		if err := p.Pause(); err != nil {
			return err
		}
		wait()
		return p.Resume()
	}
	return errors.New("nobody knows how")
}

// restart stops a server, or kills it, and starts it again when the fault has
// lasted.
func (t *trouble) restart(ctx context.Context, r *result, p *rig.Process, kill bool) error {
	t.log(r, "")
	end := p.Stop
	if kill {
		end = p.Kill
	}
	if err := end(); err != nil {
		return err
	}
	_ = sleep(ctx, time.Duration(r.Lasts))
	return p.Restart(context.WithoutCancel(ctx))
}

// handover asks the active collector to give way. That it may not be possible is no
// failure.
func (t *trouble) handover(ctx context.Context, r *result) error {
	t.mu.Lock()
	var free []*member
	for _, m := range t.members {
		if !t.busy[m] {
			free = append(free, m)
		}
	}
	t.mu.Unlock()
	for _, m := range free {
		s, err := m.status(ctx)
		if err != nil || s.Role != control.RoleActive {
			continue
		}
		r.Whom, r.Role = m.name, s.Role
		t.log(r, "")
		t.reader.begin(r.Seen)
		a, err := m.control.Maintain(ctx, control.MaintainRequest{Mode: control.ModeHandover})
		switch {
		case err != nil:
			r.Note = strings.ReplaceAll(err.Error(), "\n", " ")
		default:
			r.Note = fmt.Sprintf("to %s in %s", a.To, a.Took.Duration().Round(time.Millisecond))
		}
		t.log(r, "")
		return nil
	}
	r.Note = "left out: nobody free is active"
	t.log(r, "")
	return nil
}

// sessions returns the ways of all routers to a collector.
func (t *trouble) sessions(m *member) []*rig.Proxy {
	at := slices.Index(t.members, m)
	var ways []*rig.Proxy
	for _, g := range t.generators {
		ways = append(ways, g.ways[at])
	}
	for _, r := range t.real {
		ways = append(ways, r.Link(at))
	}
	return ways
}

func (t *trouble) routerName(i int) string {
	if i < len(t.generators) {
		return t.generators[i].name
	}
	return t.real[i-len(t.generators)].Address().String()
}

func (t *trouble) setDown(m *member, down bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.down[m] = down
}

// rest waits until the collectors are at rest: one is active, all hear all routers.
func (t *trouble) rest(ctx context.Context, most time.Duration, when string) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	err := rig.WaitFor(ctx, func() error {
		var errs []error
		active := 0
		for _, m := range t.members {
			s, err := m.status(ctx)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			switch s.Role {
			case control.RoleActive:
				active++
			case control.RoleStarting:
				errs = append(errs, fmt.Errorf("%s is starting", m.name))
			}
			heard := 0
			for _, r := range s.Routers {
				if r.Session != nil {
					heard++
				}
			}
			if want := len(t.generators) + len(t.real); heard != want {
				errs = append(errs, fmt.Errorf("%s has sessions with %d of %d routers", m.name, heard, want))
			}
		}
		if active != 1 {
			errs = append(errs, fmt.Errorf("%d are active", active))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", when, err)
	}
	return nil
}

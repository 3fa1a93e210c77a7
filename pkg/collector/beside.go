package collector

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/intake"
	"github.com/bmpha/bmpha/pkg/relay"
	"github.com/bmpha/bmpha/pkg/spool"
	"github.com/bmpha/bmpha/pkg/tail"
)

// errTooManyRouters ends a producer's connection: nothing of what it has sent is
// acknowledged, and it will try again.
var errTooManyRouters = errors.New("too many routers (listen.max_sessions)")

// besides makes what stands beside pmacct: relay, intake and spool.
func (c *Collector) besides(ctx context.Context) (err error) {
	if c.o.Spool != nil {
		if c.spool, err = spool.Open(*c.o.Spool); err != nil {
			return err
		}
		if err := c.recover(); err != nil {
			return fmt.Errorf("take over the spool in %s: %w", c.o.Spool.Dir, err)
		}
	}
	if c.o.Intake != nil {
		o := *c.o.Intake
		o.Handler, o.Log = &c.supply, c.log
		// It is to go on while we hand over: stop closes it.
		if c.supply.broker, err = intake.Listen(context.WithoutCancel(ctx), o); err != nil {
			return err
		}
	}
	if c.o.Files != nil {
		o := *c.o.Files
		o.Handler, o.Log = &c.supply, c.log
		if c.supply.files, err = tail.New(o); err != nil {
			return err
		}
	}
	if c.o.Relay != nil {
		c.relay = relay.New(*c.o.Relay)
	}
	if c.o.Dump != nil {
		c.dumps = newDumps(c, *c.o.Dump)
	}
	return nil
}

// IntakeAddresses returns where producers connect.
func (c *Collector) IntakeAddresses() (list []string) {
	if c.supply.broker != nil {
		for _, a := range c.supply.broker.Addresses() {
			list = append(list, a.String())
		}
	}
	return list
}

// runBesides starts what besides has made. reading ends when no more is to be
// taken in, ctx when all is over.
func (c *Collector) runBesides(ctx, reading context.Context, wg *sync.WaitGroup) {
	if c.supply.broker != nil {
		wg.Go(c.supply.broker.Serve)
	}
	if c.supply.files != nil {
		wg.Go(func() {
			if err := c.supply.files.Run(reading); err != nil && ctx.Err() == nil && reading.Err() == nil {
				c.log.Error("files are not followed any more", "error", err)
			}
		})
		wg.Go(func() { c.supply.checkpoints(ctx) })
	}
	if c.spool != nil || c.relay != nil || c.supply.active() || c.store != nil {
		wg.Go(func() { c.tend(ctx) })
	}
	if c.dumps != nil {
		c.dumps.start(ctx, wg)
	}
}

func (p *supply) active() bool { return p.broker != nil || p.files != nil }

// tend looks after what nothing else wakes.
func (c *Collector) tend(ctx context.Context) {
	tick := time.NewTicker(spoolTurn)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if c.spool != nil {
			c.tendSpool()
		}
		c.tendTables(c.clock.now())
		if c.o.NoDecode || c.supply.active() {
			c.supply.attend(c.clock.now())
			if c.relay != nil {
				c.paused.Store(c.supply.awaited(c.clock.now()) || c.pressure(c.paused.Load()))
				c.relay.Pause(c.paused.Load())
			}
		}
	}
}

// Where the pressure of a full log is passed on to pmacct and the routers, and
// where it ends, in percent of what the log can have. Below that pmacct's producer,
// which throws away all it has when it is refused something, is never made to wait.
const (
	pressureOn  = 75
	pressureOff = 50
)

// pressure reports whether pmacct is to get no more for now, because what it
// makes would find no room. A standby goes on and drops what is oldest.
func (c *Collector) pressure(paused bool) bool {
	limit := pressureOn
	if paused {
		limit = pressureOff
	}
	if c.spool != nil {
		if used, most := c.spool.Used(); used <= most/100*int64(limit) {
			return false
		}
		limit = 0 // what there is in memory does not matter
	}
	for _, r := range c.routers.all() {
		r.mu.Lock()
		full := r.pmacct && r.stream.Needed() && r.held.Filled() > limit
		r.mu.Unlock()
		if full {
			return true
		}
	}
	return false
}

// unfit says why this collector cannot do its job, "" if it can.
func (c *Collector) unfit(now int64) string {
	if c.o.SinkPatience > 0 && c.reach.step(now, !c.o.Sink.Stats().Connected, micros(c.o.SinkPatience)) > 0 {
		return "cannot reach " + c.o.SinkTarget
	}
	// Seen for a moment only, the whole process stood still.
	if c.stuck.step(now, now-c.fwd.turned.Load() > micros(c.stuckAfter()), micros(time.Second)) > 0 {
		return "what Kafka acknowledges is not taken in"
	}
	moves := now-c.fwd.progress.Load() < micros(time.Second) // else nobody could do better
	if c.crowded.step(now, moves && c.waiting(), micros(pressurePatience)) > 0 {
		return "memory is full, and routers wait"
	}
	if why := c.supply.unfit(now); why != "" {
		return why
	}
	if c.relay != nil {
		if since, gone := c.relay.Gone(time.Now()); gone && time.Since(since) > c.o.RelayPatience {
			return fmt.Sprintf("pmacct at %s is gone", c.o.Relay.Targets[0])
		}
	}
	return ""
}

// pressurePatience is how long routers may wait for room in memory before another
// collector, if it is better off, is to send.
const pressurePatience = 5 * time.Second

// waiting reports whether something waits for room in memory.
func (c *Collector) waiting() bool {
	for _, r := range c.routers.all() {
		r.mu.Lock()
		waits := r.waits > 0
		r.mu.Unlock()
		if waits {
			return true
		}
	}
	return false
}

// stopIntake takes in no more.
func (c *Collector) stopIntake(stopReading func()) {
	stopReading()
	if c.supply.broker != nil {
		if err := c.supply.broker.Close(); err != nil {
			c.log.Warn("close the intake", "error", err)
		}
	}
}

// relayPatience is how long, at the end, targets may take for what they have not
// got.
const relayPatience = 2 * time.Second

// closeBesides releases what besides has made.
func (c *Collector) closeBesides() error {
	var errs []error
	if c.supply.broker != nil {
		errs = append(errs, c.supply.broker.Close())
	}
	if c.relay != nil {
		ctx, cancel := context.WithTimeout(context.Background(), relayPatience)
		errs = append(errs, c.relay.Close(ctx))
		cancel()
	}
	if c.spool != nil {
		c.tendSpool()
		errs = append(errs, c.spool.Close())
	}
	return errors.Join(errs...)
}

// besideStatus fills in relay, intake and spool.
func (c *Collector) besideStatus(st *control.Status, now int64) {
	st.Unfit = c.unfit(now)
	if c.relay != nil {
		for _, t := range c.relay.Status() {
			st.Relay = append(st.Relay, control.RelayTarget{
				Address: t.Address, State: relayStates[t.State], Since: t.Since, Sessions: t.Sessions, Waiting: t.Waiting,
				Buffered: uint64(t.Buffered), Limit: uint64(c.o.Relay.Buffer), Bytes: t.Bytes, Cut: t.Cuts,
				Lost: t.Lost, Resets: t.Resets, Replays: t.Replays, Replaying: t.Replaying, LastError: t.LastError, Paused: c.paused.Load(),
			})
		}
	}
	if c.supply.active() {
		st.Intake = c.supply.status()
	}
	if c.dumps != nil {
		st.Dump = c.dumps.status()
	}
	if c.spool != nil {
		s := c.spool.Status()
		st.Spool = &control.Spool{
			Dir: c.o.Spool.Dir, Used: uint64(s.Used), Limit: uint64(s.Max), Cut: s.LostBytes,
		}
		for _, r := range c.spool.Recovered() {
			st.Spool.Recovered += uint64(r.Entries)
		}
		for i := range st.Routers {
			w := &st.Routers[i].Spooled
			st.Spool.Messages += w.Messages
			st.Spool.Bytes += w.Bytes
			st.Spool.OldestAge = max(st.Spool.OldestAge, w.OldestAge)
		}
		st.Spool.Error = c.spoolError()
	}
}

// relayStates are the relay's in the words of status; how many sessions a target
// lacks is a number of its own there.
var relayStates = map[relay.State]string{
	relay.Idle: control.RelayIdle, relay.Connecting: control.RelayIdle,
	relay.Up: control.RelayUp, relay.Resyncing: control.RelayUp, relay.Down: control.RelayDown,
}

// spoolError returns why a queue cannot be written or read, "" if all can.
func (c *Collector) spoolError() string {
	for _, r := range c.routers.all() {
		r.mu.Lock()
		why := r.spool.failing
		r.mu.Unlock()
		if why != "" {
			return why
		}
	}
	return ""
}

func (p *supply) status() *control.Intake {
	in := &control.Intake{Producers: []control.Producer{}}
	if p.broker != nil {
		in.Listen = p.c.IntakeAddresses()
		s := p.broker.Status()
		in.Records, in.Bytes, in.Refused = s.Records, s.Bytes, s.Refused+s.Broken
		for _, q := range s.Producers {
			in.Producers = append(in.Producers, control.Producer{
				Address: q.Addr.String(), ClientID: printable([]byte(q.ClientID)), Since: q.Since, Records: q.Records,
			})
		}
	}
	p.mu.Lock()
	in.Lost = p.c.clock.toTime(p.lost)
	p.mu.Unlock()
	if p.files != nil {
		for _, f := range p.files.Status() {
			in.Files = append(in.Files, control.IntakeFile{
				Path: f.Path, Offset: f.Offset, Behind: f.Behind, Lines: f.Lines, LastRead: f.Read, Error: f.Error,
			})
			in.Records += f.Lines
		}
	}
	return in
}

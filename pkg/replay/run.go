package replay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
)

// Options describe a whole run: what `bmpha replay` does.
type Options struct {
	// Files are captured streams; router i plays file i modulo their number.
	// Without files, Synthetic is played, with the number of the router added to
	// the seed.
	Files     []string
	Synthetic Synthetic
	Loop      bool // play files for ever, see Capture

	To      []string   // collectors, host:port
	Routers int        // 1, or the number of files if that is more
	From    netip.Addr // source address of the first router; the next ones follow it
	Rate    float64    // messages per second of each router; 0: as fast as they are read

	Count    uint64        // most messages of each router; 0: no limit
	Duration time.Duration // how long the streams play at most; 0: no limit

	// Timeout is how long the first connection to any collector may take before
	// the run fails. 10 s.
	Timeout time.Duration
	// Stateless: see Config.
	Stateless bool
	// Every is the time between two calls of progress. 500 ms.
	Every time.Duration
}

// Progress is how far a run is. Done is set in the last call.
type Progress struct {
	Done    bool
	Elapsed time.Duration
	Routers int
	Counters
}

// leaveLimit is how long the sessions may take to send what they have queued
// when a run ends.
const leaveLimit = 10 * time.Second

// Run plays the streams until they end, or Count, Duration or ctx ends them, and
// then leaves with Termination messages. It calls progress, if not nil, now and
// then and once at the end, from its own goroutine. The end of ctx is not an
// error; that no collector could be reached is.
func Run(ctx context.Context, o Options, progress func(Progress)) error {
	if progress == nil {
		progress = func(Progress) {}
	}
	if o.Every <= 0 {
		o.Every = 500 * time.Millisecond
	}
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Routers < 0 {
		return fmt.Errorf("%d routers, want at least 1", o.Routers)
	}
	routers := max(1, o.Routers, len(o.Files))
	if !o.From.IsValid() && routers > 1 && allLoopback(o.To) {
		o.From = loopback
	}
	streams, err := o.streams()
	if err != nil {
		return err
	}
	fleet, err := NewFleet(routers, Config{To: o.To, Source: o.From, Rate: o.Rate, Stateless: o.Stateless}, streams)
	if err != nil {
		return err
	}

	begin := time.Now()
	report := func(done bool) {
		progress(Progress{Done: done, Elapsed: time.Since(begin), Routers: routers, Counters: fleet.Counters()})
	}
	fleet.Start()
	playing := ctx
	if o.Duration > 0 {
		var cancel context.CancelFunc
		playing, cancel = context.WithTimeout(ctx, o.Duration)
		defer cancel()
	}
	waiting, giveUp := context.WithCancel(playing)
	defer giveUp()
	finished := make(chan error, 1)
	go func() { finished <- fleet.Wait(waiting) }()

	tick := time.NewTicker(o.Every)
	defer tick.Stop()
	connected := false
	for running := true; running; {
		select {
		case err = <-finished:
			running = false
			if playing.Err() != nil {
				err = nil // time is up, or the user has had enough
			}
		case <-tick.C:
			report(false)
			if !connected && time.Since(begin) >= o.Timeout {
				n := fleet.Counters()
				for _, c := range n.Collectors {
					connected = connected || c.Sessions > 0
				}
				if !connected {
					giveUp()
					<-finished
					running = false
					err = fmt.Errorf("no collector reached within %v: %s", o.Timeout, n.Collectors[0].LastError)
				}
			}
		}
	}
	leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveLimit)
	defer cancel()
	err = errors.Join(err, fleet.Stop(leaving, Terminate))
	report(true)
	return err
}

// streams returns what makes the stream of each router.
func (o *Options) streams() (func(i int) (Stream, error), error) {
	limit := func(s Stream, err error) (Stream, error) {
		if err == nil && o.Count > 0 {
			s = Limit(s, o.Count)
		}
		return s, err
	}
	if len(o.Files) == 0 {
		return func(i int) (Stream, error) {
			s := o.Synthetic
			if s.Name == "" {
				s.Name = fmt.Sprintf("replay-%d", i+1)
			}
			s.Seed += uint64(i)
			return limit(s.Stream())
		}, nil
	}
	data := make([][]byte, len(o.Files))
	for i, name := range o.Files {
		var err error
		if data[i], err = os.ReadFile(name); err != nil {
			return nil, fmt.Errorf("read captured stream: %w", err)
		}
		// Seen here once, with the file's name, rather than by each router.
		if _, err := NewCapture(data[i], o.Loop); err != nil {
			return nil, fmt.Errorf("captured stream %s: %w", name, err)
		}
	}
	return func(i int) (Stream, error) { return limit(NewCapture(data[i%len(data)], o.Loop)) }, nil
}

func allLoopback(addresses []string) bool {
	for _, a := range addresses {
		host, _, err := net.SplitHostPort(a)
		if err != nil {
			return false
		}
		if addr, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !addr.Is4() || !addr.IsLoopback()) {
			return false
		}
	}
	return len(addresses) > 0
}

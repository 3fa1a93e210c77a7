package replay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// A Fleet is a number of routers that send to the same collectors. Its methods
// are those of Router, done to all of them.
type Fleet []*Router

// NewFleet returns n routers made from cfg. Each has its own stream, from
// stream(i), and if cfg.Source is valid its own address: cfg.Source and those
// that follow it. Rate is that of each router.
func NewFleet(n int, cfg Config, stream func(i int) (Stream, error)) (Fleet, error) {
	var f Fleet
	for i := range n {
		s, err := stream(i)
		if err != nil {
			return nil, fmt.Errorf("router %d: %w", i+1, err)
		}
		cfg.Stream = s
		r, err := NewRouter(cfg)
		if err != nil {
			return nil, fmt.Errorf("router %d: %w", i+1, err)
		}
		f = append(f, r)
		if cfg.Source.IsValid() {
			cfg.Source = cfg.Source.Next()
		}
	}
	return f, nil
}

// Start starts every router.
func (f Fleet) Start() {
	for _, r := range f {
		r.Start()
	}
}

// Stop stops all routers at the same time and waits for them; see Router.Stop.
func (f Fleet) Stop(ctx context.Context, how Ending) error {
	return f.each(func(r *Router) error { return r.Stop(ctx, how) })
}

// Wait waits for all routers; see Router.Wait.
func (f Fleet) Wait(ctx context.Context) error {
	return f.each(func(r *Router) error { return r.Wait(ctx) })
}

func (f Fleet) each(do func(*Router) error) error {
	errs := make([]error, len(f))
	var all sync.WaitGroup
	for i, r := range f {
		all.Go(func() { errs[i] = do(r) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// Pause stops the streams or lets them go on; see Router.Pause.
func (f Fleet) Pause(pause bool) {
	for _, r := range f {
		r.Pause(pause)
	}
}

// Cut closes the sessions of all routers to a collector; see Router.Cut.
func (f Fleet) Cut(collector string, d time.Duration) bool {
	found := false
	for _, r := range f {
		found = r.Cut(collector, d) || found
	}
	return found
}

// Table returns the tables of all routers in one. It is of use only if they
// differ in their addresses.
func (f Fleet) Table() map[Key]string {
	table := make(map[Key]string)
	for _, r := range f {
		r.addTable(table)
	}
	return table
}

// Counters returns the sum of the routers' counters. A collector counts as
// connected if every router is connected to it; Ended means that every stream
// has ended.
func (f Fleet) Counters() Counters {
	sum := Counters{Ended: true}
	for i, r := range f {
		n := r.Counters()
		sum.Messages += n.Messages
		sum.Announced += n.Announced
		sum.Withdrawn += n.Withdrawn
		sum.EndOfRIB += n.EndOfRIB
		sum.Opaque += n.Opaque
		sum.Routes += n.Routes
		sum.Ended = sum.Ended && n.Ended
		if i == 0 {
			sum.Collectors = n.Collectors
			continue
		}
		for j := range sum.Collectors {
			s, c := &sum.Collectors[j], &n.Collectors[j]
			s.Connected = s.Connected && c.Connected
			s.Sessions += c.Sessions
			s.Failures += c.Failures
			s.Overflows += c.Overflows
			s.Messages += c.Messages
			s.Bytes += c.Bytes
			s.Redumped += c.Redumped
			s.Queued += c.Queued
			if s.LastError == "" {
				s.LastError = c.LastError
			}
		}
	}
	return sum
}

// loopback is where the source addresses of several routers begin when nothing
// else is said and all collectors are on loopback.
var loopback = netip.MustParseAddr("127.0.1.1")

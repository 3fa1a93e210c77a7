package collector

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/gate"
	"github.com/bmpha/bmpha/pkg/hold"
	"github.com/bmpha/bmpha/pkg/sink"
	"github.com/bmpha/bmpha/pkg/topic"
)

// A recaller is a sink that counts how often what it has is taken back.
type recaller struct {
	sink.Sink
	calls int
}

func (r *recaller) Recall() { r.calls++ }

// TestRecall: what Kafka does not acknowledge is taken back once, when it has not for
// an expiry, and what the router said waits for Kafka and Redis to be asked.
func TestRecall(t *testing.T) {
	out := new(recaller)
	c := still(t, func(o *Options) {
		out.Sink, o.Sink = o.Sink, out
		o.ReadBack, o.ReadBackTime = &topic.Options{Kafka: sink.Options{Brokers: []string{"127.0.0.1:1"}}}, time.Second
	})
	t.Cleanup(func() {
		if err := c.join.close(); err != nil {
			t.Error(err)
		}
	})
	r := c.router("192.0.2.1", netip.MustParseAddr("192.0.2.1"), false)
	r.mu.Lock()
	r.stream.SetWanted(true, 1, true)
	r.stream.Join(nil)
	if !r.stream.TryAppend(hold.Message, 1, 1, []byte("said")) {
		t.Fatal("no room")
	}
	_, started := r.stream.Start()
	r.mu.Unlock()
	if !started {
		t.Fatal("the stream does not send")
	}
	c.fwd.inFlight.Store(1)
	handed := int64(1_000_000)
	c.fwd.progress.Store(handed)
	for _, at := range []struct {
		after time.Duration
		calls int
	}{{time.Second, 0}, {2*time.Second - 1, 0}, {2 * time.Second, 1}, {2100 * time.Millisecond, 1}} {
		c.co.recall(handed + micros(at.after))
		if out.calls != at.calls {
			t.Errorf("%s without an acknowledgement: taken back %d times, want %d", at.after, out.calls, at.calls)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stream.State() == gate.Sending || !r.stream.Waits() {
		t.Errorf("the stream is %v, and waits: %t", r.stream.State(), r.stream.Waits())
	}
}

// TestRecallIdle: with nothing in flight, or where brokers fence, nothing is taken back.
func TestRecallIdle(t *testing.T) {
	for _, test := range []struct {
		name     string
		inFlight int64
		fencing  bool
	}{{"nothing in flight", 0, false}, {"fencing", 1, true}} {
		t.Run(test.name, func(t *testing.T) {
			out := new(recaller)
			c := still(t, func(o *Options) {
				out.Sink, o.Sink = o.Sink, out
				o.ReadBack, o.ReadBackTime = &topic.Options{Kafka: sink.Options{Brokers: []string{"127.0.0.1:1"}}}, time.Second
				if test.fencing {
					o.TransactionalID = func(string) string { return "id" }
				}
			})
			t.Cleanup(func() {
				if err := c.join.close(); err != nil {
					t.Error(err)
				}
			})
			c.fwd.inFlight.Store(test.inFlight)
			c.co.recall(micros(time.Hour))
			if out.calls != 0 {
				t.Errorf("taken back %d times", out.calls)
			}
		})
	}
}

// TestDoubt: a topic that does not answer in time makes the sink find out whether
// brokers are reached, once; one that refuses to be read says that they are.
func TestDoubt(t *testing.T) {
	out := new(recaller)
	c := still(t, func(o *Options) { out.Sink, o.Sink = o.Sink, out })
	if c.join.doubt(nil) || c.join.doubt(errors.New("not authorized")) || out.calls != 0 {
		t.Errorf("asked anew %d times though Kafka has answered", out.calls)
	}
	late := fmt.Errorf("read: %w", context.DeadlineExceeded)
	if !c.join.doubt(late) || c.join.doubt(late) || out.calls != 1 {
		t.Errorf("asked anew %d times, want once", out.calls)
	}
}

// TestStuck: a collector that does not take in what Kafka acknowledges gives way, but
// not one that only stood still as a whole.
func TestStuck(t *testing.T) {
	c := still(t)
	turn := int64(1_000_000)
	c.fwd.turned.Store(turn)
	wakes := turn + micros(30*time.Second)
	if why := c.unfit(wakes); why != "" {
		t.Errorf("woken up: %q", why)
	}
	c.fwd.turned.Store(wakes)
	if why := c.unfit(wakes + micros(2*time.Second)); why != "" {
		t.Errorf("reports are taken in again: %q", why)
	}
	stuck := wakes + micros(6*time.Second)
	for _, test := range []struct {
		at   int64
		want string
	}{{stuck, ""}, {stuck + micros(500*time.Millisecond), ""}, {stuck + micros(time.Second), "what Kafka acknowledges is not taken in"}} {
		if why := c.unfit(test.at); why != test.want {
			t.Errorf("%s after the last turn: %q, want %q", time.Duration(test.at-wakes)*time.Microsecond, why, test.want)
		}
	}
}

package intake

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bmpha/bmpha/pkg/rig"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// librdkafka's Go wrapper ends its own goroutines a little after Close.
		goleak.IgnoreAnyFunction("github.com/confluentinc/confluent-kafka-go/v2/kafka.(*handle).waitTerminated"))
}

const patience = 2 * time.Minute

// A keeper is a handler that keeps copies of what it is given.
type keeper struct {
	mu     sync.Mutex
	recs   []Record
	here   map[uint64]Producer
	left   []error
	block  chan struct{} // Take waits until it can receive, if not nil
	inside int           // calls of Take that have begun
	refuse error
}

func (k *keeper) Connected(p *Producer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.here == nil {
		k.here = make(map[uint64]Producer)
	}
	k.here[p.ID] = *p
}

func (k *keeper) Disconnected(p *Producer, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.here, p.ID)
	k.left = append(k.left, err)
}

func (k *keeper) Take(ctx context.Context, _ *Producer, recs []Record) error {
	k.mu.Lock()
	block := k.block
	k.inside++
	err := k.refuse
	k.mu.Unlock()
	if err != nil {
		return err
	}
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range recs {
		k.recs = append(k.recs, copyOf(r))
	}
	return nil
}

func copyOf(r Record) Record {
	r.Topic, r.Key, r.Value, r.Headers = slices.Clone(r.Topic), slices.Clone(r.Key), slices.Clone(r.Value), slices.Clone(r.Headers)
	return r
}

func (k *keeper) all() []Record {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.recs)
}

func (k *keeper) entered() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.inside
}

func (k *keeper) producers() []Producer {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []Producer
	for _, p := range k.here {
		all = append(all, p)
	}
	return all
}

func (k *keeper) gone() []error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.left)
}

// A journal is a log that can be looked at.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

// serve starts a broker on a free loopback port, which ends with the test.
func serve(t testing.TB, o Options) (*Broker, string, *journal) {
	t.Helper()
	j := &journal{}
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(j, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	if o.Listen == nil {
		o.Listen = []string{"127.0.0.1:0"}
	}
	b, err := Listen(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { b.Serve(); close(done) }()
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		<-done
		if t.Failed() {
			t.Logf("log:\n%s", j)
		}
	})
	return b, b.Addresses()[0].String(), j
}

// until waits for a condition.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := rig.WaitFor(ctx, func() error {
		if !cond() {
			return fmt.Errorf("not yet: %s", what)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestListenRefuses(t *testing.T) {
	for name, o := range map[string]Options{
		"no handler":     {Listen: []string{"127.0.0.1:0"}},
		"no address":     {Handler: &keeper{}},
		"bad address":    {Handler: &keeper{}, Listen: []string{"127.0.0.1:0", "nowhere"}},
		"bad advertise":  {Handler: &keeper{}, Listen: []string{"127.0.0.1:0"}, Advertise: "host"},
		"advertise port": {Handler: &keeper{}, Listen: []string{"127.0.0.1:0"}, Advertise: "host:99999"},
		"negative":       {Handler: &keeper{}, Listen: []string{"127.0.0.1:0"}, MaxBatch: -1},
	} {
		if b, err := Listen(context.Background(), o); err == nil {
			b.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestContext: the end of the context is a Close.
func TestContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	b, err := Listen(ctx, Options{Listen: []string{"127.0.0.1:0", "[::1]:0"}, Handler: &keeper{}})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(b.Addresses()); n != 2 {
		t.Errorf("%d addresses", n)
	}
	done := make(chan struct{})
	go func() { b.Serve(); close(done) }()
	c := dial(t, b.Addresses()[1].String())
	c.versions(0)
	cancel()
	<-done
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if _, err := net.DialTimeout("tcp", b.Addresses()[0].String(), time.Second); err == nil {
		t.Error("still listening")
	}
}

func describe(recs []Record) string {
	var s strings.Builder
	for _, r := range recs {
		fmt.Fprintf(&s, "%s/%d %q(%v)=%q(%v) %x @%d\n", r.Topic, r.Partition, r.Key, r.KeyNull, r.Value, r.ValueNull, r.Headers, r.Timestamp)
	}
	return s.String()
}

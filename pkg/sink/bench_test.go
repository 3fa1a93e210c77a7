package sink

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/rig"
)

// outsideBroker runs a broker in another process.
func outsideBroker(b *testing.B) string {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), brokerEnv+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(addr)
}

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// One operation is one record of 600 bytes, handed over and acknowledged, in
// batches of 500 from four streams.
func benchmarkHand(b *testing.B, open func(Options) (Sink, error), headerLen int) {
	benchmarkSink(b, open, outsideBroker(b), headerLen)
}

func benchmarkSink(b *testing.B, open func(Options) (Sink, error), addr string, headerLen int) {
	s, err := open(Options{Brokers: []string{addr}})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close(0)
	topic, err := s.Topic("bench")
	if err != nil {
		b.Fatal(err)
	}
	const streams, size = 4, 500
	value, header := bytes.Repeat([]byte("v"), 600), bytes.Repeat([]byte("h"), headerLen)
	var batches [streams]record.Batch
	var next, acked [streams]uint64
	for i := range batches {
		bt := &batches[i]
		for range size {
			r := record.Rec{Topic: topic, KeyOff: uint32(len(bt.Data)), KeyLen: 9}
			bt.Data = append(bt.Data, "10.0.0.0"+string(rune('1'+i))...)
			r.HeaderOff, r.HeaderLen = uint32(len(bt.Data)), uint32(headerLen)
			bt.Data = append(bt.Data, header...)
			r.ValueOff, r.ValueLen = uint32(len(bt.Data)), uint32(len(value))
			bt.Data = append(bt.Data, value...)
			bt.Recs = append(bt.Recs, r)
		}
		if err := s.Reset(uint32(i), 0); err != nil {
			b.Fatal(err)
		}
	}
	var reports []Report
	run := func(n uint64) {
		var goal [streams]uint64
		for i := range goal {
			goal[i] = next[i] + n/streams
		}
		goal[0] += n % streams
		for acked != goal {
			for i := range batches {
				for next[i] < goal[i] {
					from := int(next[i] % size)
					if left := goal[i] - next[i]; left < uint64(size-from) {
						from = size - int(left)
					}
					k, err := s.Hand(uint32(i), next[i], &batches[i], from)
					if err != nil {
						b.Fatal(err)
					}
					next[i] += uint64(k)
					if k == 0 {
						break
					}
				}
			}
			reports = s.Poll(100*time.Millisecond, reports[:0])
			for _, r := range reports {
				if r.Err != nil {
					b.Fatal(r.Err)
				}
				acked[r.Stream] = r.Acked
			}
		}
	}
	run(20000) // connect, and grow what grows
	b.ReportAllocs()
	b.ResetTimer()
	began := cpu()
	run(uint64(b.N))
	used := cpu() - began
	b.StopTimer()
	b.ReportMetric(float64(used.Nanoseconds())/float64(b.N), "cpu-ns/rec")
}

func BenchmarkHandKafka(b *testing.B) {
	b.Run("plain", func(b *testing.B) { benchmarkHand(b, NewKafka, 0) })
	b.Run("header", func(b *testing.B) { benchmarkHand(b, NewKafka, 48) })
}

// In transactions, to be compared with the above.
func BenchmarkHandFenced(b *testing.B) {
	b.Run("plain", func(b *testing.B) { benchmarkHand(b, newFenced, 0) })
	b.Run("header", func(b *testing.B) { benchmarkHand(b, newFenced, 48) })
}

// On a real broker: how many records it takes a second, and how long a single one
// takes until it is acknowledged.
func BenchmarkFencing(b *testing.B) {
	k := realKafka(b, rig.KafkaOptions{Topics: map[string]int{"bench": 4}})
	for _, c := range []struct {
		name string
		o    Options
	}{
		{"off", Options{}},
		{"100ms", Options{TransactionalID: "bench-100", CommitInterval: 100 * time.Millisecond}},
		{"20ms", Options{TransactionalID: "bench-20", CommitInterval: 20 * time.Millisecond}},
	} {
		open := func(o Options) (Sink, error) {
			c.o.Brokers = []string{k.Brokers()}
			return NewKafka(c.o)
		}
		b.Run("rate/"+c.name, func(b *testing.B) { benchmarkSink(b, open, "", 48) })
		b.Run("latency/"+c.name, func(b *testing.B) { benchmarkLatency(b, open) })
	}
	s, err := NewKafka(Options{Brokers: []string{k.Brokers()}})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close(0)
	b.Run("fence", func(b *testing.B) {
		for b.Loop() {
			if err := s.(Fencer).Fence(b.Context(), "bench"); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// One operation is one record, alone.
func benchmarkLatency(b *testing.B, open func(Options) (Sink, error)) {
	s, err := open(Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close(0)
	topic, err := s.Topic("bench")
	if err != nil {
		b.Fatal(err)
	}
	if err := s.Reset(0, 0); err != nil {
		b.Fatal(err)
	}
	f := filled(0, topic, 1, 600)
	var reports []Report
	send := func(pos uint64) {
		for n := 0; n == 0; reports = s.Poll(10*time.Millisecond, reports[:0]) {
			if n, err = s.Hand(0, pos, &f.batch, 0); err != nil {
				b.Fatal(err)
			}
		}
		for len(reports) == 0 || reports[0].Acked <= pos {
			reports = s.Poll(time.Second, reports[:0])
		}
	}
	pos := uint64(0)
	send(pos)
	for b.Loop() {
		pos++
		send(pos)
	}
}

func BenchmarkHandReference(b *testing.B) {
	b.Run("plain", func(b *testing.B) { benchmarkHand(b, NewReference, 0) })
	b.Run("header", func(b *testing.B) { benchmarkHand(b, NewReference, 48) })
}

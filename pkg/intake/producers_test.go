package intake

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
)

// sample is a value that compresses.
func sample(i int) []byte {
	return fmt.Appendf(nil, `{"seq": %d, "event_type": "log", "bmp_router": "192.0.2.%d", "as_path": "65000 65001 65002"}`, i, i%250)
}

// compare fails unless recs are n samples in order with their keys, headers and
// timestamps.
func compare(t *testing.T, recs []Record, n int, start int64) {
	t.Helper()
	if len(recs) != n {
		t.Fatalf("%d records, want %d", len(recs), n)
	}
	headers := record.AppendMore(record.AppendMore(nil, []byte("h"), []byte("v")), []byte("none"), nil)
	for i, r := range recs {
		if string(r.Topic) != "t" || !bytes.Equal(r.Value, sample(i)) || string(r.Key) != fmt.Sprint(i) ||
			r.Timestamp != start+int64(i) || !bytes.Equal(r.Headers, headers) || r.KeyNull || r.ValueNull {
			t.Fatalf("record %d is %s", i, describe(recs[i:i+1]))
		}
	}
}

const start = 1_700_000_000_000

func TestFranz(t *testing.T) {
	codecs := map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
		"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	}
	for name, codec := range codecs {
		for _, idempotent := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/idempotent=%v", name, idempotent), func(t *testing.T) {
				k := &keeper{}
				_, addr, _ := serve(t, Options{Handler: k})
				opts := []kgo.Opt{kgo.SeedBrokers(addr), kgo.DefaultProduceTopic("t"), kgo.ProducerBatchCompression(codec),
					kgo.ProducerLinger(time.Millisecond)}
				if !idempotent {
					opts = append(opts, kgo.DisableIdempotentWrite(), kgo.MaxProduceRequestsInflightPerBroker(1))
				}
				franz(t, opts, 3000)
				compare(t, k.all(), 3000, start)
			})
		}
	}
}

// franz produces n samples and fails unless all are acknowledged with rising offsets.
func franz(t *testing.T, opts []kgo.Opt, n int) {
	t.Helper()
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	next := int64(0)
	for i := range n {
		cl.Produce(ctx, &kgo.Record{
			Key: fmt.Append(nil, i), Value: sample(i), Timestamp: time.UnixMilli(start + int64(i)),
			Headers: []kgo.RecordHeader{{Key: "h", Value: []byte("v")}, {Key: "none"}},
		}, func(r *kgo.Record, err error) {
			if err != nil || r.Offset != next {
				t.Errorf("record %s: offset %d, want %d, error %v", r.Key, r.Offset, next, err)
			}
			next++
		})
	}
	if err := cl.Flush(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestLibrdkafka(t *testing.T) {
	for _, codec := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		for _, idempotent := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/idempotent=%v", codec, idempotent), func(t *testing.T) {
				k := &keeper{}
				_, through := serveBehind(t, k)
				librdkafka(t, kafka.ConfigMap{"bootstrap.servers": through.Addr(), "compression.type": codec,
					"enable.idempotence": idempotent, "linger.ms": 5}, 3000)
				compare(t, k.all(), 3000, start)
				// It falls back to no compression if it takes a broker for too old.
				if sent, _ := through.Passed(); codec != "none" && sent > 3000*int64(len(sample(0)))/2 {
					t.Errorf("%d bytes were sent: not compressed", sent)
				}
			})
		}
	}
}

// serveBehind starts a broker that clients reach through a proxy.
func serveBehind(t *testing.T, h Handler) (*Broker, *rig.Proxy) {
	t.Helper()
	through, err := rig.NewProxy("127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { through.Close() })
	b, addr, _ := serve(t, Options{Handler: h, Advertise: through.Addr()})
	through.SetTarget(addr)
	return b, through
}

// librdkafka produces n samples and fails unless all are acknowledged.
func librdkafka(t *testing.T, config kafka.ConfigMap, n int) {
	t.Helper()
	p, err := kafka.NewProducer(&config)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	topic := "t"
	for i := range n {
		err := p.Produce(&kafka.Message{
			TopicPartition: kafka.TopicPartition{Topic: &topic, Partition: kafka.PartitionAny},
			Key:            fmt.Append(nil, i), Value: sample(i), Timestamp: time.UnixMilli(start + int64(i)),
			Headers: []kafka.Header{{Key: "h", Value: []byte("v")}, {Key: "none"}},
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.After(patience)
	for done := 0; done < n; {
		select {
		case e := <-p.Events():
			switch e := e.(type) {
			case *kafka.Message:
				if e.TopicPartition.Error != nil {
					t.Fatalf("record %s: %v", e.Key, e.TopicPartition.Error)
				}
				done++
			case kafka.Error:
				t.Logf("librdkafka: %v", e)
			}
		case <-deadline:
			t.Fatalf("%d of %d acknowledged", done, n)
		}
	}
}

// TestCut: a connection that breaks again and again costs an idempotent producer
// nothing and repeats nothing.
func TestCut(t *testing.T) {
	const n = 20_000
	producers := map[string]func(t *testing.T, addr string){
		"franz": func(t *testing.T, addr string) {
			franz(t, []kgo.Opt{kgo.SeedBrokers(addr), kgo.DefaultProduceTopic("t"), kgo.ProducerBatchMaxBytes(20_000),
				kgo.RetryBackoffFn(func(int) time.Duration { return 5 * time.Millisecond }), kgo.MaxBufferedRecords(n)}, n)
		},
		"librdkafka": func(t *testing.T, addr string) {
			librdkafka(t, kafka.ConfigMap{"bootstrap.servers": addr, "enable.idempotence": true, "batch.num.messages": 100,
				"retry.backoff.ms": 5, "reconnect.backoff.ms": 5, "reconnect.backoff.max.ms": 50}, n)
		},
	}
	for name, run := range producers {
		t.Run(name, func(t *testing.T) {
			k := &keeper{}
			b, through := serveBehind(t, k)
			// Slowly enough for cuts to hit it half-way.
			through.Rate(2 << 20)
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				for cuts := 0; cuts < 6; {
					select {
					case <-stop:
						return
					case <-time.After(3 * time.Millisecond):
					}
					if len(k.all()) > (cuts+1)*n/8 {
						through.Drop()
						cuts++
					}
				}
			}()
			run(t, through.Addr())
			close(stop)
			<-stopped
			compare(t, k.all(), n, start)
			s := b.Status()
			t.Logf("%d batches, %d of them came again", s.Batches, s.Repeated)
		})
	}
}

// TestLostAnswer: the answers of what was taken do not arrive, so that every batch
// in flight comes again and is known.
func TestLostAnswer(t *testing.T) {
	k := &keeper{block: make(chan struct{})}
	b, through := serveBehind(t, k)
	go func() {
		until(t, "a batch is being taken", func() bool { return k.entered() > 0 })
		through.Drop() // the batch is in Take, its answer has nowhere to go
		close(k.block)
	}()
	franz(t, []kgo.Opt{kgo.SeedBrokers(through.Addr()), kgo.DefaultProduceTopic("t"),
		kgo.RetryBackoffFn(func(int) time.Duration { return 5 * time.Millisecond })}, 2000)
	compare(t, k.all(), 2000, start)
	if b.Status().Repeated == 0 {
		t.Error("nothing came again")
	}
}

// TestRestart: to a new broker an idempotent producer is unknown, and goes on.
func TestRestart(t *testing.T) {
	k := &keeper{}
	port, err := rig.FreePort("") // nobody connects from it while no broker listens
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	b, _, _ := serve(t, Options{Handler: k, Listen: []string{addr}})
	cl, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.DefaultProduceTopic("t"),
		kgo.RetryBackoffFn(func(int) time.Duration { return 5 * time.Millisecond }))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for i := range 20 {
		if i == 10 {
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			serve(t, Options{Handler: k, Listen: []string{addr}})
		}
		if err := cl.ProduceSync(ctx, &kgo.Record{Value: sample(i)}).FirstErr(); err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
	}
	for i, r := range k.all() {
		if !bytes.Equal(r.Value, sample(i)) {
			t.Fatalf("record %d is %q", i, r.Value)
		}
	}
}

func TestKcat(t *testing.T) {
	if _, err := exec.LookPath("kcat"); err != nil {
		t.Skip("kcat is not installed")
	}
	for _, codec := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		t.Run(codec, func(t *testing.T) {
			k := &keeper{}
			_, addr, _ := serve(t, Options{Handler: k, Partitions: 3})
			var in bytes.Buffer
			for i := range 500 {
				fmt.Fprintf(&in, "%d:%s\n", i, sample(i))
			}
			run(t, &in, "kcat", "-P", "-b", addr, "-t", "t", "-p", "2", "-z", codec, "-K", ":", "-H", "a=b")
			recs := k.all()
			if len(recs) != 500 {
				t.Fatalf("%d records", len(recs))
			}
			for i, r := range recs {
				if r.Partition != 2 || string(r.Key) != fmt.Sprint(i) || !bytes.Equal(r.Value, sample(i)) ||
					!bytes.Equal(r.Headers, record.AppendMore(nil, []byte("a"), []byte("b"))) {
					t.Fatalf("record %d is %s", i, describe(recs[i:i+1]))
				}
			}
			out := run(t, nil, "kcat", "-L", "-b", addr)
			for _, want := range []string{`topic "t" with 3 partitions`, "broker 0 at " + addr, "partition 2, leader 0"} {
				if !strings.Contains(out, want) {
					t.Errorf("kcat -L without %q:\n%s", want, out)
				}
			}
		})
	}
}

func run(t *testing.T, in io.Reader, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = in
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestAdminClient(t *testing.T) {
	k := &keeper{}
	_, addr, _ := serve(t, Options{Handler: k})
	a, err := kafka.NewAdminClient(&kafka.ConfigMap{"bootstrap.servers": addr})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	topic := "some.topic"
	for _, name := range []*string{&topic, nil} {
		m, err := a.GetMetadata(name, name == nil, int(patience.Milliseconds()))
		if err != nil {
			t.Fatal(err)
		}
		if len(m.Brokers) != 1 || m.Brokers[0].ID != 0 || len(m.Topics[topic].Partitions) != 1 {
			t.Errorf("metadata %+v", m)
		}
	}
}

// TestPmbmpd: what Debian's pmbmpd writes arrives once, whole and in order, also
// when a Take lasts for seconds, with and without idempotence.
func TestPmbmpd(t *testing.T) {
	rig.Require(t, rig.PmbmpdPart)
	for _, idempotent := range []bool{false, true} {
		t.Run(fmt.Sprintf("idempotent=%v", idempotent), func(t *testing.T) {
			t.Parallel()
			k := &keeper{block: make(chan struct{})}
			b, addr, _ := serve(t, Options{Handler: k})
			ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
			defer cancel()
			dir := t.TempDir()
			file := filepath.Join(dir, "kafka.conf")
			settings := "global, linger.ms, 5\n"
			if idempotent {
				settings += "global, enable.idempotence, true\n"
			}
			if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
				t.Fatal(err)
			}
			d, err := rig.StartPmbmpd(ctx, rig.PmbmpdOptions{
				Dir: dir, Kafka: addr, Topic: "pmacct.bmp",
				Config: []string{
					"bmp_daemon_msglog_kafka_partition_key: $bmp_router",
					"bmp_daemon_msglog_kafka_config_file: " + file,
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			stream, err := replay.Synthetic{Numbered: true}.Stream()
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			router, err := replay.NewRouter(replay.Config{Stream: stream, To: []string{d.Addr()}, Rate: 1000, Stateless: true})
			if err != nil {
				t.Fatal(err)
			}
			router.Start()
			defer func() { _ = router.Stop(ctx, replay.Abort) }()
			// The first Take lasts as long as three seconds of traffic.
			until(t, "a batch is being taken", func() bool { return k.entered() > 0 })
			until(t, "three seconds", func() bool { return time.Since(began) > 3*time.Second })
			close(k.block)
			until(t, "6000 records", func() bool { return len(k.all()) >= 6000 })
			recs := k.all()
			for i, r := range recs {
				var seq int
				if n := bytes.Index(r.Value, []byte(`"seq": `)); n < 0 {
					t.Fatalf("record %d: %s", i, r.Value)
				} else if _, err := fmt.Sscanf(string(r.Value[n:]), `"seq": %d`, &seq); err != nil || seq != i {
					t.Fatalf("record %d has seq %d: %s", i, seq, r.Value)
				}
				if string(r.Topic) != "pmacct.bmp" || string(r.Key) != "127_0_0_1" || r.Value[len(r.Value)-1] != '}' ||
					time.UnixMilli(r.Timestamp).Before(began.Add(-time.Minute)) {
					t.Fatalf("record %d: %s", i, describe(recs[i:i+1]))
				}
				router, kind, ok := Identify(r.Value)
				if !ok || router.String() != "127.0.0.1" || (i == 0) != (kind == Opened) {
					t.Fatalf("record %d: router %v, %v, %v: %s", i, router, kind, ok, r.Value)
				}
			}
			for _, p := range b.Status().Producers {
				t.Logf("producer %q, %q, %d records", p.ClientID, p.Software, p.Records)
			}
		})
	}
}

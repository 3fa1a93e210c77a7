package main

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
	"github.com/bmpha/bmpha/pkg/verify"
)

// A topic of a test's own, in an embedded Kafka.
type verifyTopic struct {
	*lab
	client *kgo.Client
}

func newVerifyTopic(t *testing.T, partitions int, o rig.KafkaOptions) *verifyTopic {
	t.Helper()
	l := newLab(t, func(l *lab) {
		k, err := rig.StartEmbeddedKafka(t.Context(), o)
		l.must(err)
		t.Cleanup(func() { l.must(k.Close()) })
		l.kafka = k
	})
	l.must(l.kafka.CreateTopic(l.within(30*time.Second), l.name, partitions))
	cl, err := kgo.NewClient(append(l.kafka.Client(), kgo.DefaultProduceTopic(l.name), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	l.must(err)
	t.Cleanup(cl.Close)
	return &verifyTopic{l, cl}
}

var verifyStart = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// said is one record of a topic, of message n of an instance.
type said struct {
	instance, token, n uint64
	flags              uint8
	prefix             int // 0: a Peer Up
	withdraw           bool
}

func (v *verifyTopic) produce(records []said) {
	v.t.Helper()
	for i, s := range records {
		o := record.Origin{Instance: s.instance, Session: 1, Message: s.n, Token: s.token, Flags: s.flags}
		const tail = `"bmp_router": "192.0.2.1", "peer_ip": "192.0.2.11", "is_post": 1, "is_in": 1, "event_type": "log"`
		r := &kgo.Record{Timestamp: verifyStart.Add(time.Duration(i) * time.Second)}
		switch {
		case s.prefix == 0:
			r.Value = []byte(`{"bmp_msg_type": "peer_up", ` + tail + "}")
			r.Headers = []kgo.RecordHeader{{Key: record.HeaderName, Value: record.AppendHeader(nil, &o, 0)}}
		default:
			kind, attrs, value := "update", `"bgp_nexthop": "192.0.2.11", "as_path": "64501", "origin": "i", `, uint64(1)
			if s.withdraw {
				kind, attrs, value = "withdraw", "", 0
			}
			r.Value = fmt.Appendf(nil, `{"log_type": %q, "afi": 1, "safi": 1, "ip_prefix": "198.18.%d.0/24", %s"bmp_msg_type": "route_monitor", %s}`, kind, s.prefix, attrs, tail)
			r.Headers = []kgo.RecordHeader{{Key: record.HeaderName, Value: []byte("brought along")}, {Key: record.HeaderName, Value: record.AppendRouteHeader(nil, &o, 0, uint64(s.prefix), value)}}
		}
		v.must(v.client.ProduceSync(v.within(30*time.Second), r).FirstErr())
	}
}

// frr writes what FRR would print of the prefixes.
func (v *verifyTopic) frr(prefixes ...int) string {
	v.t.Helper()
	routes := make(map[string]any)
	for _, p := range prefixes {
		routes[fmt.Sprintf("198.18.%d.0/24", p)] = []map[string]any{{
			"valid": true, "pathFrom": "external", "peerId": "192.0.2.11", "path": "64501", "origin": "IGP",
			"nexthops": []map[string]any{{"ip": "192.0.2.11", "used": true}},
		}}
	}
	return v.file(map[string]any{"vrfName": "default", "localAS": 64500, "routes": routes})
}

func (v *verifyTopic) file(content any) string {
	v.t.Helper()
	b, err := json.Marshal(content)
	v.must(err)
	name := filepath.Join(v.t.TempDir(), "printed")
	v.must(os.WriteFile(name, b, 0o600))
	return name
}

// verify runs the command on the topic.
func (l *lab) verify(args ...string) outcome {
	l.t.Helper()
	return l.command(append([]string{"verify", "--topic", l.name, "--brokers", l.kafka.Brokers()}, args...)...)
}

func parseResult(t *testing.T, o outcome) verify.Result {
	t.Helper()
	var r verify.Result
	if err := json.Unmarshal([]byte(o.out), &r); err != nil {
		t.Fatalf("verify --json (exit code %d, %s): %v\n%s", o.code, o.errOut, err, o.out)
	}
	return r
}

// TestVerifyTopics: what may stand in a topic, and what verify makes of it.
func TestVerifyTopics(t *testing.T) {
	t.Parallel()
	const replayed = record.FlagReplayed
	clean := []said{{instance: 1, token: 1, n: 1}, {instance: 1, token: 1, n: 2, prefix: 1}, {instance: 1, token: 1, n: 3, prefix: 2}, {instance: 1, token: 1, n: 4, prefix: 3},
		{instance: 1, token: 1, n: 5, prefix: 3, withdraw: true}}
	with := func(more ...said) []said { return append(slices.Clone(clean), more...) }
	tests := []struct {
		name    string
		records []said
		code    int
		want    []string
		bad     []string
	}{
		{"clean", clean, 0, []string{"5 records", "2 routes of 1 peer, 1 of them up", "repeats  none", "2 equal, 0 missing, 0 extra, 0 different", "tables are equal, no faults"}, []string{"\n!"}},
		{"lost", slices.Delete(slices.Clone(clean), 2, 3), exitUnsound, []string{"1 equal, 1 missing", "peer 192.0.2.11 198.18.2.0/24\n      router: via", "1 difference, no faults"}, nil},
		{"a lost withdrawal", clean[:4], exitUnsound, []string{"2 equal, 0 missing, 1 extra", "peer 192.0.2.11 198.18.3.0/24\n      kafka:  via", "last said: 2026-01-02 03:04:08.000, by 0000000000000001 token 1"}, nil},
		{"repeated and flagged", with(said{instance: 1, token: 1, n: 3, prefix: 2, flags: replayed}), 0, []string{"repeats  1: 1 flagged as replayed", "1 replayed"}, []string{"\n!"}},
		{"repeated and not flagged", with(clean[4]), exitUnsound, []string{"repeats  1: 1 by another sender", "message 5.0 of session 1 of 0000000000000001 came twice", "tables are equal, 1 fault"}, nil},
		{"reordered", []said{clean[0], clean[2], clean[1], clean[3], clean[4]}, exitUnsound, []string{"offset 2, 2026-01-02 03:04:07.000: message 2.0 of session 1 of 0000000000000001 came after 3.0"}, nil},
		{"two senders", with(said{instance: 0xb, token: 2, n: 9, prefix: 3, withdraw: true, flags: replayed}, said{instance: 0xb, token: 2, n: 10, prefix: 3}, said{instance: 0xb, token: 2, n: 11, prefix: 3, withdraw: true}), 0,
			[]string{"0000000000000001 token 1, partition 0: 2026-01-02 03:04:05.000 to 2026-01-02 03:04:09.000, 5 records\n", "000000000000000b token 2, partition 0: 2026-01-02 03:04:10.000 to 2026-01-02 03:04:12.000, 3 records, 1 replayed\n"}, []string{"\n!"}},
		{"two senders at once", with(said{instance: 0xb, token: 2, n: 9, prefix: 4}, said{instance: 1, token: 1, n: 6, prefix: 4, withdraw: true}), exitUnsound,
			[]string{"0000000000000001 sent with takeover token 1 after one with 2 had taken over"}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			v := newVerifyTopic(t, 1, rig.KafkaOptions{})
			v.produce(test.records)
			o := v.verify("--frr", v.frr(1, 2))
			if o.code != test.code || o.errOut != "" {
				t.Errorf("exit code %d, want %d: %s", o.code, test.code, o.errOut)
			}
			for _, s := range test.want {
				if !strings.Contains(o.out, s) {
					t.Errorf("does not say %q", s)
				}
			}
			for _, s := range test.bad {
				if strings.Contains(o.out, s) {
					t.Errorf("says %q", s)
				}
			}
			if t.Failed() {
				t.Log(o.out)
			}
		})
	}
}

// TestVerifyTakeovers: who took over from whom, what was told again behind it, and what
// another topic knows.
func TestVerifyTakeovers(t *testing.T) {
	t.Parallel()
	v := newVerifyTopic(t, 1, rig.KafkaOptions{})
	const replayed = record.FlagReplayed
	records := []said{
		{instance: 1, token: 1, n: 1}, {instance: 1, token: 1, n: 2, prefix: 1}, {instance: 1, token: 1, n: 3, prefix: 2},
		{instance: 1, token: 1, n: 4, prefix: 2, withdraw: true},
		{instance: 0xb, token: 2, n: 9, prefix: 2, flags: replayed}, {instance: 0xb, token: 2, n: 10, prefix: 2, withdraw: true},
		{instance: 0xb, token: 2, n: 11, prefix: 3, flags: replayed}, {instance: 0xb, token: 4, n: 12, prefix: 4},
	}
	v.produce(records)
	const behind = "2 repeated (1 flagged), 1 of them older than what was said (flagged), 1 flagged that nobody had said"
	o := v.verify()
	for _, want := range []string{
		"takeovers 2: " + behind + "\n",
		"2026-01-02 03:04:09.000 partition 0 offset 4, after 1.000 s: 000000000000000b token 2 from 0000000000000001 token 1: " + behind,
	} {
		if o.code != 0 || !strings.Contains(o.out, want) {
			t.Errorf("exit code %d, does not say %q: %s", o.code, want, o.out)
		}
	}
	if o := v.verify("--all"); !strings.Contains(o.out, "000000000000000b token 4 from 000000000000000b token 2: nothing repeated") {
		t.Errorf("%s", o.out)
	}
	if r := parseResult(t, v.verify("--json")); len(r.Report.Routers[0].Takeovers) != 2 || r.Report.Routers[0].AtTakeovers.Repeated != 2 {
		t.Errorf("%+v", r.Report.Routers[0])
	}

	other := *v
	other.lab = &lab{t: t, name: v.name + ".native", kafka: v.kafka}
	v.must(v.kafka.CreateTopic(v.within(30*time.Second), other.name, 1))
	cl, err := kgo.NewClient(append(v.kafka.Client(), kgo.DefaultProduceTopic(other.name), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	v.must(err)
	t.Cleanup(cl.Close)
	other.client = cl
	other.produce([]said{{instance: 7, token: 1, n: 2, prefix: 1}, {instance: 7, token: 1, n: 3, prefix: 3}})
	if o := v.verify("--against", other.name); o.code != exitUnsound || !strings.Contains(o.out, "2 equal, 0 missing, 1 extra, 0 different") ||
		!strings.Contains(o.out, "198.18.4.0/24") || !strings.Contains(o.out, "last said: 2026-01-02 03:04:12.000, by 000000000000000b token 4") {
		t.Errorf("exit code %d: %s%s", o.code, o.out, o.errOut)
	}
	other.produce([]said{{instance: 7, token: 1, n: 4, prefix: 4}})
	if o := v.verify("--against", other.name, "--json"); o.code != 0 || parseResult(t, o).Against.Equal != 3 {
		t.Errorf("exit code %d: %s%s", o.code, o.out, o.errOut)
	}
	if o := v.verify("--against", "nowhere"); o.code != 1 || !strings.Contains(o.errOut, "topic nowhere: no such topic") {
		t.Errorf("exit code %d: %s%s", o.code, o.out, o.errOut)
	}
}

// TestVerifyBounds: what is read of a topic, by offset and by time.
func TestVerifyBounds(t *testing.T) {
	t.Parallel()
	v := newVerifyTopic(t, 2, rig.KafkaOptions{})
	if r := parseResult(t, v.verify("--json")); r.Report.Records != 0 || len(r.Partitions) != 2 {
		t.Errorf("an empty topic: %+v", r)
	}
	var records []said
	for i := range uint64(20) {
		records = append(records, said{instance: 1, token: 1, n: i + 1, prefix: int(i + 1)})
	}
	v.produce(records)
	last := verifyStart.Add(time.Hour).Format(time.RFC3339)
	for args, want := range map[string]int64{
		"":                                20,
		"--from beginning --until end":    20,
		"--from 5":                        15,
		"--until 5":                       5,
		"--from 5 --until 7":              2,
		"--from 7 --until 5":              0,
		"--from 100":                      0,
		"--from 2026-01-02T03:04:15Z":     10,
		"--until 2026-01-02T03:04:15Z":    10,
		"--from " + last:                  0,
		"--until " + last:                 20,
		"--from 1h":                       0,
		"--from 876000h":                  20,
		"--router 192.0.2.1 --within 10m": 20,
	} {
		r := parseResult(t, v.verify(append(strings.Fields(args), "--json")...))
		if r.Report.Records != want {
			t.Errorf("%q: %d records of %+v, want %d", args, r.Report.Records, r.Partitions, want)
		}
	}
}

// TestVerifyOtherTopics: records of pmacct 1.7.7, of two routers, and none at all.
func TestVerifyOtherTopics(t *testing.T) {
	t.Parallel()
	v := newVerifyTopic(t, 1, rig.KafkaOptions{})
	dir := os.Getenv("BMPHA_FIXTURES")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "fixtures")
	}
	f, err := os.Open(filepath.Join(dir, "pmacct-1.7.7.jsonl.gz"))
	if err != nil {
		t.Skipf("captured records are not here (BMPHA_FIXTURES): %v", err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	v.must(err)
	var model replay.Consumer
	var records []*kgo.Record
	lines := bufio.NewScanner(z)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := slices.Clone(lines.Bytes())
		v.must(model.Record(line))
		records = append(records, &kgo.Record{Value: line})
	}
	v.must(lines.Err())
	v.must(v.client.ProduceSync(v.within(time.Minute), records...).FirstErr())
	o := v.verify("--json")
	r := parseResult(t, o)
	n := 0
	for _, rt := range r.Report.Routers {
		n += rt.Routes
	}
	if o.code != 0 || r.Report.Records != int64(len(records)) || n != len(model.Routes()) || n == 0 || len(r.Report.Routers) < 10 {
		t.Errorf("exit code %d, %d of %d records, %d of %d routes", o.code, r.Report.Records, len(records), n, len(model.Routes()))
	}

	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--frr", v.frr(1)}, "say --router, one of 127.0.1.1,"},
		{[]string{"--router", "192.0.2.200"}, "is about router 192.0.2.200"},
		{[]string{"--topic", "nowhere"}, "topic nowhere: no such topic"},
		{[]string{"--brokers", "127.0.0.1:1", "--timeout", "5s"}, "127.0.0.1:1: connect: connection refused"},
		{[]string{"--gobgp", v.file([]int{1})}, "an object was expected"},
		{[]string{"--frr", v.file(map[string]any{"receivedRoutes": map[string]any{}})}, "say --peer ADDR"},
	} {
		args := append([]string{"verify", "--topic", v.name, "--brokers", v.kafka.Brokers()}, test.args...)
		if test.args[0] == "--brokers" {
			args = append([]string{"verify", "--topic", v.name}, test.args...)
		}
		if o := v.command(args...); o.code != 1 || !strings.Contains(o.errOut, test.want) || o.out != "" {
			t.Errorf("%v: exit code %d, %q, want %q", test.args, o.code, o.errOut, test.want)
		}
	}
}

// TestVerifyConfiguration: brokers, password and topic from the configuration.
func TestVerifyConfiguration(t *testing.T) {
	t.Parallel()
	v := newVerifyTopic(t, 1, rig.KafkaOptions{User: "bmpha", Password: "s3cret"})
	v.produce([]said{{instance: 1, token: 1, n: 1, prefix: 1}})
	file := filepath.Join(t.TempDir(), "bmpha.yaml")
	write := func(password, more string) {
		t.Helper()
		v.must(os.WriteFile(file, fmt.Appendf(nil, `process: a
redis: {address: "127.0.0.1:6379"}
kafka:
  brokers: %q
  topic: %s
  sasl: {mechanism: PLAIN, username: bmpha, password: %s}
%s`, v.kafka.Brokers(), v.name, password, more), 0o600))
	}
	write("s3cret", "")
	if o := v.command("verify", "-c", file); o.code != 0 || !strings.Contains(o.out, "1 record") {
		t.Errorf("exit code %d: %s%s", o.code, o.out, o.errOut)
	}
	write("wrong", "")
	if o := v.command("verify", "-c", file, "--timeout", "15s"); o.code != 1 || strings.Contains(o.errOut, "wrong") || !strings.Contains(o.errOut, "SASL") {
		t.Errorf("exit code %d: %s%s", o.code, o.out, o.errOut)
	}
	write("s3cret", "  properties: {ssl.cipher.suites: ALL}\n")
	if o := v.command("verify", "-c", file); o.code != 1 || !strings.Contains(o.errOut, "kafka.properties.ssl.cipher.suites") {
		t.Errorf("exit code %d: %s%s", o.code, o.out, o.errOut)
	}
}

// TestVerifyTLS: what the configuration says of certificates holds here, too.
func TestVerifyTLS(t *testing.T) {
	t.Parallel()
	l := &lab{t: t, name: "secure"}
	cert, err := rig.MakeCertificate(t.TempDir())
	l.must(err)
	stranger, err := rig.MakeCertificate(t.TempDir())
	l.must(err)
	pair, err := tls.LoadX509KeyPair(cert.Cert, cert.Key)
	l.must(err)
	for _, test := range []struct {
		host, ca, more string
		code           int
		want           string
	}{
		{"127.0.0.1", cert.CA, "", 0, "topic secure: 0 records"},
		{"127.0.0.2", cert.CA, "", 1, "127.0.0.2"}, // the certificate is for 127.0.0.1
		{"127.0.0.2", cert.CA, ", verify_hostname: false", 0, "topic secure: 0 records"},
		{"127.0.0.2", stranger.CA, ", verify_hostname: false", 1, "unknown authority"},
		{"127.0.0.1", stranger.CA, "", 1, "unknown authority"},
		{"127.0.0.1", cert.Key, "", 1, "kafka.tls.ca: no certificate in "},
	} {
		k, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, l.name),
			kfake.ListenFn(func(network, _ string) (net.Listener, error) {
				ln, err := net.Listen(network, test.host+":0")
				if err != nil {
					return nil, err
				}
				return tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{pair}}), nil
			}),
			kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-512", "bmpha", "s3cret"))
		l.must(err)
		file := filepath.Join(t.TempDir(), "bmpha.yaml")
		l.must(os.WriteFile(file, fmt.Appendf(nil, `process: a
redis: {address: "127.0.0.1:6379"}
kafka:
  brokers: %q
  topic: %s
  tls: {enabled: true, ca: %s%s}
  sasl: {mechanism: SCRAM-SHA-512, username: bmpha, password: s3cret}
`, k.ListenAddrs()[0], l.name, test.ca, test.more), 0o600))
		// What fails may do so by the timeout only, what does not comes well before it.
		patient := "15s"
		if test.code == 0 {
			patient = "1m"
		}
		o := l.command("verify", "-c", file, "--timeout", patient)
		k.Close()
		if o.code != test.code || !strings.Contains(o.out+o.errOut, test.want) {
			t.Errorf("%+v: exit code %d: %s%s", test, o.code, o.out, o.errOut)
		}
	}
}

// TestVerifyTransactions: what was taken back is not there, and the mark of a
// transaction that is the last of a topic does not make verify wait.
func TestVerifyTransactions(t *testing.T) {
	t.Parallel()
	v := newVerifyTopic(t, 1, rig.KafkaOptions{})
	cl, err := kgo.NewClient(append(v.kafka.Client(), kgo.DefaultProduceTopic(v.name), kgo.TransactionalID("a"))...)
	v.must(err)
	defer cl.Close()
	ctx := v.within(time.Minute)
	for _, end := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort} {
		v.must(cl.BeginTransaction())
		for i := range 3 {
			value := strings.Replace(`{"event_type": "log", "log_type": "update", "bmp_router": "192.0.2.1", "peer_ip": "192.0.2.11", "afi": 1, "safi": 1, "ip_prefix": "198.18.N.0/24"}`, "N", strconv.Itoa(i), 1)
			v.must(cl.ProduceSync(ctx, kgo.StringRecord(value)).FirstErr())
		}
		v.must(cl.EndTransaction(ctx, end))
	}
	o := v.verify("--json", "--timeout", "30s")
	if r := parseResult(t, o); o.code != 0 || r.Report.Records != 3 || r.Partitions[0].Until != 8 {
		t.Errorf("exit code %d: %s%s", o.code, o.out, o.errOut)
	}
}

// TestVerifyProgress: drawn now and then over itself, and gone in the end.
func TestVerifyProgress(t *testing.T) {
	var b strings.Builder
	p := progress{w: &b, total: 200}
	p.clear()
	for i := range 10 {
		p.done += 10
		p.draw(verifyStart.Add(time.Duration(i) * 100 * time.Millisecond))
	}
	p.clear()
	const line = "\r\x1b[K"
	if want := line + "10 of 200 records, 5 %" + line + "30 of 200 records, 15 %" + line + "50 of 200 records, 25 %" +
		line + "70 of 200 records, 35 %" + line + "90 of 200 records, 45 %" + line; b.String() != want {
		t.Errorf("%q", b.String())
	}
}

// TestVerifyFRR and TestVerifyGoBGP: a real router, whose neighbours announce and
// withdraw, through a pair of collectors with a handover. In the end the topic and
// the router's own text say the same, with every attribute.
func TestVerifyFRR(t *testing.T) {
	rig.Require(t, rig.FRRPart)
	verifyRouter(t, startFRR, "--frr", func(ctx context.Context, r rig.Router, family string) ([]byte, error) {
		return r.(*rig.FRR).VTY(ctx, "show bgp "+family+" unicast json")
	}, func(ctx context.Context, r rig.Router, peer string) ([]byte, error) {
		return r.(*rig.FRR).VTY(ctx, "show bgp ipv4 unicast neighbors "+peer+" received-routes json")
	})
}

func TestVerifyGoBGP(t *testing.T) {
	rig.Require(t, rig.GoBGPPart)
	verifyRouter(t, startGoBGP, "--gobgp", func(ctx context.Context, r rig.Router, family string) ([]byte, error) {
		return askGoBGP(ctx, r, "global", "rib", "-a", family, "-j")
	}, func(ctx context.Context, r rig.Router, peer string) ([]byte, error) {
		return askGoBGP(ctx, r, "neighbor", peer, "adj-in", "-j")
	})
}

// askGoBGP runs gobgp, at the address that gobgpd was told.
func askGoBGP(ctx context.Context, r rig.Router, args ...string) ([]byte, error) {
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", r.(*rig.GoBGP).PID()))
	if err != nil {
		return nil, err
	}
	told := strings.Split(string(cmdline), "\x00")
	at := slices.Index(told, "--api-hosts")
	if at < 0 {
		return nil, fmt.Errorf("gobgpd runs as %q", told)
	}
	host, port, err := net.SplitHostPort(told[at+1])
	if err != nil {
		return nil, err
	}
	return exec.CommandContext(ctx, "gobgp", append([]string{"-u", host, "-p", port}, args...)...).Output()
}

type asking func(ctx context.Context, r rig.Router, what string) ([]byte, error)

func verifyRouter(t *testing.T, start func(context.Context, rig.RouterOptions) (rig.Router, error), flag string, table, received asking) {
	t.Parallel()
	l := newLab(t).consume(1)
	ms := l.cluster("a", "b")
	var neighbors []rig.Neighbor
	for i := range 2 {
		neighbors = append(neighbors, rig.Neighbor{Addr: netip.AddrFrom4([4]byte{127, 2, 0, byte(41 + i)}), AS: uint32(65001 + i)})
	}
	router, err := start(l.within(time.Minute), rig.RouterOptions{Neighbors: neighbors, Collectors: []string{ms[0].listen, ms[1].listen}})
	l.must(err)
	t.Cleanup(func() { l.must(router.Close()) })
	rng := rand.New(rand.NewPCG(3, 4))
	talk := func(s *rig.Speaker, as uint32) {
		for i := range 300 {
			a := rig.Attributes{NextHop: netip.MustParseAddr("192.0.2.11"), ASPath: []uint32{as, 64500 + rng.Uint32N(30)}, MED: rng.Uint32N(3),
				Origin: uint8(rng.IntN(3)), Communities: []uint32{as<<16 | rng.Uint32N(9), 0xffffff01}, Large: [][3]uint32{{as, 1, rng.Uint32N(9)}}}
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i), 0}), 24)
			if i%3 == 0 {
				a.NextHop = netip.MustParseAddr("2001:db8::11")
				p = netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(i >> 8), byte(i)}), 48)
			}
			if l.must(s.Announce(a, p)); rng.IntN(4) == 0 {
				l.must(s.Withdraw(p))
			}
		}
	}
	var speakers []*rig.Speaker
	for i, n := range neighbors {
		s, err := rig.Speak(l.within(time.Minute), rig.SpeakerOptions{Router: router.BGP(), Local: n.Addr, AS: n.AS, ID: netip.AddrFrom4([4]byte{192, 0, 2, byte(11 + i)})})
		l.must(err)
		t.Cleanup(func() { l.must(s.Close()) })
		speakers = append(speakers, s)
		talk(s, n.AS)
	}
	for _, m := range ms {
		m.seen("the router", func(st *control.Status) error {
			if len(st.Routers) != 1 || st.Routers[0].PeersUp < len(neighbors) {
				return fmt.Errorf("%s hears %+v", m.name, st.Routers)
			}
			return nil
		})
	}
	if o := l.command("maintenance", "--socket", ms[0].socket); o.code != 0 {
		l.errorf("maintenance: exit code %d, %s%s", o.code, o.out, o.errOut)
	}
	ms[1].role(control.RoleActive)
	for i, n := range neighbors { // said after the handover, so that it must hold
		talk(speakers[i], n.AS)
	}
	dir := t.TempDir()
	print := func(name string, ask asking, what string) string {
		text, err := ask(l.within(20*time.Second), router, what)
		l.must(err)
		file := filepath.Join(dir, name)
		l.must(os.WriteFile(file, text, 0o600))
		return file
	}
	var last outcome
	l.untilWithin(time.Minute, "verify finds the tables equal", func() error {
		last = l.verify("--router", router.Address().String(), "--json",
			flag, print("4", table, "ipv4"), flag, print("6", table, "ipv6"))
		if last.code != 0 {
			return fmt.Errorf("exit code %d: %s%s", last.code, last.errOut, last.out[max(0, len(last.out)-3000):])
		}
		return nil
	})
	r := parseResult(t, last)
	if c := r.Comparison; c.Equal < 200 || !slices.Equal(c.AFIs, []uint16{1, 2}) {
		t.Errorf("%+v", c)
	}
	rt := r.Report.Routers[0]
	byInstance := map[string]bool{}
	for _, s := range rt.Senders {
		byInstance[s.Instance] = true
	}
	for _, m := range ms {
		if want := fmt.Sprintf("%016x", m.instance()); !byInstance[want] {
			t.Errorf("%s (%s) is not among the senders %v", m.name, want, slices.Collect(maps.Keys(byInstance)))
		}
	}
	if rt.PeersUp != len(neighbors) && rt.PeersUp != len(neighbors)+1 { // GoBGP's Loc-RIB is one, too
		t.Errorf("%d peers up of %d", rt.PeersUp, rt.Peers)
	}
	// Pre-policy, peer by peer; FRR does not say which.
	for _, n := range neighbors {
		l.until("verify finds the tables before policy equal", func() error {
			o := l.verify("--peer", n.Addr.String(), flag, print("pre-"+strconv.Itoa(int(n.AS)), received, n.Addr.String()))
			if o.code != 0 || !strings.Contains(o.out, "adj-in-pre of "+router.Address().String()+", ipv4") {
				return fmt.Errorf("exit code %d: %s%s", o.code, o.errOut, o.out)
			}
			return nil
		})
	}
	// A route less in the router's text is one more in Kafka.
	text, err := os.ReadFile(filepath.Join(dir, "4"))
	l.must(err)
	var printed map[string]any
	l.must(json.Unmarshal(text, &printed))
	routes := printed
	if flag == "--frr" {
		routes = printed["routes"].(map[string]any)
	}
	for prefix, paths := range routes {
		delete(routes, prefix)
		short := filepath.Join(dir, "short")
		b, err := json.Marshal(printed)
		l.must(err)
		l.must(os.WriteFile(short, b, 0o600))
		o := l.verify(flag, short)
		if want := fmt.Sprintf(" %d extra, ", len(paths.([]any))); o.code != exitUnsound || !strings.Contains(o.out, want) || !strings.Contains(o.out, prefix) {
			t.Errorf("without %s: exit code %d, want %q: %s%s", prefix, o.code, want, o.errOut, o.out)
		}
		break
	}
}

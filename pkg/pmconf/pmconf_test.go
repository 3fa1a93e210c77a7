package pmconf

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bmpha/bmpha/pkg/config"
)

var update = flag.Bool("update", false, "write the golden files")

func parse(t *testing.T, src string) *Config {
	t.Helper()
	c, err := Parse("pmbmpd.conf", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		name, src string
		want      []Entry
	}{
		{"empty", "", nil},
		{"comments", "! a: b\n # c: d\n\n  \t\n", nil},
		{"space and case", "  BMP_ Daemon_IP :127.0.0.1 \r\n", []Entry{{1, "bmp_daemon_ip", "", "127.0.0.1"}}},
		{"first colon", "redis_host: a:6379", []Entry{{1, "redis_host", "", "a:6379"}}},
		{"plugin", "aggregate[p]: src_host", []Entry{{1, "aggregate", "p", "src_host"}}},
		{"no value", "\nbmp_daemon_ip:\n", []Entry{{2, "bmp_daemon_ip", "", ""}}},
		{"no comment behind a value", "a: b ! c", []Entry{{1, "a", "", "b ! c"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, parse(t, tt.src).Entries); diff != "" {
				t.Errorf("entries (-want +got):\n%s", diff)
			}
		})
	}
}

func TestValues(t *testing.T) {
	c := parse(t, "bmp_daemon_port: 1\nbmp_daemon_port: 17911 ! x\nbmp_daemon_ha: TRUE\nbmp_daemon_max_peers: many\nbmp_daemon_ip: ::\nbmp_daemon_ip:\n")
	if got := c.port(); got != 17911 {
		t.Errorf("port %d, want that of the last line, up to the space", got)
	}
	if !c.isTrue("bmp_daemon_ha") || c.isTrue("bmp_daemon") {
		t.Error("booleans")
	}
	if got := c.number("bmp_daemon_max_peers", 4); got != 4 {
		t.Errorf("max_peers %d, want the default", got)
	}
	if got := c.value("bmp_daemon_ip"); got != "::" {
		t.Errorf("ip %q, want that of the line with a value", got)
	}
	if got := parse(t, "bmp_daemon_port: 99999").port(); got != 1790 {
		t.Errorf("port %d, want the default, as pmacct ignores what is no port", got)
	}
}

// What pmacct does not start with is said with file and line, all of it.
func TestErrors(t *testing.T) {
	_, err := Parse("x.conf", []byte("a: b\nsecret words\nbmp_daemon_msglog_kafka_topic: t\n\nbmp_daemon_msglog_file: f\nno colon\n"))
	want := `x.conf:2: expected key: value, found no colon
x.conf:6: expected key: value, found no colon
x.conf:5: bmp_daemon_msglog_file excludes bmp_daemon_msglog_kafka_topic of line 3`
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want\n%s", err, want)
	}
	var one *Error
	if !errors.As(err, &one) || one.Line != 2 {
		t.Errorf("got %+v", one)
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	large := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(large, make([]byte, maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(large); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("large file: %v", err)
	}
}

func TestParseProperties(t *testing.T) {
	p := ParseProperties("k", []byte("global, client.id, x, y\n! c\nfoo\nglobal,acks,1\n topic ,request.timeout.ms ,\nGLOBAL, a, b\nglobal,,x\n"))
	want := &Properties{
		File:    "k",
		List:    []Property{{1, "client.id", "x, y"}, {4, "acks", "1"}, {5, "request.timeout.ms", ""}},
		Ignored: []int{3, 6, 7},
	}
	if diff := cmp.Diff(want, p); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestPropose: the configuration and the diff of each file in testdata, in each
// mode; the diff applied gives one that does not contradict it, and taken back the
// file as it was.
func TestPropose(t *testing.T) {
	files, err := filepath.Glob("testdata/*.conf")
	if err != nil || len(files) == 0 {
		t.Fatal(err)
	}
	for _, file := range append(files, "../../pmacct/pmbmpd.conf") {
		for _, mode := range []Mode{Relay, Intake, Both} {
			t.Run(filepath.Base(file)+"/"+string(mode), func(t *testing.T) { testPropose(t, file, mode) })
		}
	}
}

func testPropose(t *testing.T, file string, mode Mode) {
	theirs, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	theirs.File = filepath.Base(file)
	p, err := Propose(theirs, Options{Mode: mode, Host: "collector-a", CheckProperty: func(name, _ string) error {
		if strings.HasSuffix(name, "timeout.ms") || strings.HasSuffix(name, ".acks") {
			return fmt.Errorf("property %s is refused", name)
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, fmt.Sprintf("testdata/%s.%s.yaml", strings.TrimSuffix(theirs.File, ".conf"), mode), p.YAML)
	if strings.Contains(string(p.YAML)+string(p.Diff), "hunter") {
		t.Error("a secret is printed")
	}

	dir := t.TempDir()
	src, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	changed := filepath.Join(dir, theirs.File)
	if err := os.WriteFile(changed, src, 0o600); err != nil {
		t.Fatal(err)
	}
	patch(t, changed, p.Diff)
	after, err := Load(changed)
	if err != nil {
		t.Fatal(err)
	}
	secrets := strings.NewReplacer("password_file: /etc/bmpha/redis.password", "password: x", "password_file: /etc/bmpha/kafka.password", "password: x")
	ours, err := config.Parse("bmpha.yaml", []byte(secrets.Replace(string(p.YAML))), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range Check(after, ours) {
		if !f.Note {
			t.Errorf("they contradict each other: %v", f)
		}
	}
	patch(t, changed, p.Diff, "-R")
	if back, err := os.ReadFile(changed); err != nil || string(back) != string(src) {
		t.Errorf("taken back the file is another one: %v\n%s", err, back)
	}
}

func patch(t *testing.T, file string, diff []byte, args ...string) {
	t.Helper()
	if len(diff) == 0 {
		return
	}
	if _, err := exec.LookPath("patch"); err != nil {
		t.Skip("patch is not installed")
	}
	cmd := exec.Command("patch", append(args, "--binary", "--fuzz=0", "--posix", file)...)
	cmd.Stdin = strings.NewReader(string(diff))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("patch %v: %v\n%s\n%s", args, err, out, diff)
	}
}

func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got, -update writes it):\n%s", file, diff)
	}
}

func TestProposeErrors(t *testing.T) {
	for _, tt := range []struct {
		src  string
		o    Options
		want string
	}{
		{"a: b", Options{Mode: "front"}, `no mode "front"`},
		{"a: b", Options{Mode: Both}, "writes nothing to Kafka or to a file"},
		{"bmp_daemon_msglog_amqp_routing_key: x", Options{Mode: Intake}, "pmbmpd.conf:1: bmp_daemon_msglog_amqp_routing_key: this daemon writes to RabbitMQ"},
		{"pcap_savefile: x", Options{Mode: Relay}, "pmbmpd.conf:1: pcap_savefile: this daemon reads a file"},
		{"a: b", Options{Mode: Relay, Target: "host:1791"}, "expected IP:port"},
		{"a: b", Options{Mode: Relay, Intake: ":9093"}, "expected IP:port"},
		{"a: b", Options{Mode: Relay, Host: "a host"}, "no configuration came out that bmpha takes"},
	} {
		_, err := Propose(parse(t, tt.src), tt.o)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q %+v: got %v, want %s", tt.src, tt.o, err, tt.want)
		}
	}
}

// The lines next to a secret are not shown, and patch still finds the place.
func TestDiffAroundSecrets(t *testing.T) {
	lines := []string{"sql_passwd: hunter", "bmp_daemon_port: 1790", "redis_passwd: hunter", "a: b", "c: d", "e: f", "g: h", "i: j", "bmp_daemon_ip: ::", "k: l", "x: community hunter"}
	for n := 0; n <= len(lines); n++ {
		src := strings.Join(append(append([]string{}, lines[n:]...), lines[:n]...), "\n") + "\n"
		c := parse(t, src)
		p, err := Propose(c, Options{Mode: Relay, Host: "h"})
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(p.Diff), "hunter") {
			t.Errorf("a secret is printed:\n%s", p.Diff)
		}
		file := filepath.Join(t.TempDir(), "pmbmpd.conf")
		if err := os.WriteFile(file, []byte(src), 0o600); err != nil {
			t.Fatal(err)
		}
		patch(t, file, p.Diff)
		after, err := Load(file)
		if err != nil || after.port() != 1791 || after.value("bmp_daemon_ip") != "127.0.0.1" || len(after.Entries) != len(lines)+2 {
			t.Errorf("%v: %+v", err, after)
		}
		patch(t, file, p.Diff, "-R")
		if back, _ := os.ReadFile(file); string(back) != src {
			t.Errorf("taken back:\n%s", back)
		}
	}
}

// A pair that fits, and everything that can be wrong with it.
func TestCheck(t *testing.T) {
	const conf = `bmp_daemon_ip: 127.0.0.1
bmp_daemon_port: 1791
bmp_daemon_parse_proxy_header: true
bmp_daemon_max_peers: 1000
bmp_daemon_msglog_kafka_topic: bmp
bmp_daemon_msglog_kafka_broker_port: 9093
bmp_daemon_msglog_kafka_retry: 1
`
	const yaml = `process: a
redis: {address: "r:6379"}
kafka: {brokers: ["k1:9092"]}
listen: {address: ":1790"}
relay: {to: ["127.0.0.1:1791"]}
intake: {listen: ["127.0.0.1:9093"]}
`
	const msg = "bmp_daemon_msglog_kafka_"
	for _, tt := range []struct {
		name             string
		conf, confNew    string // replaced in conf
		yaml, yamlNew    string // and in yaml
		add, props, want string // lines of pmacct's, librdkafka's properties; the beginning of the finding
		more             bool   // others follow from it
	}{
		{name: "fits"},
		{name: "same port", more: true, conf: "port: 1791", confNew: "port: 1790", yaml: ":1791", yamlNew: ":1792",
			want: "pmbmpd.conf:2: bmp_daemon_port, bmpha.yaml:4:19: listen.address: both listen on port 1790"},
		{name: "same port as the intake", more: true, conf: "port: 1791", confNew: "port: 9093", yaml: ":1791", yamlNew: ":1792",
			want: "pmbmpd.conf:2: bmp_daemon_port, bmpha.yaml:6:19: intake.listen[0]: both listen on port 9093"},
		{name: "same port as BGP", add: "bgp_daemon: true\nbgp_daemon_port: 1790",
			want: "pmbmpd.conf:9: bgp_daemon_port, bmpha.yaml:4:19: listen.address: both listen on port 1790"},
		{name: "no PROXY", conf: "header: true", confNew: "header: false",
			want: "pmbmpd.conf:3: bmp_daemon_parse_proxy_header, bmpha.yaml:5:1: relay.proxy: pmacct does not look for the header"},
		{name: "PROXY without a relay", yaml: "relay: {to: [\"127.0.0.1:1791\"]}\n",
			want: "pmbmpd.conf:3: bmp_daemon_parse_proxy_header, bmpha.yaml:1:1: relay.to: without the relay any router could pass for another one"},
		{name: "PROXY v2", yaml: "relay: {", yamlNew: "relay: {proxy: v2, ", want: "pmbmpd.conf:3: bmp_daemon_parse_proxy_header, bmpha.yaml:5:16: relay.proxy: note: "},
		{name: "PROXY none", yaml: "relay: {", yamlNew: "relay: {proxy: none, ", want: "pmbmpd.conf:3: bmp_daemon_parse_proxy_header, bmpha.yaml:5:16: relay.proxy: note: pmacct sees bmpha's address"},
		{name: "another port", yaml: ":1791", yamlNew: ":1792",
			want: "pmbmpd.conf:2: bmp_daemon_port, bmpha.yaml:5:14: relay.to[0]: sessions are passed on to 127.0.0.1:1792, but pmacct listens on 127.0.0.1:1791"},
		{name: "another address", conf: "ip: 127.0.0.1", confNew: "ip: 192.0.2.1",
			want: "pmbmpd.conf:1: bmp_daemon_ip, bmpha.yaml:5:14: relay.to[0]: sessions are passed on"},
		{name: "localhost", yaml: "127.0.0.1:1791", yamlNew: "localhost:1791"},
		{name: "open to all", conf: "ip: 127.0.0.1", confNew: "ip: ::", want: "pmbmpd.conf:1: bmp_daemon_ip, bmpha.yaml:5:9: relay.to: note: pmacct can be reached from outside"},
		{name: "no address", conf: "ip: 127.0.0.1", confNew: "ip: localhost", yaml: "127.0.0.1:1791", yamlNew: "192.0.2.1:1791",
			want: "pmbmpd.conf:1: bmp_daemon_ip, bmpha.yaml:5:9: relay.to: not an IP address"},
		{name: "few peers", conf: "peers: 1000", confNew: "peers: 10",
			want: "pmbmpd.conf:4: bmp_daemon_max_peers, bmpha.yaml:4:1: listen.max_sessions: pmacct takes 10 sessions and bmpha 1000"},
		{name: "no peers", conf: "bmp_daemon_max_peers: 1000\n",
			want: "pmbmpd.conf: bmp_daemon_max_peers, bmpha.yaml:4:1: listen.max_sessions: pmacct takes 4 sessions (10 in later"},
		{name: "list of routers", add: "bmp_daemon_allow_file: /none", want: "pmbmpd.conf:8: bmp_daemon_allow_file, bmpha.yaml:5:9: relay.to: pmacct compares it with bmpha's address"},
		{name: "still to Kafka", add: msg + "broker_host: k1\n" + msg + "broker_port: 9092",
			want: "pmbmpd.conf:8: bmp_daemon_msglog_kafka_broker_host, bmpha.yaml:3:9: kafka.brokers: BMP messages still go to Kafka, past bmpha"},
		{name: "to Kafka as well", add: msg + "config_file: k.cfg", props: "global, bootstrap.servers, k1",
			want: "k.cfg:1: bootstrap.servers, bmpha.yaml:3:9: kafka.brokers: BMP messages still go to Kafka, past bmpha"},
		{name: "TLS to the intake", add: msg + "config_file: k.cfg", props: "global, security.protocol, ssl",
			want: "pmbmpd.conf:8: bmp_daemon_msglog_kafka_config_file, bmpha.yaml:6:10: intake.listen: security.protocol is ssl there (line 1)"},
		{name: "elsewhere", add: msg + "broker_port: 9094",
			want: "pmbmpd.conf: bmp_daemon_msglog_kafka_broker_host, bmpha.yaml:6:19: intake.listen[0]: BMP messages go to 127.0.0.1:9094, where bmpha does not listen"},
		{name: "dump elsewhere", add: "bmp_dump_refresh_time: 60\nbmp_dump_kafka_topic: d\nbmp_dump_kafka_broker_host: other", want: "pmbmpd.conf:10: bmp_dump_kafka_broker_host, bmpha.yaml:6:19: intake.listen[0]: note: "},
		{name: "dump never", add: "bmp_dump_kafka_topic: d\nbmp_dump_kafka_broker_port: 9093", want: "pmbmpd.conf: bmp_dump_refresh_time, bmpha.yaml:6:1: intake: pmacct writes no dumps of BMP tables without it"},
		{name: "twice, decoded here", yaml: "intake: {listen: [\"127.0.0.1:9093\"]}\n",
			want: "pmbmpd.conf:5: bmp_daemon_msglog_kafka_topic, bmpha.yaml:3:1: kafka.topic: pmacct and bmpha both write BMP messages to Kafka: everything twice"},
		{name: "dumps twice", add: "bmp_dump_refresh_time: 60\nbmp_dump_kafka_topic: d\nbmp_dump_kafka_broker_host: k1\nbmp_dump_kafka_broker_port: 9092", conf: msg + "topic: bmp\n",
			yaml: "intake: {listen: [\"127.0.0.1:9093\"]}\n", yamlNew: "dump: {period: 1h, topic: d}\n",
			want: "pmbmpd.conf:8: bmp_dump_kafka_topic, bmpha.yaml:6:27: dump.topic: pmacct and bmpha both write dumps of BMP tables to Kafka: everything twice"},
		{name: "dumps of each", add: "bmp_dump_refresh_time: 60\nbmp_dump_kafka_topic: d\nbmp_dump_kafka_broker_host: k1\nbmp_dump_kafka_broker_port: 9092", conf: msg + "topic: bmp\n",
			yaml: "intake: {listen: [\"127.0.0.1:9093\"]}\n",
			want: "pmbmpd.conf:8: bmp_dump_kafka_topic, bmpha.yaml:1:1: dump: note: dumps of BMP tables go to Kafka from each collector"},
		{name: "dumps to the same files", add: "bmp_dump_refresh_time: 60\nbmp_dump_file: /d/$bmp_router", conf: msg + "topic: bmp\n",
			yaml: "intake: {listen: [\"127.0.0.1:9093\"]}\n", yamlNew: "dump: {period: 1h, file: /d/$bmp_router}\n",
			want: "pmbmpd.conf:8: bmp_dump_file, bmpha.yaml:6:26: dump.file: pmacct and bmpha write the same files"},
		{name: "twice, always", yaml: "intake:", yamlNew: "output: {decode: always}\nintake:",
			want: "pmbmpd.conf:5: bmp_daemon_msglog_kafka_topic, bmpha.yaml:6:18: output.decode: bmpha decodes BMP and takes pmacct's records as well: everything twice"},
		{name: "partition", add: msg + "partition: 1", want: "pmbmpd.conf:8: bmp_daemon_msglog_kafka_partition, bmpha.yaml:6:1: intake.partitions: there is no partition 1 of 1"},
		{name: "port in the topic", add: msg + "topic: t.$bmp_router.$peer_tcp_port", want: "pmbmpd.conf:8: bmp_daemon_msglog_kafka_topic, bmpha.yaml:3:1: kafka.order: a router's port differs"},
		{name: "port in the key", add: msg + "partition_key: $bmp_router.$bmp_router_port", want: "pmbmpd.conf:8: bmp_daemon_msglog_kafka_partition_key, bmpha.yaml:3:1: kafka.order: a router's port differs"},
		{name: "port in the key, no order", add: msg + "partition_key: $bmp_router.$bmp_router_port", yaml: "kafka: {", yamlNew: "kafka: {order: none, "},
		{name: "retry", conf: msg + "retry: 1\n", want: "pmbmpd.conf: bmp_daemon_msglog_kafka_retry, bmpha.yaml:6:10: intake.listen: note: after an error"},
		{name: "native", add: "bmp_daemon_ha: true", want: "pmbmpd.conf:8: bmp_daemon_ha, bmpha.yaml:1:1: cluster: pmacct takes part in the election as well"},
		{name: "no BMP", add: "nfacctd_port: 2055", want: "pmbmpd.conf: bmp_daemon, bmpha.yaml:5:1: relay: nfacctd hears no BMP without it"},
		{name: "nothing comes in", conf: msg + "topic: bmp\n", want: "pmbmpd.conf: bmp_daemon_msglog_kafka_topic, bmpha.yaml:6:19: intake.listen[0]: pmacct writes nothing to Kafka"},
		{name: "beside it", more: true, yaml: "relay: {to: [\"127.0.0.1:1791\"]}\nintake: {listen: [\"127.0.0.1:9093\"]}\n", conf: "header: true", confNew: "header: false",
			want: "pmbmpd.conf:2: bmp_daemon_port, bmpha.yaml:1:1: relay: bmpha stands neither in front of this daemon nor behind it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := parse(t, strings.Replace(conf, tt.conf, tt.confNew, 1)+tt.add+"\n")
			c.File = "pmbmpd.conf"
			if tt.name == "no BMP" {
				c.File = "pmacct.conf"
			}
			if tt.props != "" {
				c.Kafka["k.cfg"] = ParseProperties("k.cfg", []byte(tt.props))
			}
			b, err := config.Parse("bmpha.yaml", []byte(strings.Replace(yaml, tt.yaml, tt.yamlNew, 1)), nil)
			if err != nil {
				t.Fatal(err)
			}
			got := Check(c, b)
			want := strings.Replace(tt.want, "pmbmpd.conf", c.File, 1)
			switch {
			case want == "" && len(got) > 0:
				t.Errorf("got %v, want nothing", got)
			case want != "" && (len(got) == 0 || !strings.HasPrefix(got[0].String(), want)):
				t.Errorf("got %v, want\n%s", got, want)
			case len(got) > 1 && !tt.more:
				t.Errorf("got more: %v", got[1:])
			}
			for _, f := range got {
				if f.Do == "" || !strings.Contains(f.String(), "\n\t"+f.Do) {
					t.Errorf("%v does not say what to do", f)
				}
			}
		})
	}
}

func TestCheckFiles(t *testing.T) {
	const yaml = "process: a\nredis: {address: \"r:6379\"}\nkafka: {brokers: [\"k1:9092\"]}\nlisten: {address: []}\nintake: {files: [\"/log/bmp-*.json\"]}\n"
	b, err := config.Parse("bmpha.yaml", []byte(yaml), nil)
	if err != nil {
		t.Fatal(err)
	}
	for src, want := range map[string]string{
		"bmp_daemon_msglog_file: /log/bmp-$bmp_router.json": "",
		"bmp_daemon_msglog_file: /log/$bmp_router.json":     "pmbmpd.conf:1: bmp_daemon_msglog_file, bmpha.yaml:5:18: intake.files[0]: the files that pmacct writes are not followed",
		"": "pmbmpd.conf: bmp_daemon_msglog_file, bmpha.yaml:5:18: intake.files[0]: note: pmacct writes BMP messages to no file",
	} {
		got := Check(parse(t, src), b)
		if (want == "") != (len(got) == 0) || want != "" && !strings.HasPrefix(got[0].String(), want) {
			t.Errorf("%q: got %v, want %s", src, got, want)
		}
	}
}

func TestParseAllow(t *testing.T) {
	got := parseAllow([]byte("192.0.2.1\n\n! x\n2001:db8::1/32\n::ffff:192.0.2.2\nfe80::1%eth0\n"))
	want := []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("192.0.2.2/32")}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// FuzzParse: whatever is in the file, it is read or each error has a line; and what
// is read gives a configuration that bmpha takes, or an error, in each mode.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.conf")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range append(files, "../../pmacct/pmbmpd.conf", "../../pmacct/nfacctd-both.conf") {
		src, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(src)
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		c, err := Parse("fuzz.conf", src)
		if err != nil {
			var one *Error
			if !errors.As(err, &one) || one.Line < 1 || one.File != "fuzz.conf" {
				t.Fatalf("an error without a place: %v", err)
			}
			return
		}
		for _, mode := range []Mode{Relay, Intake, Both} {
			p, err := Propose(c, Options{Mode: mode, Host: "h"})
			if err != nil {
				if strings.Contains(err.Error(), "no configuration came out") {
					t.Fatal(err)
				}
				continue
			}
			text := strings.NewReplacer("password_file: /etc/bmpha/redis.password", "password: x").Replace(string(p.YAML))
			b, err := config.Parse("bmpha.yaml", []byte(text), nil)
			if err != nil {
				t.Fatalf("%v\n%s", err, p.YAML)
			}
			Check(c, b)
		}
	})
}

// FuzzParseProperties: the same for librdkafka's properties.
func FuzzParseProperties(f *testing.F) {
	src, err := os.ReadFile("testdata/kafka.cfg")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(src)
	f.Add([]byte("global,bootstrap.servers,[::1]:1,x://y:2,::1\ntopic,a,\nglobal, security.protocol, ssl\nglobal, ssl.endpoint.identification.algorithm, none"))
	f.Fuzz(func(t *testing.T, src []byte) {
		props := ParseProperties("k.cfg", src)
		for _, x := range props.List {
			if x.Line < 1 || x.Name == "" {
				t.Fatalf("%+v", x)
			}
		}
		c, err := Parse("fuzz.conf", []byte("bmp_daemon_msglog_kafka_topic: t\nbmp_daemon_msglog_kafka_config_file: k.cfg\n"))
		if err != nil {
			t.Fatal(err)
		}
		c.Kafka["k.cfg"] = props
		p, err := Propose(c, Options{Mode: Intake, Host: "h"})
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"sasl.password", "ssl.key.password"} {
			if x, ok := props.Get(name); ok && len(x.Value) > 12 && strings.Count(string(src), x.Value) == 1 && strings.Contains(string(p.YAML), x.Value) {
				t.Fatalf("%s is printed:\n%s", name, p.YAML)
			}
		}
	})
}

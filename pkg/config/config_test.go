package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var update = flag.Bool("update", false, "write the golden files")

// values compares configurations but for where values came from.
var values = cmp.Options{cmpopts.IgnoreUnexported(Config{}), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})}

const minimal = `process: collector-a
redis: {address: 127.0.0.1:6379}
kafka: {brokers: 127.0.0.1:9092}
`

// environment is an environment for Parse.
func environment(vars map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		value, ok := vars[name]
		return value, ok
	}
}

func parseOK(t *testing.T, src string, vars map[string]string) *Config {
	t.Helper()
	c, err := Parse("bmpha.yaml", []byte(src), environment(vars))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Each file below testdata/bad has its exact errors beside it.
func TestBadFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no bad files: %v", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			src, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Parse("bmpha.yaml", src, nil)
			var errs Errors
			if !errors.As(err, &errs) || len(errs) == 0 {
				t.Fatalf("got error %v, want Errors", err)
			}
			got := err.Error() + "\n"
			if strings.Contains(got, "geheim") {
				t.Errorf("an error shows a secret:\n%s", got)
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".err"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMinimal(t *testing.T) {
	got := parseOK(t, minimal, nil)
	want := Default()
	want.Process = "collector-a"
	want.Redis.Address = "127.0.0.1:6379"
	want.Kafka.Brokers = []string{"127.0.0.1:9092"}
	if diff := cmp.Diff(&want, got, values); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
}

// Addresses need no quotes, in whatever style they are written.
func TestAddressesInLists(t *testing.T) {
	want := []string{"kafka-1:9092", "192.0.2.1:9092"}
	for _, kafka := range []string{
		"kafka: {brokers: [kafka-1:9092, 192.0.2.1:9092]}",
		"kafka: {\"brokers\":[kafka-1:9092,192.0.2.1:9092]}",
		"kafka:\n  brokers: [kafka-1:9092, 192.0.2.1:9092]",
		"kafka:\n  brokers:\n  - kafka-1:9092\n  - 192.0.2.1:9092",
	} {
		c := parseOK(t, "process: a\nredis: {address: 127.0.0.1:6379}\n"+kafka, nil)
		if diff := cmp.Diff(want, c.Kafka.Brokers); diff != "" {
			t.Errorf("%s: brokers (-want +got):\n%s", kafka, diff)
		}
	}
}

func TestMinimalFromTheEnvironment(t *testing.T) {
	got := parseOK(t, "", map[string]string{
		"BMPHA_PROCESS":       "collector-a",
		"BMPHA_REDIS_ADDRESS": "127.0.0.1:6379",
		"BMPHA_KAFKA_BROKERS": "127.0.0.1:9092",
	})
	if diff := cmp.Diff(parseOK(t, minimal, nil), got, values); diff != "" {
		t.Errorf("configuration (-file +environment):\n%s", diff)
	}
}

// everything has a value other than the default for every key but the *_file
// ones, so that a key that is not read shows.
const everything = `
process: edge-a
cluster: {name: core, id: 7, members: 3}
listen:
  address: ["192.0.2.1:1790", "[2001:db8::1%eth0]:1791"]
  allow: [192.0.2.0/24, 198.51.100.7, 2001:db8::/32]
  max_sessions: 3
  max_message: 65536
  keepalive: 0
  read_timeout: 1m30s
  proxy: true
identity: sysname
routers:
  192.0.2.1: edge-1
  "2001:db8::1": edge-2
table: full
table_memory: 1GiB
redump: all
relay: {to: ["127.0.0.1:1791", "lab.example.net:1790"], proxy: v2, buffer: 1 MiB, resync: none, parallel: 7, patience: 3s}
intake:
  listen: 127.0.0.1:9093
  allow: 192.0.2.0/24
  advertise: 127.0.0.1:9094
  partitions: 12
  patience: 9s
  files: [/var/log/pmacct/bmp-*.json, /srv/bgp.json]
  positions: /tmp/positions.json
redis:
  address: redis.example.net:6380
  username: bmpha
  password: 0123
  database: 3
  tls: {enabled: true, ca: ca.pem, cert: cert.pem, key: key.pem, server_name: redis}
  heartbeat: 50ms
  expiry: 150ms
  scan: false
redis_lost: hold
link: {listen: ":1792", advertise: "collector-a:1792", secret: geheim-0123456789}
failback: never
hold: {memory: 64 MiB, window: 550ms, margin: 300ms}
spool: {dir: /tmp/spool, max_bytes: 128MiB}
sink: file
file: {path: /tmp/out.jsonl}
kafka:
  brokers: [kafka-1:9092, "[::1]:9093"]
  topic: bmp.$bmp_router
  key: ""
  order: none
  in_flight: 100
  patience: 11s
  client: reference
  read_back: 0
  dead_letter: dead.jsonl
  tls: {enabled: true, ca: ca.pem, cert: cert.pem, key: key.pem, key_password: geheim, verify_hostname: false}
  sasl: {mechanism: SCRAM-SHA-512, username: u, password: geheim}
  properties:
    linger.ms: 20
    enable.idempotence: true
    client.id: "a: b"
output: {decode: always, dialect: 1.8, rib: on, timestamps: epoch, writer_id: "$pmacct_build 'x'", header: false}
dump: {period: 1h, slots: 12, topic: dumps.$bmp_router, file: "/var/lib/bmpha/$bmp_router/%F.json", latest: "/var/lib/bmpha/$bmp_router.json", stats: false}
control: {socket: ./bmpha.sock, http: "127.0.0.1:1791"}
log: {level: debug, format: json}
`

// instead has what cannot be beside the rest of everything.
var instead = map[string]*strings.Replacer{
	"sentinel": strings.NewReplacer("address: redis.example.net:6380", "sentinel: {master: m, addresses: [s-1:26379, s-2:26379], username: s, password: geheim}"),
	"cluster":  strings.NewReplacer("address: redis.example.net:6380", "cluster: [redis-1:6379, redis-2:6379]", "database: 3", "database: 0"),
	"fencing":  strings.NewReplacer("client: reference", "fencing: true\n  commit_interval: 50ms", "sink: file", "sink: kafka", "read_back: 0", "read_back: 2s", "header: false", "header: true"),
}

func TestInstead(t *testing.T) {
	want := parseOK(t, everything, nil)
	for name, change := range map[string]func(c *Config){
		"sentinel": func(c *Config) {
			c.Redis.Address = ""
			c.Redis.Sentinel = Sentinel{Master: "m", Addresses: []string{"s-1:26379", "s-2:26379"}, Username: "s", Password: "geheim"}
		},
		"cluster": func(c *Config) {
			c.Redis.Address, c.Redis.Database = "", 0
			c.Redis.Cluster = []string{"redis-1:6379", "redis-2:6379"}
		},
		"fencing": func(c *Config) {
			c.Kafka.Client, c.Sink = ClientNative, SinkKafka
			c.Kafka.Fencing, c.Kafka.CommitInterval = true, 50*time.Millisecond
			c.Kafka.ReadBack, c.Output.Header = 2*time.Second, true
		},
	} {
		t.Run(name, func(t *testing.T) {
			want := *want
			change(&want)
			if diff := cmp.Diff(&want, parseOK(t, instead[name].Replace(everything), nil), values); diff != "" {
				t.Errorf("configuration (-want +got):\n%s", diff)
			}
		})
	}
}

func TestEverything(t *testing.T) {
	got := parseOK(t, everything, nil)
	tls := RedisTLS{Enabled: true, CA: "ca.pem", Cert: "cert.pem", Key: "key.pem", ServerName: "redis"}
	want := &Config{
		Process: "edge-a",
		Cluster: Cluster{Name: "core", ID: 7, Members: 3},
		Listen: Listen{
			Address: []string{"192.0.2.1:1790", "[2001:db8::1%eth0]:1791"},
			Allow: []netip.Prefix{
				netip.MustParsePrefix("192.0.2.0/24"),
				netip.MustParsePrefix("198.51.100.7/32"),
				netip.MustParsePrefix("2001:db8::/32"),
			},
			MaxSessions: 3, MaxMessage: 65536, ReadTimeout: 90 * time.Second, Proxy: true,
		},
		Table: TableFull, TableMemory: 1 << 30, Redump: RedumpAll,
		Relay: Relay{
			To: []string{"127.0.0.1:1791", "lab.example.net:1790"}, Proxy: ProxyV2, Buffer: 1 << 20,
			Resync: ResyncNone, Parallel: 7, Patience: 3 * time.Second,
		},
		Intake: Intake{
			Listen: []string{"127.0.0.1:9093"}, Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
			Advertise: "127.0.0.1:9094", Partitions: 12, Patience: 9 * time.Second,
			Files: []string{"/var/log/pmacct/bmp-*.json", "/srv/bgp.json"}, Positions: "/tmp/positions.json",
		},
		Spool:    Spool{Dir: "/tmp/spool", MaxBytes: 128 << 20},
		Identity: IdentitySysname,
		Routers: map[netip.Addr]string{
			netip.MustParseAddr("192.0.2.1"):   "edge-1",
			netip.MustParseAddr("2001:db8::1"): "edge-2",
		},
		Redis: Redis{
			Address: "redis.example.net:6380", Username: "bmpha", Password: "0123", Database: 3,
			TLS: tls, Heartbeat: 50 * time.Millisecond, Expiry: 150 * time.Millisecond,
		},
		RedisLost: RedisLostHold, Failback: FailbackNever,
		Link: Link{Listen: ":1792", Advertise: "collector-a:1792", Secret: "geheim-0123456789"},
		Hold: Hold{Memory: 64 << 20, Window: 550 * time.Millisecond, Margin: 300 * time.Millisecond},
		Sink: SinkFile,
		File: File{Path: "/tmp/out.jsonl"},
		Kafka: Kafka{
			Brokers: []string{"kafka-1:9092", "[::1]:9093"}, Topic: "bmp.$bmp_router", Order: OrderNone,
			InFlight: 100, Patience: 11 * time.Second, Client: ClientReference, DeadLetter: "dead.jsonl",
			CommitInterval: 100 * time.Millisecond,
			TLS:            KafkaTLS{Enabled: true, CA: "ca.pem", Cert: "cert.pem", Key: "key.pem", KeyPassword: "geheim"},
			SASL:           SASL{Mechanism: "SCRAM-SHA-512", Username: "u", Password: "geheim"},
			Properties:     Properties{"linger.ms": "20", "enable.idempotence": "true", "client.id": "a: b"},
		},
		Output: Output{Decode: DecodeAlways, Dialect: "1.8", RIB: RIBOn, Timestamps: TimestampsEpoch, WriterID: "$pmacct_build 'x'"},
		Dump: Dump{
			Period: time.Hour, Slots: 12, Topic: "dumps.$bmp_router",
			File: "/var/lib/bmpha/$bmp_router/%F.json", Latest: "/var/lib/bmpha/$bmp_router.json",
		},
		Control: Control{Socket: "./bmpha.sock", HTTP: "127.0.0.1:1791"},
		Log:     Log{Level: "debug", Format: "json"},
	}
	if diff := cmp.Diff(want, got, values); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
	defaults := Default()
	variants := []*Config{got}
	for _, r := range instead {
		variants = append(variants, parseOK(t, r.Replace(everything), nil))
	}
	for key, l := range leaves(reflect.ValueOf(&defaults).Elem(), "") {
		same := true
		for _, c := range variants {
			changed := maps.Collect(leaves(reflect.ValueOf(c).Elem(), ""))
			same = same && reflect.DeepEqual(l.value.Interface(), changed[key].value.Interface())
		}
		if same && !strings.HasSuffix(key, "_file") && key != "output.dialect" {
			t.Errorf("%s is not in the test", key)
		}
	}
}

func TestTableKept(t *testing.T) {
	for _, test := range []struct {
		yaml   string
		kept   string
		resync string
	}{
		{"", TableOff, ResyncReplay},
		{"redump: diff", TableState, ResyncReplay},
		{"redump: all", TableOff, ResyncReplay},
		{"table: state", TableState, ResyncReplay},
		{"relay: {to: [127.0.0.1:1791]}", TableFull, ResyncReplay},
		{"relay: {to: [127.0.0.1:1791]}\ntable: off", TableOff, ResyncReset},
		{"relay: {to: [127.0.0.1:1791], resync: reset}", TableOff, ResyncReset},
		{"relay: {to: [127.0.0.1:1791], resync: reset}\nredump: diff", TableState, ResyncReset},
		{"output: {rib: on}", TableFull, ResyncReplay},
		{"dump: {period: 60s, topic: d}", TableFull, ResyncReplay},
	} {
		c := parseOK(t, minimal+test.yaml, nil)
		if kept := c.TableKept(); kept != test.kept || c.Relay.Resync != test.resync {
			t.Errorf("%q: table %s, resync %s; want %s, %s", test.yaml, kept, c.Relay.Resync, test.kept, test.resync)
		}
	}
}

// Whatever can be written in the file can be written in the environment.
func TestEverythingFromTheEnvironment(t *testing.T) {
	sources := []string{everything}
	for _, r := range instead {
		sources = append(sources, r.Replace(everything))
	}
	for _, src := range sources {
		everythingFromTheEnvironment(t, src)
	}
}

func everythingFromTheEnvironment(t *testing.T, src string) {
	t.Helper()
	want := parseOK(t, src, nil)
	vars := map[string]string{}
	for key, l := range leaves(reflect.ValueOf(want).Elem(), "") {
		switch v := l.value.Interface().(type) {
		case Secret:
			vars[EnvName(key)] = v.Reveal()
		case []string:
			vars[EnvName(key)] = strings.Join(v, ",")
		case []netip.Prefix:
			vars[EnvName(key)] = strings.Trim(strings.ReplaceAll(fmt.Sprint(v), " ", ", "), "[]")
		case map[netip.Addr]string:
			vars[EnvName(key)] = "192.0.2.1=edge-1, 2001:db8::1=edge-2"
		case Properties:
			vars[EnvName(key)] = "linger.ms=20,enable.idempotence=true,client.id=a: b"
		default:
			vars[EnvName(key)] = fmt.Sprint(v)
		}
	}
	// "" cannot be said in the environment.
	if got := vars["BMPHA_KAFKA_KEY"]; got != "" {
		t.Fatalf("kafka.key is %q in the test", got)
	}
	got := parseOK(t, `kafka: {key: "", brokers: [a:1, b:2, c:3], properties: {x: y}}`, vars)
	if diff := cmp.Diff(want, got, values); diff != "" {
		t.Errorf("configuration (-file +environment):\n%s", diff)
	}
}

func TestEnvironmentErrors(t *testing.T) {
	_, err := Parse("bmpha.yaml", []byte(minimal+"log: {level: loud}\n"), environment(map[string]string{
		"BMPHA_CLUSTER_ID":       "one",
		"BMPHA_HOLD_WINDOW":      "1s",
		"BMPHA_LISTEN_ALLOW":     "192.0.2.0/24,x",
		"BMPHA_LISTEN_ADDRESS":   ":1790,localhost:1",
		"BMPHA_ROUTERS":          "192.0.2.1=a b,edge",
		"BMPHA_REDIS_SCAN":       "1",
		"BMPHA_LOG_FORMAT":       "",
		"BMPHA_KAFKA_PROPERTIES": "linger.ms",
	}))
	want := `bmpha.yaml:4:14: log.level: expected one of debug, info, warn, error, found "loud"
$BMPHA_CLUSTER_ID: cluster.id: expected a whole number, found "one"
$BMPHA_HOLD_WINDOW: hold.window: expected at least redis.expiry + 2 × redis.heartbeat + hold.margin = 5s, found 1s
$BMPHA_KAFKA_PROPERTIES: kafka.properties: expected name=value,name=value, found "linger.ms"
$BMPHA_LISTEN_ADDRESS: listen.address: expected IP:port or :port, found "localhost:1"
$BMPHA_LISTEN_ALLOW: listen.allow: expected a prefix such as 192.0.2.0/24 or 2001:db8::/32, found "x"
$BMPHA_REDIS_SCAN: redis.scan: expected true or false, found "1"
$BMPHA_ROUTERS: routers: expected name=value,name=value, found "edge"`
	if err == nil {
		t.Fatal("got no error")
	}
	if diff := cmp.Diff(want, err.Error()); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
}

// No two keys may share a variable.
func TestEnvNamesAreDistinct(t *testing.T) {
	keys := map[string]string{}
	for key := range leaves(reflect.ValueOf(Config{}), "") {
		name := EnvName(key)
		if other, ok := keys[name]; ok {
			t.Errorf("%s and %s are both %s", key, other, name)
		}
		keys[name] = key
	}
}

func writeSecretFile(t *testing.T, text string, mode fs.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
	return path
}

func TestSecretFile(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		mode       fs.FileMode
		want       Secret
		err        string // within
	}{
		{name: "plain", text: "geheim", mode: 0o600, want: "geheim"},
		{name: "newline", text: "geheim\n", mode: 0o640, want: "geheim"},
		{name: "one newline only", text: " geheim\r\n\r\n", mode: 0o400, want: " geheim\r\n"},
		{name: "empty", text: "\n", mode: 0o600, err: "has no secret"},
		{name: "open to all", text: "geheim", mode: 0o644, err: "open to all users of this host (mode 0644) (chmod o-rwx"},
		{name: "large", text: strings.Repeat("x", 64<<10+1), mode: 0o600, err: "at most 64KiB"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := writeSecretFile(t, tt.text, tt.mode)
			for _, where := range []string{"file", "environment"} {
				vars := map[string]string{}
				file := minimal
				if where == "file" {
					file = strings.Replace(minimal, "redis: {", fmt.Sprintf("redis: {password_file: %q, ", path), 1)
				} else {
					vars["BMPHA_REDIS_PASSWORD_FILE"] = path
				}
				c, err := Parse("bmpha.yaml", []byte(file), environment(vars))
				switch {
				case tt.err != "":
					if err == nil || !strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "geheim") {
						t.Errorf("%s: got error %v, want one with %q", where, err, tt.err)
					}
				case err != nil:
					t.Errorf("%s: %v", where, err)
				case c.Redis.Password != tt.want:
					t.Errorf("%s: got %q, want %q", where, c.Redis.Password.Reveal(), tt.want.Reveal())
				}
			}
		})
	}
}

// One of password and password_file may be in the file and the other in the
// environment, which wins.
func TestSecretInFileAndEnvironment(t *testing.T) {
	path := writeSecretFile(t, "from-file\n", 0o600)
	with := func(key, value string) string {
		return strings.Replace(minimal, "redis: {", fmt.Sprintf("redis: {%s: %q, ", key, value), 1)
	}
	c := parseOK(t, with("password_file", path), map[string]string{"BMPHA_REDIS_PASSWORD": "from-env"})
	if c.Redis.Password != "from-env" || c.Redis.PasswordFile != "" {
		t.Errorf("got %q and file %q, want from-env and none", c.Redis.Password.Reveal(), c.Redis.PasswordFile)
	}
	c = parseOK(t, with("password", "inline"), map[string]string{"BMPHA_REDIS_PASSWORD_FILE": path})
	if c.Redis.Password != "from-file" || c.Redis.PasswordFile != path {
		t.Errorf("got %q and file %q, want from-file", c.Redis.Password.Reveal(), c.Redis.PasswordFile)
	}
	_, err := Parse("bmpha.yaml", []byte(minimal), environment(map[string]string{
		"BMPHA_REDIS_PASSWORD": "x", "BMPHA_REDIS_PASSWORD_FILE": path,
	}))
	want := "$BMPHA_REDIS_PASSWORD_FILE: redis.password_file: redis.password is set as well; expected one of the two"
	if err == nil || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	src := strings.Replace(everything, "linger.ms: 20", "{ssl.keystore.password: geheim}", 1)
	src = strings.ReplaceAll(src, "{ssl.keystore.password: geheim}", "ssl.keystore.password: geheim")
	src = strings.Replace(src, "password: 0123", "password: geheim", 1)
	src = instead["sentinel"].Replace(src)
	c := parseOK(t, src, nil)
	if n := strings.Count(src, "geheim"); n != 6 {
		t.Fatalf("%d secrets in the test, want 6", n)
	}
	js, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "redis", c.Redis, "password", c.Redis.Password, "link", c.Link,
		"properties", c.Kafka.Properties)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "redis", c.Redis, "password", c.Redis.Password, "link", c.Link,
		"properties", c.Kafka.Properties)
	for what, text := range map[string]string{
		"YAML": string(c.YAML()), "JSON": string(js), "slog": log.String(),
		"%v": fmt.Sprintf("%v", *c), "%+v": fmt.Sprintf("%+v", *c), "%#v": fmt.Sprintf("%#v", *c),
		"verbs": fmt.Sprintf("%s %q %x %d %10s", c.Redis.Password, c.Redis.Password, c.Redis.Password, c.Redis.Password, c.Redis.Password),
	} {
		if strings.Contains(text, "geheim") || strings.Contains(text, fmt.Sprintf("%x", "geheim")) {
			t.Errorf("%s shows a secret:\n%s", what, text)
		}
		if !strings.Contains(text, mask) {
			t.Errorf("%s does not show that there is a secret:\n%s", what, text)
		}
	}
	if got := fmt.Sprintf("%q", Secret("")); got != `""` {
		t.Errorf("no secret prints as %s", got)
	}
}

// What config show prints is the same configuration.
func TestYAMLReadsBack(t *testing.T) {
	path := writeSecretFile(t, "geheim", 0o600)
	secret := writeSecretFile(t, "geheim-0123456789", 0o600)
	masked := strings.NewReplacer("secret: geheim-0123456789", fmt.Sprintf("secret_file: %q", secret), "password: 0123", `password: "***"`, "geheim", `"***"`)
	for name, src := range map[string]string{
		"minimal":    minimal,
		"everything": masked.Replace(everything),
		"sentinel":   masked.Replace(instead["sentinel"].Replace(everything)),
		"cluster":    masked.Replace(instead["cluster"].Replace(everything)),
		"fencing":    masked.Replace(instead["fencing"].Replace(everything)),
		"file":       strings.Replace(minimal, "redis: {", fmt.Sprintf("redis: {password_file: %q, ", path), 1),
	} {
		t.Run(name, func(t *testing.T) {
			want := parseOK(t, src, nil)
			shown := want.YAML()
			got, err := Parse("shown.yaml", shown, nil)
			if err != nil {
				t.Fatalf("%v\n%s", err, shown)
			}
			if diff := cmp.Diff(want, got, values); diff != "" {
				t.Errorf("configuration (-want +got):\n%s\n%s", diff, shown)
			}
		})
	}
}

func TestYAMLGolden(t *testing.T) {
	got := parseOK(t, everything, nil).YAML()
	if *update {
		if err := os.WriteFile("testdata/everything.yaml", got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/everything.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("YAML (-want +got):\n%s", diff)
	}
}

// The example has every key, commented out at most, and sets nothing but
// defaults and what has none.
func TestExample(t *testing.T) {
	const path = "../../scripts/bmpha.yaml"
	c, err := Load(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(parseOK(t, minimal, nil), c, values, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("example (-defaults +got):\n%s", diff)
	}
	src, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for key := range leaves(reflect.ValueOf(c).Elem(), "") {
		if _, ok := c.at[key]; ok {
			continue
		}
		name := key[strings.LastIndexByte(key, '.')+1:]
		if !regexp.MustCompile(`(?m)^ *# ` + name + `: `).Match(src) {
			t.Errorf("the example does not mention %s", key)
		}
	}
}

func TestAt(t *testing.T) {
	c := parseOK(t, `process: a
redis: {address: 127.0.0.1:6379}
kafka:
  brokers:
    - 127.0.0.1:9092
    - 127.0.0.1:9093
  properties:
    linger.ms: 20
`, map[string]string{"BMPHA_KAFKA_TOPIC": "t"})
	for key, want := range map[string]string{
		"process":                    "bmpha.yaml:1:10: process: x",
		"redis":                      "bmpha.yaml:2:1: redis: x",
		"redis.database":             "bmpha.yaml:2:1: redis.database: x", // not set
		"kafka.brokers":              "bmpha.yaml:4:3: kafka.brokers: x",
		"kafka.brokers[1]":           "bmpha.yaml:6:7: kafka.brokers[1]: x",
		"kafka.properties.linger.ms": "bmpha.yaml:8:16: kafka.properties.linger.ms: x",
		"kafka.topic":                "$BMPHA_KAFKA_TOPIC: kafka.topic: x",
		"output.header":              "bmpha.yaml:1:1: output.header: x", // not even its section
	} {
		if got := c.ErrorAt(key, "%s", "x").Error(); got != want {
			t.Errorf("ErrorAt(%s): got %s, want %s", key, got, want)
		}
	}
}

func TestErrorsUnwrap(t *testing.T) {
	_, err := Parse("bmpha.yaml", []byte("log: {level: loud}"), nil)
	var one *Error
	if !errors.As(err, &one) || one.File != "bmpha.yaml" || one.Line != 1 {
		t.Errorf("got %+v", one)
	}
}

func TestLoadWithoutFile(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "absent.yaml"), nil)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got error %v, want one that says that the file does not exist", err)
	}
}

func TestLargeFile(t *testing.T) {
	_, err := Parse("bmpha.yaml", bytes.Repeat([]byte("#"), maxFile+1), nil)
	if err == nil || !strings.Contains(err.Error(), "larger than 1MiB") {
		t.Errorf("got error %v", err)
	}
}

// Expected values are from pmacct itself.
func TestExpand(t *testing.T) {
	v4, v6 := netip.MustParseAddr("127.0.0.45"), netip.MustParseAddr("2001:db8::1")
	for _, tt := range []struct {
		tmpl string
		addr netip.Addr
		want string
	}{
		{"", v4, ""},
		{"pmacct.bmp", v4, "pmacct.bmp"},
		{"$bmp_router", v4, "127_0_0_45"},
		{"$bmp_router", v6, "2001_db8__1"},
		{"$bmp_router", netip.MustParseAddr("::ffff:127.0.0.45"), "127_0_0_45"},
		{"$bmp_router", netip.MustParseAddr("fe80::1%eth0"), "fe80__1"},
		{"t.$peer_src_ip", v4, "t.127_0_0_45"},
		{"$bmp_router-$bmp_router_port", v4, "127_0_0_45-43583"},
		{"$peer_src_ip-$peer_tcp_port", v4, "127_0_0_45-43583"},
		{"$bmp_router-$peer_tcp_port", v4, "127_0_0_45-43583"},
		{"$peer_src_ip-$bmp_router_port", v4, "127_0_0_45-43583"},
		{"x-$bmp_router_port", v4, "x-127_0_0_45_port"},
		{"dyn2-$bmp_router-$peer_tcp_port-$peer_src_ip", v4, "dyn2-$bmp_router-43583-127_0_0_45"},
		{"$bmp_router.$bmp_router", v4, "127_0_0_45.$bmp_router"},
	} {
		if got := Expand(tt.tmpl, tt.addr, 43583); got != tt.want {
			t.Errorf("Expand(%s, %v): got %s, want %s", tt.tmpl, tt.addr, got, tt.want)
		}
	}
}

func TestNearest(t *testing.T) {
	keys := names(reflect.TypeFor[Redis]())
	for word, want := range map[string]string{
		"adress": "address", "addr": "address", "hearbeat": "heartbeat", "haertbeat": "heartbeat",
		"passwd": "password", "Scan": "scan", "db": "", "x": "",
	} {
		if got := nearest(word, keys); got != want {
			t.Errorf("nearest(%s): got %q, want %q", word, got, want)
		}
	}
}

func TestSizes(t *testing.T) {
	for _, n := range []int64{0, 1, 1023, 1024, 1 << 20, 1<<20 + 1, 1 << 30, 1<<63 - 1} {
		if got, err := parseBytes(formatBytes(n)); err != nil || got != n {
			t.Errorf("%d is written as %s, which reads as %d, %v", n, formatBytes(n), got, err)
		}
	}
	for _, s := range []string{"", "B", "-1", "1.5MiB", "1KB", "9007199254740992KiB", "1 2"} {
		if got, err := parseBytes(s); err == nil {
			t.Errorf("%q reads as %d", s, got)
		}
	}
}

// Parse neither panics nor returns errors that do not say where; what it accepts
// can be shown and read again.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range append(files, "../../scripts/bmpha.yaml") {
		src, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(src)
	}
	f.Add([]byte(minimal))
	f.Add([]byte(everything))
	secretFile := regexp.MustCompile(`(password|secret)_file`)
	f.Fuzz(func(t *testing.T, src []byte) {
		if secretFile.Match(src) {
			t.Skip("would read this host's files")
		}
		c, err := Parse("fuzz.yaml", src, nil)
		if err != nil {
			var errs Errors
			if !errors.As(err, &errs) || len(errs) == 0 {
				t.Fatalf("got %T: %v", err, err)
			}
			for _, e := range errs {
				if e.File != "fuzz.yaml" || e.Line < 1 || e.Column < 1 || e.Msg == "" {
					t.Fatalf("error without a place: %+v", e)
				}
			}
			return
		}
		// The mask is too short for a link.
		shown := bytes.Replace(c.YAML(), []byte(`  secret: "***"`), []byte(`  secret: "0123456789abcdef"`), 1)
		again, err := Parse("shown.yaml", shown, nil)
		if err != nil {
			t.Fatalf("%v\n%s", err, shown)
		}
		// The mask is all that is left of a secret.
		for _, c := range []*Config{c, again} {
			for _, s := range []*Secret{&c.Redis.Password, &c.Redis.Sentinel.Password, &c.Link.Secret, &c.Kafka.TLS.KeyPassword, &c.Kafka.SASL.Password} {
				*s = Secret(s.String())
			}
			c.Kafka.Properties = c.Kafka.Properties.Masked()
		}
		if diff := cmp.Diff(c, again, values, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("shown and read again (-want +got):\n%s\n%s", diff, shown)
		}
	})
}

// Errors come in the order of the file.
func TestErrorsAreSorted(t *testing.T) {
	src, err := os.ReadFile("testdata/bad/wrong_types.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, err = Parse("bmpha.yaml", src, nil)
	var errs Errors
	if !errors.As(err, &errs) {
		t.Fatal(err)
	}
	if !slices.IsSortedFunc(errs, func(a, b *Error) int { return a.Line - b.Line }) {
		t.Errorf("not in order:\n%v", err)
	}
}

func TestExpandFile(t *testing.T) {
	addr := netip.MustParseAddr("192.0.2.1")
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600))
	for _, test := range []struct{ tmpl, want, err string }{
		{tmpl: "/d/$bmp_router.json", want: "/d/192_0_2_1.json"},
		{tmpl: "/d/%Y-%m-%d/%H%M%S-$peer_src_ip-$peer_tcp_port", want: "/d/2026-01-02/030405-192_0_2_1-1790"},
		{tmpl: "/d/%F/%T%z-%j-%y-%s-%%", want: "/d/2026-01-02/03:04:05+0100-002-26-1767319445-%"},
		{tmpl: "/d/%q", err: "expected %Y, %m, %d, %H, %M, %S, %y, %j, %s, %z, %F, %T or %%, found \"%q\""},
		{tmpl: "/d/%", err: "expected a conversion of strftime after the last %, found nothing"},
	} {
		got, err := ExpandFile(test.tmpl, addr, 1790, at)
		if test.err != "" {
			if err == nil || err.Error() != test.err {
				t.Errorf("%s: error %v, want %s", test.tmpl, err, test.err)
			}
			continue
		}
		if err != nil || got != test.want {
			t.Errorf("%s: %q, %v; want %q", test.tmpl, got, err, test.want)
		}
	}
}

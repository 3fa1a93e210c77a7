// Package config reads the one file that says what a collector is to do.
//
// What it promises:
//
//   - The file is read strictly: unknown keys, wrong types, duplicate keys and
//     combinations that cannot work are errors, all of them are reported at once,
//     and each names file, line, column, key and what was expected.
//   - Every key can be set by a variable of the environment instead, which then
//     wins over the file: BMPHA_ and the key's path in upper snake case, so
//     redis.password is BMPHA_REDIS_PASSWORD (see [EnvName]). Lists are separated
//     by commas, maps are lists of name=value; an empty variable counts as unset.
//     Values are taken as they are: nothing is expanded inside them.
//   - A secret comes from the file, the environment, or, by the key with _file at
//     its end, from a file of its own, which others may not read. It is printed
//     by nothing but [Secret.Reveal].
//   - A [Config] that was returned without an error is complete: defaults are
//     filled in and every check below passed. What depends on the outside (can the
//     port be bound, does librdkafka know a property) is for those who use
//     it; [Config.ErrorAt] lets them report it with line and column.
//
// The smallest file:
//
//	process: collector-a
//	redis: {address: 127.0.0.1:6379}
//	kafka: {brokers: 127.0.0.1:9092}
package config

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"
)

// Values of keys that are one of a few words.
const (
	IdentityAddress = "address" // a router is known by its source address
	IdentitySysname = "sysname" // a router is known by the sysName it sends

	SinkKafka  = "kafka"
	SinkFile   = "file"
	SinkStdout = "stdout"

	ProxyNone = "none" // targets are told nothing of the router
	ProxyV1   = "v1"   // PROXY protocol, a line of text
	ProxyV2   = "v2"   // PROXY protocol, binary

	ResyncReplay = "replay" // from the router's table, which the router does not notice
	ResyncReset  = "reset"  // the router's session is closed, so that it starts over
	ResyncNone   = "none"   // a target that was lost waits for the router's next session

	DecodeAuto   = "auto" // unless pmacct's records come through the intake
	DecodeAlways = "always"
	DecodeNever  = "never"

	TableAuto  = "auto"  // the least that other keys need
	TableOff   = "off"   // nothing of a router's routes is kept
	TableState = "state" // enough to tell news from repetition
	TableFull  = "full"  // all attributes

	RedumpDiff = "diff" // of a table that a router sends again, what is new
	RedumpAll  = "all"

	RIBOff = "off" // pmacct without a table
	RIBOn  = "on"  // pmacct with a table

	FailbackAuto  = "auto"  // a router goes back to the collector that usually sends for it
	FailbackNever = "never" // it stays with the one that took it over

	RedisLostBoth = "both" // all collectors send, and mark what they send
	RedisLostHold = "hold" // the roles stay while the collectors hear each other directly

	OrderRouter = "router" // all records of a router stay in order
	OrderNone   = "none"   // no order is asked for

	ClientNative    = "native"    // batches cross into librdkafka at once
	ClientReference = "reference" // confluent-kafka-go's own interface

	TimestampsDefault = "default"
	TimestampsUTC     = "utc"
	TimestampsRFC3339 = "rfc3339"
	TimestampsEpoch   = "epoch"
)

// A Config is what one collector is to do. Field by field it is the YAML file;
// scripts/bmpha.yaml explains every key. It is not changed after loading and
// may be read by several goroutines.
type Config struct {
	Process  string                `yaml:"process"` // the collector's name in the cluster
	Cluster  Cluster               `yaml:"cluster"`
	Listen   Listen                `yaml:"listen"`
	Identity string                `yaml:"identity" oneof:"address sysname"`
	Routers  map[netip.Addr]string `yaml:"routers"`                           // alias of a router by its address
	Table    string                `yaml:"table" oneof:"auto off state full"` // see TableKept
	// TableMemory is for the tables of all routers together, in bytes; 0: no limit.
	TableMemory int64   `yaml:"table_memory" as:"bytes"`
	Redump      string  `yaml:"redump" oneof:"diff all"` // without effect unless a table is kept
	Relay       Relay   `yaml:"relay"`
	Intake      Intake  `yaml:"intake"`
	Redis       Redis   `yaml:"redis"`
	RedisLost   string  `yaml:"redis_lost" oneof:"both hold"` // hold needs Link
	Link        Link    `yaml:"link"`
	Failback    string  `yaml:"failback" oneof:"auto never"`
	Hold        Hold    `yaml:"hold"`
	Spool       Spool   `yaml:"spool"`
	Sink        string  `yaml:"sink" oneof:"kafka file stdout"`
	File        File    `yaml:"file"`
	Kafka       Kafka   `yaml:"kafka"`
	Output      Output  `yaml:"output"`
	Dump        Dump    `yaml:"dump"`
	Control     Control `yaml:"control"`
	Log         Log     `yaml:"log"`

	name string              // of the file
	at   map[string]position // where keys were set
}

// Cluster names the collectors that share an election.
type Cluster struct {
	Name string `yaml:"name"`
	ID   int    `yaml:"id"` // 0 to 2^31-1
	// Members is how many collectors there should be, native ones among them, 0 to
	// 1024; fewer are a problem. 0: nobody has said.
	Members int `yaml:"members"`
}

// Listen says how routers connect.
type Listen struct {
	Address     []string       `yaml:"address"`                // at least one; IP:port or :port, port 0 is any
	Allow       []netip.Prefix `yaml:"allow"`                  // masked; none allows every router
	MaxSessions int            `yaml:"max_sessions"`           // 1 and up
	MaxMessage  int64          `yaml:"max_message" as:"bytes"` // of a BMP message, 4 KiB to 64 MiB
	Keepalive   time.Duration  `yaml:"keepalive"`              // of TCP, 1 s and up; 0 is off
	ReadTimeout time.Duration  `yaml:"read_timeout"`           // for the rest of a message once it has begun
	Proxy       bool           `yaml:"proxy"`                  // sessions begin with a PROXY header, v1 or v2
}

// Relay passes every session on to other stations, pmacct first of all.
type Relay struct {
	To       []string      `yaml:"to"` // host:port each; none: no relay
	Proxy    string        `yaml:"proxy" oneof:"v1 v2 none"`
	Buffer   int64         `yaml:"buffer" as:"bytes"` // for each target, 64 KiB and up
	Resync   string        `yaml:"resync" oneof:"replay reset none"`
	Parallel int           `yaml:"parallel"` // sessions that start over at a time, 1 and up
	Patience time.Duration `yaml:"patience"` // without the first target before another collector is to send
}

// Intake takes the records that pmacct makes.
type Intake struct {
	Listen     []string       `yaml:"listen"`     // IP:port each, where Kafka producers connect; none: no producers
	Allow      []netip.Prefix `yaml:"allow"`      // producers that may connect, loopback by default
	Advertise  string         `yaml:"advertise"`  // host:port told to producers; empty: where they connected
	Partitions int            `yaml:"partitions"` // shown of every topic, 1 to 10,000
	Patience   time.Duration  `yaml:"patience"`   // without a producer before its routers are not heard any more
	Files      []string       `yaml:"files"`      // patterns of files whose lines are records
	Positions  string         `yaml:"positions"`  // file that remembers how far Files were read
}

// Active reports whether anything comes in by the intake.
func (i *Intake) Active() bool { return len(i.Listen)+len(i.Files) > 0 }

// Spool is disk space for what memory has no room for.
type Spool struct {
	Dir      string `yaml:"dir"` // empty: no spool
	MaxBytes int64  `yaml:"max_bytes" as:"bytes"`
}

// Decodes reports whether the collector makes records of BMP messages itself.
func (c *Config) Decodes() bool {
	return c.Output.Decode == DecodeAlways || c.Output.Decode == DecodeAuto && !c.Intake.Active()
}

// TableKept returns what is kept of the routers' routes: TableOff, TableState or
// TableFull, never TableAuto.
func (c *Config) TableKept() string {
	if c.Table != TableAuto {
		return c.Table
	}
	switch {
	case c.needsFull() != "":
		return TableFull
	case c.isSet("redump") && c.Redump == RedumpDiff:
		return TableState
	}
	return TableOff
}

// needsFull returns the key that does not work without all attributes, or "".
func (c *Config) needsFull() string {
	switch {
	case c.Output.RIB == RIBOn:
		return "output.rib"
	case c.Dump.Period > 0:
		return "dump.period"
	case len(c.Relay.To) > 0 && c.Relay.Resync == ResyncReplay:
		return "relay.resync"
	}
	return ""
}

// isSet reports whether key was set by the file or the environment.
func (c *Config) isSet(key string) bool {
	_, ok := c.at[key]
	return ok
}

// Redis says where the election is held. One of Address, Sentinel and Cluster is
// set.
type Redis struct {
	Address      string        `yaml:"address"` // of one server; empty with Sentinel or Cluster
	Sentinel     Sentinel      `yaml:"sentinel"`
	Cluster      []string      `yaml:"cluster"` // host:port of some nodes of a Redis Cluster
	Username     string        `yaml:"username"`
	Password     Secret        `yaml:"password"` // also when it came from PasswordFile
	PasswordFile string        `yaml:"password_file"`
	Database     int           `yaml:"database"`
	TLS          RedisTLS      `yaml:"tls"`
	Heartbeat    time.Duration `yaml:"heartbeat"` // 50 ms and up
	Expiry       time.Duration `yaml:"expiry"`    // at least two heartbeats
	Scan         bool          `yaml:"scan"`      // look for native pmacct members
}

// Sentinel says who knows where Redis is. TLS is that of Redis.
type Sentinel struct {
	Master       string   `yaml:"master"`    // name of the set of servers; empty: no Sentinel
	Addresses    []string `yaml:"addresses"` // host:port of the sentinels, at least one
	Username     string   `yaml:"username"`  // towards the sentinels
	Password     Secret   `yaml:"password"`  // also when it came from PasswordFile
	PasswordFile string   `yaml:"password_file"`
}

// Active reports whether sentinels are to be asked where Redis is.
func (s *Sentinel) Active() bool { return s.Master != "" || len(s.Addresses) > 0 }

// Link is how collectors hear each other without Redis.
type Link struct {
	Listen     string `yaml:"listen"`    // IP:port or :port; empty: no link
	Advertise  string `yaml:"advertise"` // host:port told to the others; empty: Listen, which has an IP then
	Secret     Secret `yaml:"secret"`    // 16 bytes and up, the same on all; also when it came from SecretFile
	SecretFile string `yaml:"secret_file"`
}

// RedisTLS is TLS towards Redis. Files are PEM.
type RedisTLS struct {
	Enabled    bool   `yaml:"enabled"`
	CA         string `yaml:"ca"`   // file; empty: the system's
	Cert       string `yaml:"cert"` // file; with Key
	Key        string `yaml:"key"`  // file
	ServerName string `yaml:"server_name"`
}

// Hold is the standby's memory.
type Hold struct {
	Memory int64         `yaml:"memory" as:"bytes"` // at least listen.max_message
	Window time.Duration `yaml:"window"`            // at least expiry + 2 heartbeats + margin
	Margin time.Duration `yaml:"margin"`            // kept before the low-water mark
}

// File is the sink for looking at records.
type File struct {
	Path string `yaml:"path"`
}

// Kafka says where records go. Topic and Key are templates, see [Expand].
type Kafka struct {
	Brokers  []string `yaml:"brokers"`
	Topic    string   `yaml:"topic"`
	Key      string   `yaml:"key"` // empty: records without a key
	Order    string   `yaml:"order" oneof:"router none"`
	InFlight int      `yaml:"in_flight"` // records not yet acknowledged, 1 to 100,000
	// Patience is how long no broker may be reached before another collector is to
	// send that reaches one; 0: for ever.
	Patience time.Duration `yaml:"patience"`
	Client   string        `yaml:"client" oneof:"native reference"`
	// Fencing has the brokers refuse a sender that was replaced, by transactions.
	Fencing        bool          `yaml:"fencing"`
	CommitInterval time.Duration `yaml:"commit_interval"` // of transactions, 10 ms to 10 s
	// ReadBack is the longest time for which a collector that takes over reads the
	// end of the topic back, 50 ms to 30 s; 0: never.
	ReadBack   time.Duration `yaml:"read_back"`
	DeadLetter string        `yaml:"dead_letter"` // file
	TLS        KafkaTLS      `yaml:"tls"`
	SASL       SASL          `yaml:"sasl"`
	Properties Properties    `yaml:"properties"` // of librdkafka, unchecked
}

// KafkaTLS is TLS towards the brokers. Files are PEM. librdkafka takes the name
// that a broker must have from the broker's address.
type KafkaTLS struct {
	Enabled         bool   `yaml:"enabled"`
	CA              string `yaml:"ca"`   // file; empty: the system's
	Cert            string `yaml:"cert"` // file; with Key
	Key             string `yaml:"key"`  // file
	KeyPassword     Secret `yaml:"key_password"`
	KeyPasswordFile string `yaml:"key_password_file"`
	VerifyHostname  bool   `yaml:"verify_hostname"`
}

// SASL is how the collector proves to the brokers who it is. Other mechanisms
// than these need Kafka.Properties.
type SASL struct {
	Mechanism    string `yaml:"mechanism" oneof:"PLAIN SCRAM-SHA-256 SCRAM-SHA-512 ''"`
	Username     string `yaml:"username"`
	Password     Secret `yaml:"password"`
	PasswordFile string `yaml:"password_file"`
}

// Output says what records look like.
type Output struct {
	Decode     string `yaml:"decode" oneof:"auto always never"`
	Dialect    string `yaml:"dialect" oneof:"1.8"`
	RIB        string `yaml:"rib" oneof:"off on"` // records as of a pmacct with or without a table
	Timestamps string `yaml:"timestamps" oneof:"default utc rfc3339 epoch"`
	WriterID   string `yaml:"writer_id"` // with $proc_name, $writer_pid and $pmacct_build
	Header     bool   `yaml:"header"`    // the record header bmpha
}

// Control is how status and maintenance reach the daemon.
type Control struct {
	Socket string `yaml:"socket"` // path of a Unix socket
	HTTP   string `yaml:"http"`   // address of a TCP listener; empty: none
}

// Log is what is written to stderr.
type Log struct {
	Level  string `yaml:"level" oneof:"debug info warn error"`
	Format string `yaml:"format" oneof:"text json"`
}

// Default returns the configuration of an empty file, which lacks what has no
// default: Process, Kafka.Brokers, and one of Redis.Address, Redis.Sentinel and
// Redis.Cluster.
func Default() Config {
	return Config{
		Cluster: Cluster{Name: "bmpha"},
		Listen: Listen{
			Address:     []string{":1790"},
			MaxSessions: 1000,
			MaxMessage:  1 << 20,
			Keepalive:   30 * time.Second,
			ReadTimeout: time.Minute,
		},
		Identity: IdentityAddress,
		Table:    TableAuto,
		// Some forty million routes.
		TableMemory: 4 << 30,
		Redump:      RedumpDiff,
		Relay: Relay{
			// The form that every pmacct with PROXY support reads.
			Proxy: ProxyV1,
			// A table dump of 400,000 messages.
			Buffer: 64 << 20,
			Resync: ResyncReplay, Parallel: 2, Patience: 5 * time.Second,
		},
		Intake: Intake{
			Allow:      []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
			Partitions: 1,
			Patience:   5 * time.Second,
			Positions:  "/var/lib/bmpha/positions.json",
		},
		Redis: Redis{
			// One second and two are the timers of the original design.
			Heartbeat: time.Second,
			Expiry:    2 * time.Second,
			Scan:      true,
		},
		// As pmacct.
		RedisLost: RedisLostBoth,
		Failback:  FailbackAuto,
		Hold: Hold{
			Memory: 1 << 30,
			// What the original design keeps; it serves when there are no
			// low-water marks.
			Window: 15 * time.Second,
			// Two sessions of one router were measured to be 0.6 s apart in a
			// table dump.
			Margin: time.Second,
		},
		Spool: Spool{MaxBytes: 10 << 30},
		Sink:  SinkKafka,
		Kafka: Kafka{
			Topic: "pmacct.bmp",
			// The same on every collector, so that order and partition survive
			// a takeover.
			Key:      "$bmp_router",
			Order:    OrderRouter,
			InFlight: 5000,
			Patience: 5 * time.Second,
			Client:   ClientNative,
			// Of a few milliseconds' work, so that consumers of committed records wait
			// little.
			CommitInterval: 100 * time.Millisecond,
			ReadBack:       time.Second,
			DeadLetter:     "/var/lib/bmpha/dead-letter.jsonl",
			TLS:            KafkaTLS{VerifyHostname: true},
		},
		Output: Output{
			Decode:     DecodeAuto,
			Dialect:    "1.8",
			RIB:        RIBOff,
			Timestamps: TimestampsDefault,
			WriterID:   "$proc_name/$writer_pid",
			Header:     true,
		},
		Dump:    Dump{Slots: 1, Stats: true},
		Control: Control{Socket: "/run/bmpha/bmpha.sock"},
		Log:     Log{Level: "info", Format: "text"},
	}
}

// maxFile bounds the file: an alias for each of ten thousand routers fits.
const maxFile = 1 << 20 // bytes

// Load reads the file at path, then the environment through env, which is
// os.LookupEnv in the daemon (nil is an empty environment). The error is of type
// [Errors] if the file could be read.
func Load(path string, env func(string) (string, bool)) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	defer f.Close()
	src, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	return Parse(path, src, env)
}

// Parse is Load of a file that is called name and contains src. The error is
// always of type [Errors]. It reads the files that *_file keys name.
func Parse(name string, src []byte, env func(string) (string, bool)) (*Config, error) {
	c := Default()
	c.name = name
	c.at = map[string]position{}
	d := decoder{config: &c, failed: map[string]bool{}}
	d.file(src)
	if env != nil {
		d.environment(env)
	}
	d.secrets()
	d.check()
	if len(d.errs) > 0 {
		d.errs.sort(name)
		return nil, d.errs
	}
	return &c, nil
}

// EnvName returns the variable that sets key: BMPHA_REDIS_PASSWORD for
// redis.password.
func EnvName(key string) string {
	return "BMPHA_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// At tells where key, such as kafka.properties.linger.ms or listen.allow[1], was
// set. A key that was not set is where the section is in which it belongs. The
// line and column count from 1; both are 0 if file is a variable of the
// environment, as $BMPHA_KAFKA_TOPIC.
func (c *Config) At(key string) (file string, line, col int) {
	p := c.position(key)
	return p.file, p.line, p.col
}

func (c *Config) position(key string) position {
	for {
		if p, ok := c.at[key]; ok {
			return p
		}
		i := strings.LastIndexAny(key, ".[")
		if i < 0 {
			return position{c.name, 1, 1}
		}
		key = key[:i]
	}
}

// ErrorAt makes an error about key, for checks that are not this package's.
func (c *Config) ErrorAt(key, format string, args ...any) *Error {
	file, line, col := c.At(key)
	return &Error{File: file, Line: line, Column: col, Key: key, Msg: fmt.Sprintf(format, args...)}
}

// Package pmconf reads the configuration of pmacct's daemons (pmbmpd, nfacctd,
// sfacctd, pmacctd, uacctd), turns it into one for bmpha, and finds what the two
// contradict each other in.
//
// What it promises:
//
//   - [Parse] takes what pmacct takes: unknown keys are no error, the last of
//     equal keys counts, and values that pmacct would ignore are ignored. What
//     pmacct does not start with is an error with file and line.
//   - [Propose] prints a bmpha.yaml that config.Parse accepts, each key with the
//     file, line and key that it came from, and a unified diff for pmacct's file,
//     which patch applies and, with -R, takes back. What could not be carried over
//     is said in it.
//   - No secret is printed, not even as a neighbour of a changed line.
//   - [Check] says for each finding where it is in both files and what to do.
//
// Only [Load] does I/O.
package pmconf

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// maxFile bounds each file that is read: real ones have a few hundred lines.
const maxFile = 1 << 20 // bytes

// An Error is a line with which pmacct would not start.
type Error struct {
	File string
	Line int // from 1
	Msg  string
}

func (e *Error) Error() string { return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Msg) }

// An Entry is one "key: value" of pmacct's configuration.
type Entry struct {
	Line   int    // from 1
	Key    string // in lower case, without the plugin's name
	Plugin string // key[plugin]: value, or empty
	Value  string // without space around it; may be empty
}

// A Property is one line of a file with librdkafka's properties.
type Property struct {
	Line        int // from 1
	Name, Value string
}

// Properties is what pmacct reads of such a file.
type Properties struct {
	File    string // as in pmacct's configuration
	List    []Property
	Ignored []int // lines that are neither properties nor comments nor empty
}

// Get returns the last property that has one of these names.
func (p *Properties) Get(names ...string) (Property, bool) {
	if p != nil {
		for _, x := range slices.Backward(p.List) {
			if slices.Contains(names, x.Name) {
				return x, true
			}
		}
	}
	return Property{}, false
}

// A Config is what one daemon of pmacct is to do. It may be read by several
// goroutines.
type Config struct {
	File    string // its name in messages
	Entries []Entry
	// Kafka has the files with librdkafka's properties by the name that the
	// configuration calls them. One that could not be read is missing, as it is
	// for pmacct.
	Kafka map[string]*Properties
	// Allow are the routers of bmp_daemon_allow_file, nil if that could not be
	// read.
	Allow []netip.Prefix

	lines []string // with their ends
}

// Load reads the file at path and those that it names: librdkafka's properties
// and the list of routers. The error has an [Error] for each line that pmacct
// would not take.
func Load(path string) (*Config, error) {
	src, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("read pmacct's configuration: %w", err)
	}
	c, err := Parse(path, src)
	if err != nil {
		return nil, err
	}
	for _, o := range outputs {
		e, ok := c.Get(o.prefix + "_kafka_config_file")
		if !ok {
			continue
		}
		if src, err := readFile(e.Value); err == nil {
			c.Kafka[e.Value] = ParseProperties(e.Value, src)
		}
	}
	if e, ok := c.Get("bmp_daemon_allow_file"); ok {
		if src, err := readFile(e.Value); err == nil {
			c.Allow = parseAllow(src)
		}
	}
	return c, nil
}

func readFile(path string) (src []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	src, err = io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(src) > maxFile {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	return src, err
}

// Parse reads a configuration that is called name. The error joins an [*Error]
// for each line that pmacct would not take.
func Parse(name string, src []byte) (*Config, error) {
	c := &Config{File: name, Kafka: map[string]*Properties{}}
	var errs []error
	for line := range strings.Lines(string(src)) {
		c.lines = append(c.lines, line)
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '!' || line[0] == '#' {
			continue
		}
		n := len(c.lines)
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			// The line is not quoted: it may be a password.
			errs = append(errs, &Error{name, n, "expected key: value, found no colon"})
			continue
		}
		key = strings.ToLower(strings.Join(strings.Fields(key), ""))
		e := Entry{Line: n, Key: key, Value: strings.TrimSpace(value)}
		if before, plugin, ok := strings.Cut(key, "["); ok {
			e.Key, e.Plugin = before, strings.TrimSuffix(plugin, "]")
		}
		c.Entries = append(c.Entries, e)
	}
	for _, o := range outputs {
		errs = append(errs, c.exclusive(o)...)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return c, nil
}

// exclusive reports a second destination of one output.
func (c *Config) exclusive(o output) (errs []error) {
	var first Entry
	for _, suffix := range []string{"_file", "_kafka_topic", "_amqp_routing_key"} {
		e, ok := c.Get(o.prefix + suffix)
		switch {
		case !ok:
		case first.Key == "":
			first = e
		default:
			if e.Line < first.Line {
				first, e = e, first
			}
			errs = append(errs, &Error{c.File, e.Line, fmt.Sprintf("%s excludes %s of line %d", e.Key, first.Key, first.Line)})
		}
	}
	return errs
}

// Get returns the entry of key that is in force: the last one. An entry without a
// value is none.
func (c *Config) Get(key string) (Entry, bool) {
	for _, e := range slices.Backward(c.Entries) {
		if e.Key == key && e.Value != "" {
			return e, true
		}
	}
	return Entry{}, false
}

// value is Get for those who need no more than the value, or "".
func (c *Config) value(key string) string {
	e, _ := c.Get(key)
	return e.Value
}

// isTrue reports whether key, a boolean, is in force as true.
func (c *Config) isTrue(key string) bool { return strings.EqualFold(c.value(key), "true") }

// number returns the whole number with which the value of key begins, as pmacct
// reads it, or else without.
func (c *Config) number(key string, without int) int {
	s := c.value(key)
	i := 0
	for i < len(s) && (s[i] >= '0' && s[i] <= '9' || i == 0 && s[i] == '-') {
		i++
	}
	if n, err := strconv.Atoi(s[:i]); err == nil {
		return n
	}
	return without
}

// place is where key was set, or the file, for messages.
func (c *Config) place(key string) string {
	if e, ok := c.Get(key); ok {
		return c.at(e)
	}
	return c.File + ": " + key
}

func (c *Config) at(e Entry) string { return fmt.Sprintf("%s:%d: %s", c.File, e.Line, e.Key) }

// ParseProperties reads a file of "global, name, value" and "topic, name, value"
// that is called name. It takes everything: pmacct ignores other lines.
func ParseProperties(name string, src []byte) *Properties {
	p := &Properties{File: name}
	n := 0
	for line := range strings.Lines(string(src)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '!' || line[0] == '#' {
			continue
		}
		parts := strings.SplitN(line, ",", 3) // the value may have commas
		for i := range parts {
			parts[i] = strings.TrimSpace(parts[i])
		}
		if len(parts) < 3 || parts[0] != "global" && parts[0] != "topic" || parts[1] == "" {
			p.Ignored = append(p.Ignored, n)
			continue
		}
		p.List = append(p.List, Property{Line: n, Name: parts[1], Value: parts[2]})
	}
	return p
}

// parseAllow reads one address or prefix a line and passes over the rest.
func parseAllow(src []byte) []netip.Prefix {
	list := []netip.Prefix{}
	for line := range strings.Lines(string(src)) {
		line = strings.TrimSpace(line)
		if a, err := netip.ParseAddr(line); err == nil && a.Zone() == "" {
			a = a.Unmap()
			list = append(list, netip.PrefixFrom(a, a.BitLen()))
		} else if p, err := netip.ParsePrefix(line); err == nil && !p.Addr().Is4In6() {
			list = append(list, p.Masked())
		}
	}
	return list
}

// An output is one stream of records, by the prefix of its keys.
type output struct {
	prefix  string
	what    string
	refresh string // key that a table dump needs
	address string // variable of the router's address
}

// The first is BMP as it comes.
var outputs = []output{
	{prefix: "bmp_daemon_msglog", what: "BMP messages", address: "$bmp_router"},
	{prefix: "bmp_dump", what: "dumps of BMP tables", refresh: "bmp_dump_refresh_time", address: "$bmp_router"},
	{prefix: "bgp_daemon_msglog", what: "BGP messages", address: "$peer_src_ip"},
	{prefix: "bgp_table_dump", what: "dumps of BGP tables", refresh: "bgp_table_dump_refresh_time", address: "$peer_src_ip"},
}

var msglog = outputs[0]

// toKafka returns the entry of an output's topic.
func (c *Config) toKafka(o output) (Entry, bool) { return c.Get(o.prefix + "_kafka_topic") }

// properties returns what librdkafka is told for an output, or nil.
func (c *Config) properties(o output) *Properties {
	return c.Kafka[c.value(o.prefix+"_kafka_config_file")]
}

// A broker is one place where pmacct looks for Kafka.
type broker struct{ address, from string }

// brokers returns where an output looks for Kafka: pmacct adds the broker of its
// own keys, which have defaults, to those of librdkafka's properties.
func (c *Config) brokers(o output) []broker {
	var list []broker
	host, port := c.value(o.prefix+"_kafka_broker_host"), c.number(o.prefix+"_kafka_broker_port", 9092)
	from := c.place(o.prefix + "_kafka_broker_host")
	if host == "" {
		host = "127.0.0.1"
		from = c.place(o.prefix + "_kafka_broker_port")
	}
	list = appendBrokers(list, host, port, from)
	if p, ok := c.properties(o).Get("bootstrap.servers", "metadata.broker.list"); ok {
		list = appendBrokers(list, p.Value, 9092, fmt.Sprintf("%s:%d: %s", c.properties(o).File, p.Line, p.Name))
	}
	return list
}

func appendBrokers(list []broker, hosts string, port int, from string) []broker {
	for host := range strings.SplitSeq(hosts, ",") {
		host = strings.TrimSpace(host)
		if _, after, ok := strings.Cut(host, "://"); ok {
			host = after // librdkafka's own way to name the protocol
		}
		if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
			host = "[" + host + "]"
		}
		if i := strings.LastIndexByte(host, ':'); i < 0 || strings.HasSuffix(host, "]") {
			host += ":" + strconv.Itoa(port)
		}
		list = append(list, broker{host, from})
	}
	return list
}

// daemon returns which of pmacct's daemons reads the file, as far as the file
// shows.
func (c *Config) daemon() string {
	names := []string{"pmbmpd", "nfacctd", "sfacctd", "pmacctd", "uacctd"}
	base := filepath.Base(c.File)
	for _, name := range names {
		if strings.Contains(base, name) {
			return name
		}
	}
	for _, e := range c.Entries {
		for _, name := range names {
			if strings.HasPrefix(e.Key, name+"_") {
				return name
			}
		}
	}
	for _, e := range c.Entries {
		if e.Key == "plugins" || e.Key == "aggregate" || e.Key == "pcap_interface" {
			return "pmacctd"
		}
	}
	return "pmbmpd"
}

// hasTable reports whether the daemon keeps the routers' tables, and then logs
// other records for the same messages.
func (c *Config) hasTable() bool {
	if c.daemon() != "pmbmpd" {
		return true
	}
	for _, suffix := range []string{"_file", "_kafka_topic", "_amqp_routing_key"} {
		if c.value("bmp_dump"+suffix) != "" {
			return true
		}
	}
	return false
}

// nativeHA returns the entry that turns pmacct's own high availability on.
func (c *Config) nativeHA() (Entry, bool) {
	for _, key := range []string{"bmp_daemon_ha", "bgp_daemon_ha"} {
		if c.isTrue(key) {
			return c.Get(key)
		}
	}
	return Entry{}, false
}

// port is where routers connect.
func (c *Config) port() int {
	const standard = 1790
	if n := c.number("bmp_daemon_port", standard); n >= 1 && n <= 65535 {
		return n
	}
	return standard
}

// listens is the address that routers connect to. The host is empty if that is
// every address of the machine.
func (c *Config) listens() (host string, port int) {
	if a, err := netip.ParseAddr(c.value("bmp_daemon_ip")); err == nil && !a.IsUnspecified() {
		host = a.Unmap().String()
	}
	return host, c.port()
}

var (
	booleans = []string{
		"bmp_daemon", "bmp_daemon_ipv6_only", "bmp_daemon_parse_proxy_header", "bmp_daemon_set_pd", "bmp_daemon_ha", "bgp_daemon_ha",
		"bmp_dump_exclude_stats", "timestamps_utc", "timestamps_since_epoch", "timestamps_rfc3339", "timestamps_rfc9557",
	}
	// families are the beginnings of keys of which all are in known.
	families = []string{"bmp_", "redis_", "cluster_"}
	known    = func() map[string]bool {
		m := map[string]bool{}
		for _, key := range booleans {
			m[key] = true
		}
		for _, key := range strings.Fields(`
			bmp_daemon_ip bmp_daemon_interface bmp_daemon_port bmp_daemon_max_peers bmp_daemon_allow_file bmp_daemon_ipprec
			bmp_daemon_pipe_size bmp_daemon_batch bmp_daemon_batch_interval bmp_daemon_rp_ebpf_prog bmp_daemon_tag_map
			bmp_daemon_msglog_label_filter bmp_dump_latest_file bmp_dump_workers bmp_dump_refresh_time bmp_dump_time_slots
			bmp_table_peer_buckets bmp_table_per_peer_buckets bmp_table_attr_hash_buckets bmp_table_per_peer_hash bmp_agent_map
			redis_host redis_db redis_passwd cluster_name cluster_id bmp_daemon_ha_cluster_name bmp_daemon_ha_cluster_id
			bmp_daemon_ha_queue_message_timeout bmp_daemon_ha_queue_max_size`) {
			m[key] = true
		}
		for _, prefix := range []string{"bmp_daemon_msglog", "bmp_dump"} {
			for _, s := range strings.Fields(`
				output file avro_schema_file kafka_broker_host kafka_broker_port kafka_topic kafka_topic_rr kafka_partition
				kafka_partition_key kafka_retry kafka_config_file kafka_avro_schema_registry amqp_host amqp_port amqp_vhost amqp_user
				amqp_passwd amqp_exchange amqp_exchange_type amqp_routing_key amqp_routing_key_rr amqp_persistent_msg
				amqp_frame_max amqp_heartbeat_interval amqp_retry`) {
				m[prefix+"_"+s] = true
			}
		}
		return m
	}()
)

// ignored says which entries pmacct, too, passes over.
func (c *Config) ignored() []string {
	var list []string
	for _, e := range c.Entries {
		family := slices.ContainsFunc(families, func(f string) bool { return strings.HasPrefix(e.Key, f) })
		switch {
		case family && !known[e.Key]:
			list = append(list, c.at(e)+": not a key that is known here; pmacct ignores those that it does not know")
		case slices.Contains(booleans, e.Key) && !strings.EqualFold(e.Value, "true") && !strings.EqualFold(e.Value, "false"):
			list = append(list, c.at(e)+": neither true nor false, so pmacct ignores it")
		}
	}
	return list
}

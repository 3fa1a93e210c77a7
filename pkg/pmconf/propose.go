package pmconf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bmpha/bmpha/pkg/config"
)

// A Mode is where bmpha is to stand.
type Mode string

// The modes.
const (
	Relay  Mode = "relay"  // in front of pmacct, decoding by itself
	Intake Mode = "intake" // behind pmacct
	Both   Mode = "both"   // pmacct in the middle
)

// Options are what Propose cannot read in pmacct's configuration. Mode and Host
// are required.
type Options struct {
	Mode Mode
	Host string // the name of this host, for a daemon without a name of its own
	// Target is where pmacct is to listen behind the relay, IP:port; "" is the
	// port after the present one on 127.0.0.1.
	Target string
	// Intake is where pmacct is to find bmpha, IP:port; "" is 127.0.0.1:9093.
	Intake string
	// CheckProperty says why a property of librdkafka cannot be used; nil takes
	// all.
	CheckProperty func(name, value string) error
}

// A Proposal is a bmpha.yaml, with remarks as comments, and what changes in
// pmacct's file: a unified diff, empty if nothing does.
type Proposal struct{ YAML, Diff []byte }

// defaultPeers is what pmacct's bmp_daemon_max_peers becomes if it has none: its
// own default is 4 or 10.
const defaultPeers = 100

// pipeSize bounds what waits unread between bmpha and pmacct.
const pipeSize = "131072"

// A setting is one line of bmpha.yaml.
type setting struct {
	path  []string
	value string // as YAML
	probe string // in its place when the whole is tried, as a secret's file need not exist yet
	from  string // a comment, or empty
}

func (s *setting) key() string { return strings.Join(s.path, ".") }

type proposer struct {
	c        *Config
	o        *Options
	settings []setting
	lost     []string // not carried over
	todo     []string // to be done by hand
	edits    *edits
}

// Propose makes a configuration for bmpha of pmacct's. An error says why there can
// be none in this mode.
func Propose(c *Config, o Options) (*Proposal, error) {
	p := &proposer{c: c, o: &o, edits: newEdits(c)}
	if p.o.Intake == "" {
		p.o.Intake = "127.0.0.1:9093"
	}
	if p.o.Target == "" {
		port := c.port() + 1
		if _, taken, _ := net.SplitHostPort(p.o.Intake); port > 65535 || strconv.Itoa(port) == taken {
			port = c.port() - 1
		}
		p.o.Target = fmt.Sprintf("127.0.0.1:%d", port)
	}
	for _, a := range []string{p.o.Target, p.o.Intake} {
		if ap, err := netip.ParseAddrPort(a); err != nil || ap.Port() == 0 || ap.Addr().IsUnspecified() {
			return nil, fmt.Errorf("%q: expected IP:port", a)
		}
	}
	p.names()
	switch o.Mode {
	case Relay, Both:
		if e, ok := c.Get("pcap_savefile"); ok {
			return nil, fmt.Errorf("%s: this daemon reads a file: there are no sessions to pass on", c.at(e))
		}
		p.relay()
	case Intake:
		p.put("no router connects here: they stay with pmacct", "[]", "listen", "address")
	default:
		return nil, fmt.Errorf("no mode %q, want relay, intake or both", o.Mode)
	}
	kafka := msglog
	if o.Mode == Relay {
		p.decode()
	} else {
		var err error
		if kafka, err = p.intake(); err != nil {
			return nil, err
		}
	}
	p.redis()
	p.hold()
	p.kafka(kafka)
	p.highAvailability()
	if err := p.settle(); err != nil {
		return nil, err
	}
	diff := p.edits.diff()
	return &Proposal{YAML: p.yaml(diff), Diff: diff}, nil
}

// put adds a setting. from says where it comes from, value is YAML.
func (p *proposer) put(from, value string, path ...string) {
	p.settings = append(p.settings, setting{path: path, value: value, from: from})
}

func (p *proposer) lose(format string, args ...any) {
	p.lost = append(p.lost, fmt.Sprintf(format, args...))
}

func (p *proposer) hand(format string, args ...any) {
	p.todo = append(p.todo, fmt.Sprintf(format, args...))
}

// carry puts the value of one of pmacct's keys, if it has any.
func (p *proposer) carry(key string, path ...string) {
	if e, ok := p.c.Get(key); ok {
		p.put(p.c.at(e), text(e.Value), path...)
	}
}

func (p *proposer) names() {
	c := p.c
	if e, ok := c.Get("core_proc_name"); ok && e.Value != "default" {
		p.put(c.at(e), text(e.Value), "process")
	} else {
		p.put("this host's name, as pmacct has no core_proc_name: it must differ on each collector", text(p.o.Host), "process")
	}
	if _, ok := c.nativeHA(); !ok {
		return // cluster_name means something else then
	}
	name, id := "bmp_daemon_ha_cluster_name", "bmp_daemon_ha_cluster_id"
	if c.value(name) == "" {
		name, id = "cluster_name", "cluster_id" // 1.7.9
	}
	p.carry(name, "cluster", "name")
	if e, ok := c.Get(id); ok {
		p.put(c.at(e), strconv.Itoa(c.number(id, 0)), "cluster", "id")
	}
}

// relay puts bmpha where pmacct listens, and pmacct behind it.
func (p *proposer) relay() {
	c := p.c
	host, port := c.listens()
	from := c.place("bmp_daemon_port")
	if _, ok := c.Get("bmp_daemon_port"); !ok {
		from = "pmacct's default"
	}
	if e, ok := c.Get("bmp_daemon_ip"); ok {
		a, err := netip.ParseAddr(e.Value)
		switch {
		case err != nil:
			p.lose("%s: not an IP address", c.at(e))
		case a.IsUnspecified() && a.Is4():
			host = a.String()
		}
		from = c.at(e) + " and port"
	}
	p.put(from, "["+strconv.Quote(net.JoinHostPort(host, strconv.Itoa(port)))+"]", "listen", "address")
	peers := defaultPeers
	from = "pmacct has none: its default is 4 (1.7.7) or 10"
	if e, ok := c.Get("bmp_daemon_max_peers"); ok && c.number(e.Key, 0) > 0 {
		peers, from = c.number(e.Key, 0), c.at(e)
	}
	p.put(from, strconv.Itoa(peers), "listen", "max_sessions")
	if e, ok := c.Get("bmp_daemon_allow_file"); ok {
		p.allow(e)
	}
	p.put("where pmacct listens from now on", "["+strconv.Quote(p.o.Target)+"]", "relay", "to")

	d, anchor := p.edits, ""
	for _, key := range []string{"bmp_daemon_port", "bmp_daemon_ip", "bmp_daemon"} {
		if _, ok := c.Get(key); ok {
			anchor = key
			break
		}
	}
	if c.daemon() != "pmbmpd" && !c.isTrue("bmp_daemon") {
		d.set("bmp_daemon", "true", anchor, "")
		p.hand("%s: this daemon hears no BMP yet: bmp_daemon is turned on (--mode intake leaves it off)", c.File)
	}
	host, target, _ := net.SplitHostPort(p.o.Target)
	d.set("bmp_daemon_ip", host, anchor, "bmpha takes the routers' sessions and passes them on to here.")
	d.set("bmp_daemon_port", target, anchor, "")
	d.set("bmp_daemon_parse_proxy_header", "true", anchor, "")
	d.set("bmp_daemon_max_peers", strconv.Itoa(peers), anchor, "")
	if p.o.Mode == Both {
		size, ok := c.Get("bmp_daemon_pipe_size")
		if !ok {
			d.set("bmp_daemon_pipe_size", pipeSize, anchor, "Bounds what waits unread between bmpha and pmacct, and is lost if pmacct dies.")
		} else if c.number(size.Key, 0) > 131072 {
			p.hand("%s: what waits unread there is lost if pmacct dies; %s is enough on one host", c.at(size), pipeSize)
		}
	}
	for _, key := range []string{"bmp_daemon_ipv6_only", "bmp_daemon_interface"} {
		if e, ok := c.Get(key); ok && (key != "bmp_daemon_ipv6_only" || c.isTrue(key)) {
			d.comment(key)
			p.lose("%s: pmacct listens on %s only from now on, and bmpha has nothing like it", c.at(e), host)
		}
	}
	for _, key := range []string{"bmp_daemon_ipprec", "bmp_daemon_rp_ebpf_prog", "bmp_daemon_batch", "bmp_daemon_batch_interval"} {
		if e, ok := c.Get(key); ok {
			p.lose("%s: stays pmacct's and concerns the sessions from bmpha, not those of routers", c.at(e))
		}
	}
}

// allow carries the list of routers over: pmacct would compare it with bmpha's
// address.
func (p *proposer) allow(e Entry) {
	p.edits.comment(e.Key)
	if len(p.c.Allow) == 0 {
		p.lose("%s: the file could not be read or names no router: write them into listen.allow, which is empty and allows all", p.c.at(e))
		return
	}
	items := make([]string, len(p.c.Allow))
	for i, prefix := range p.c.Allow {
		items[i] = strconv.Quote(prefix.String())
	}
	p.put(p.c.at(e), "["+strings.Join(items, ", ")+"]", "listen", "allow")
}

// decode is for bmpha making the records by itself: it says what they lack.
func (p *proposer) decode() {
	c := p.c
	const prefix = "bmp_daemon_msglog"
	p.timestamps()
	p.carry("writer_id_string", "output", "writer_id")
	if format := c.value(prefix + "_output"); format != "" && format != "json" {
		p.lose("%s: bmpha writes JSON; with --mode both the records stay pmacct's", c.place(prefix+"_output"))
	}
	if c.hasTable() {
		p.put(c.File+": this daemon keeps tables", "on", "output", "rib")
	}
	for _, key := range []string{
		"bmp_daemon_tag_map", "bmp_daemon_set_pd", "bmp_daemon_msglog_label_filter", "as_path_encode_as_array", "bgp_comms_encode_as_array",
		"bgp_comms_num", "pre_tag_label_encode_as_map", "tmp_bgp_daemon_origin_type_int", "tmp_bgp_lookup_compare_ports",
		"rpki_roas_file", "rpki_rtr_cache", prefix + "_kafka_topic_rr", prefix + "_kafka_partition",
		prefix + "_kafka_avro_schema_registry", prefix + "_avro_schema_file",
	} {
		e, ok := c.Get(key)
		if ok && !strings.EqualFold(e.Value, "false") && (key != prefix+"_kafka_partition" || c.number(key, -1) >= 0) {
			p.lose("%s: bmpha's own records do not have this; with --mode both they stay pmacct's", c.at(e))
		}
	}
	topic, ok := c.toKafka(msglog)
	if ok {
		p.put(c.at(topic), text(topic.Value), "kafka", "topic")
		p.key()
		for _, e := range c.Entries {
			if strings.HasPrefix(e.Key, prefix+"_kafka_") {
				p.edits.comment(e.Key)
			}
		}
	}
	for _, suffix := range []string{"_file", "_amqp_routing_key"} {
		if e, ok := c.Get(prefix + suffix); ok {
			p.lose("%s: pmacct goes on writing there, on each collector; bmpha writes to kafka.topic", c.at(e))
		}
	}
	p.dump()
	for _, o := range outputs[2:] {
		if e, ok := c.toKafka(o); ok {
			p.lose("%s: %s go on to Kafka from each collector; --mode both or intake makes one of them", c.at(e), o.what)
		}
	}
}

// key carries the partition key over, without which bmpha's own default is used.
func (p *proposer) key() {
	if e, ok := p.c.Get("bmp_daemon_msglog_kafka_partition_key"); ok {
		p.put(p.c.at(e), text(e.Value), "kafka", "key")
		return
	}
	p.hand("%s: pmacct sets no partition key; bmpha's is $bmp_router, which keeps a router's records in order", p.c.place("bmp_daemon_msglog_kafka_topic"))
}

func (p *proposer) timestamps() {
	var found []string
	for _, t := range []struct{ key, form string }{
		{"timestamps_since_epoch", config.TimestampsEpoch}, {"timestamps_rfc3339", config.TimestampsRFC3339},
		{"timestamps_rfc9557", config.TimestampsRFC3339}, {"timestamps_utc", config.TimestampsUTC},
	} {
		if !p.c.isTrue(t.key) {
			continue
		}
		if found = append(found, p.c.place(t.key)); len(found) == 1 {
			p.put(found[0], t.form, "output", "timestamps")
		} else {
			p.lose("%s: bmpha has one form of timestamps: see output.timestamps", p.c.place(t.key))
		}
	}
}

// intake puts bmpha where pmacct looks for Kafka. It returns the output that says
// where Kafka is.
func (p *proposer) intake() (output, error) {
	c := p.c
	first := -1 // of outputs
	for i, o := range outputs {
		if _, ok := c.toKafka(o); ok {
			first = i
			break
		}
	}
	file, hasFile := c.Get("bmp_daemon_msglog_file")
	if first < 0 && !hasFile {
		if e, ok := c.Get("bmp_daemon_msglog_amqp_routing_key"); ok {
			return output{}, fmt.Errorf("%s: this daemon writes to RabbitMQ, for which there is no intake: --mode relay makes records for Kafka", c.at(e))
		}
		return output{}, fmt.Errorf("%s writes nothing to Kafka or to a file that could come in (bmp_daemon_msglog_kafka_topic is not set): --mode relay needs nothing of it", c.File)
	}
	if hasFile {
		p.files(file)
	}
	if first < 0 {
		return msglog, nil
	}
	p.put("where pmacct finds Kafka from now on", "["+strconv.Quote(p.o.Intake)+"]", "intake", "listen")
	home := c.brokers(outputs[first])
	partitions, from := 1, ""
	for _, o := range outputs[first:] {
		topic, ok := c.toKafka(o)
		if !ok {
			continue
		}
		if !sameBrokers(home, c.brokers(o)) {
			p.lose("%s: %s go to another Kafka than %s and stay as they are", c.at(topic), o.what, outputs[first].what)
			continue
		}
		if e, ok := c.Get(o.prefix + "_kafka_partition"); ok && c.number(e.Key, -1) >= partitions {
			partitions, from = c.number(e.Key, -1)+1, c.at(e)
		}
		p.redirect(o)
	}
	if partitions > 1 {
		p.put(from, strconv.Itoa(partitions), "intake", "partitions")
	}
	p.hand("topic, key and format stay pmacct's, as does the schema registry if there is one")
	return outputs[first], nil
}

func sameBrokers(a, b []broker) bool {
	return slices.EqualFunc(a, b, func(a, b broker) bool { return a.address == b.address })
}

// redirect sends an output to the intake.
func (p *proposer) redirect(o output) {
	c, d := p.c, p.edits
	host, port, _ := net.SplitHostPort(p.o.Intake)
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	kafka := o.prefix + "_kafka_"
	d.set(kafka+"broker_host", host, kafka+"topic", "bmpha passes this on to Kafka while this collector is the active one.")
	d.set(kafka+"broker_port", port, kafka+"topic", "")
	if o.prefix == msglog.prefix {
		// After a failure pmacct drops what it has for as long as this.
		d.set(kafka+"retry", "1", kafka+"topic", "")
	}
	if _, ok := c.Get(kafka + "config_file"); ok {
		// Its brokers would be used as well, and its TLS not be understood.
		d.comment(kafka + "config_file")
	}
	for _, key := range []string{kafka + "partition_key", kafka + "topic"} {
		e, ok := c.Get(key)
		if !ok || !varies(e.Value) {
			continue
		}
		if strings.HasSuffix(key, "topic") {
			p.hand("%s: has the session's port in it, which differs between collectors: a router's records change their topic at a takeover", c.at(e))
			continue
		}
		d.set(key, o.address, "", "The session's port differs between collectors.")
		p.lose("%s: has the session's port in it, which differs between collectors: %s instead", c.at(e), o.address)
	}
}

// varies reports whether a topic or key expands differently on two collectors.
func varies(tmpl string) bool {
	a := netip.AddrFrom4([4]byte{192, 0, 2, 1})
	return config.Expand(tmpl, a, 1) != config.Expand(tmpl, a, 2)
}

var variable = regexp.MustCompile(`\$[a-z_]+`)

// files makes the intake follow what pmacct writes.
func (p *proposer) files(e Entry) {
	c := p.c
	if format := c.value("bmp_daemon_msglog_output"); format != "" && format != "json" {
		p.lose("%s: only lines of JSON can be followed, not %s", c.at(e), format)
		return
	}
	pattern := variable.ReplaceAllString(regexp.MustCompile(`[*?\[\\]`).ReplaceAllString(e.Value, `\$0`), "*")
	if !filepath.IsAbs(pattern) {
		p.lose("%s: expected an absolute path; write the pattern into intake.files", c.at(e))
		return
	}
	p.put(c.at(e), "["+strconv.Quote(pattern)+"]", "intake", "files")
	p.hand("%s has no topic: the lines of files go to kafka.topic", c.File)
}

func (p *proposer) redis() {
	c := p.c
	e, ok := c.Get("redis_host")
	if !ok {
		p.put("pmacct has no redis_host: the Redis that all collectors reach", `"127.0.0.1:6379"`, "redis", "address")
		p.hand("write the address of your Redis into redis.address")
	} else {
		address := e.Value
		if a, err := netip.ParseAddr(address); err == nil {
			address = net.JoinHostPort(a.String(), "6379")
		} else if !strings.Contains(address, ":") {
			address += ":6379"
		}
		p.put(c.at(e), strconv.Quote(address), "redis", "address")
	}
	if e, ok := c.Get("redis_passwd"); ok {
		p.secret(c.at(e), "/etc/bmpha/redis.password", "redis", "password_file")
	}
	if e, ok := c.Get("redis_db"); ok && c.number(e.Key, 0) != 0 {
		p.lose("%s: pmacct reads it and uses database 0 all the same; so does bmpha", c.at(e))
	}
}

// secret names a file to be written by hand in place of a secret.
func (p *proposer) secret(from, file string, path ...string) {
	probe := setting{path: append(slices.Clone(path[:len(path)-1]), strings.TrimSuffix(path[len(path)-1], "_file")), value: `"x"`}
	p.settings = append(p.settings, setting{path: path, value: file, probe: probe.path[len(probe.path)-1] + ": " + probe.value, from: from})
	p.hand("write the secret of %s into %s, which others must not be able to read (install -m 640 -g bmpha)", from, file)
}

func (p *proposer) hold() {
	c := p.c
	defaults := config.Default()
	if e, ok := c.Get("bmp_daemon_ha_queue_message_timeout"); ok {
		seconds := c.number(e.Key, 0)
		least := defaults.Redis.Expiry + 2*defaults.Redis.Heartbeat + defaults.Hold.Margin
		window := time.Duration(min(max(seconds, 0), 24*60*60)) * time.Second
		from := c.at(e)
		if window < least {
			window = least
			from += ", and the least that there can be"
		}
		if window != defaults.Hold.Window {
			p.put(from, fmt.Sprintf("%ds", int(window.Seconds())), "hold", "window")
		}
	}
	if e, ok := c.Get("bmp_daemon_ha_queue_max_size"); ok && c.number(e.Key, -1) > 0 {
		const record = 8 << 10 // the largest that pmacct can queue
		if need := int64(c.number(e.Key, 0)) * record; need > defaults.Hold.Memory && need < 1<<40 {
			p.put(c.at(e)+" records of up to 8KiB", fmt.Sprintf("%dMiB", need>>20), "hold", "memory")
		} else {
			p.lose("%s: bmpha's bound is in bytes: hold.memory, 1GiB unless it is set", c.at(e))
		}
	}
}

// kafka carries over where Kafka is and how to reach it.
func (p *proposer) kafka(o output) {
	c := p.c
	prefix := o.prefix + "_kafka_"
	props := c.properties(o)
	brokers := c.brokers(o)
	if _, ok := props.Get("bootstrap.servers", "metadata.broker.list"); ok && c.value(prefix+"broker_host") == "" {
		brokers = brokers[1:] // pmacct's default, which is meant by nobody then
	}
	var addresses []string
	var from string
	for _, b := range brokers {
		if quoted := strconv.Quote(b.address); !slices.Contains(addresses, quoted) {
			addresses = append(addresses, quoted)
		}
		from = b.from
	}
	if _, ok := c.Get(prefix + "broker_host"); !ok && from == c.place(prefix+"broker_port") && c.value(prefix+"broker_port") == "" {
		from = "pmacct's default"
	}
	p.put(from, "["+strings.Join(addresses, ", ")+"]", "kafka", "brokers")
	if e, ok := c.Get(prefix + "config_file"); ok && props == nil {
		p.lose("%s: the file cannot be read; pmacct goes without it as well", c.at(e))
	}
	if props == nil {
		return
	}
	for _, n := range props.Ignored {
		p.lose("%s:%d: neither global nor topic, so pmacct ignores it", props.File, n)
	}
	p.librdkafka(props)
}

var propertyName = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// librdkafka maps properties to bmpha's own keys where it has them.
func (p *proposer) librdkafka(props *Properties) {
	at := func(x Property) string { return fmt.Sprintf("%s:%d: %s", props.File, x.Line, x.Name) }
	done := map[string]bool{"bootstrap.servers": true, "metadata.broker.list": true}
	carry := func(names []string, path ...string) {
		if x, ok := props.Get(names...); ok {
			p.put(at(x), text(x.Value), path...)
			for _, name := range names {
				done[name] = true
			}
		}
	}
	protocol, _ := props.Get("security.protocol")
	mechanism, _ := props.Get("sasl.mechanism", "sasl.mechanisms")
	user, _ := props.Get("sasl.username")
	proto := strings.ToLower(protocol.Value)
	sasl := strings.HasPrefix(proto, "sasl_")
	ours := slices.Contains([]string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"}, mechanism.Value) && user.Value != ""
	if proto == "plaintext" || proto == "ssl" || sasl && ours {
		done["security.protocol"] = true
		if strings.HasSuffix(proto, "ssl") {
			p.put(at(protocol), "true", "kafka", "tls", "enabled")
			carry([]string{"ssl.ca.location"}, "kafka", "tls", "ca")
			carry([]string{"ssl.certificate.location"}, "kafka", "tls", "cert")
			carry([]string{"ssl.key.location"}, "kafka", "tls", "key")
			if x, ok := props.Get("ssl.key.password"); ok {
				done[x.Name] = true
				p.secret(at(x), "/etc/bmpha/kafka-key.password", "kafka", "tls", "key_password_file")
			}
			if x, ok := props.Get("ssl.endpoint.identification.algorithm"); ok {
				done[x.Name] = true
				if x.Value == "none" {
					p.put(at(x), "false", "kafka", "tls", "verify_hostname")
				}
			}
		}
		if sasl {
			carry([]string{"sasl.mechanism", "sasl.mechanisms"}, "kafka", "sasl", "mechanism")
			carry([]string{"sasl.username"}, "kafka", "sasl", "username")
			done["sasl.password"] = true
			from := props.File + " (sasl.password is missing there)"
			if x, ok := props.Get("sasl.password"); ok {
				from = at(x)
			}
			p.secret(from, "/etc/bmpha/kafka.password", "kafka", "sasl", "password_file")
		}
	}
	for _, x := range props.List {
		if last, _ := props.Get(x.Name); done[x.Name] || last != x {
			continue
		}
		if !propertyName.MatchString(x.Name) {
			p.lose("%s: no property has such a name", at(x))
			continue
		}
		if (config.Properties{x.Name: x.Value}).Masked()[x.Name] != x.Value {
			p.lose("%s: a secret: write it into kafka.properties by hand", at(x))
			continue
		}
		if p.o.CheckProperty != nil {
			if err := p.o.CheckProperty(x.Name, x.Value); err != nil {
				p.lose("%s: %v", at(x), err)
				continue
			}
		}
		p.put(at(x), strconv.Quote(x.Value), "kafka", "properties", x.Name)
	}
}

// highAvailability turns pmacct's own off.
func (p *proposer) highAvailability() {
	e, ok := p.c.nativeHA()
	if !ok {
		return
	}
	p.edits.set(e.Key, "false", "", "bmpha takes part in the election in its place.")
	p.hand("%s: change one collector at a time: a bmpha and a pmacct with this key elect one of them, as they share cluster and Redis; until both are changed a takeover by pmacct repeats its window", p.c.at(e))
}

// settle tries the whole and takes out what bmpha would refuse.
func (p *proposer) settle() error {
	for range len(p.settings) + 1 {
		_, err := config.Parse("bmpha.yaml", p.render(true), nil)
		if err == nil {
			return nil
		}
		var errs config.Errors
		if !errors.As(err, &errs) || !p.drop(errs[0]) {
			return fmt.Errorf("%s: no configuration came out that bmpha takes: %w", p.c.File, err)
		}
	}
	return fmt.Errorf("%s: no configuration came out that bmpha takes", p.c.File)
}

// required are values for what has no default.
var required = map[string]string{"process": "", "redis.address": `"127.0.0.1:6379"`, "kafka.brokers": `["127.0.0.1:9092"]`}

// drop takes out the setting that an error is about, or else its section.
func (p *proposer) drop(e *config.Error) bool {
	key, _, _ := strings.Cut(e.Key, "[")
	section := key
	if i := strings.LastIndexByte(key, '.'); i >= 0 {
		section = key[:i+1]
	}
	match := func(s setting) bool { return s.key() == key }
	if !slices.ContainsFunc(p.settings, match) {
		match = func(s setting) bool { return strings.HasPrefix(s.key(), section) && required[s.key()] == "" }
	}
	found := false
	for i, s := range p.settings {
		if !match(s) {
			continue
		}
		p.lose("%s: %s: %s", s.from, e.Key, e.Msg)
		if value, ok := required[s.key()]; ok {
			if s.key() == "process" {
				value = text(p.o.Host)
			}
			if s.value == value {
				return false
			}
			p.settings[i].value, p.settings[i].from = value, "instead of what pmacct has"
			return true
		}
		found = true
	}
	p.settings = slices.DeleteFunc(p.settings, match)
	return found
}

var plain = regexp.MustCompile(`^[A-Za-z/$][A-Za-z0-9/$._-]*$`)

// text is a string as YAML.
func text(s string) string {
	switch strings.ToLower(s) {
	case "true", "false", "null", "yes", "no", "on", "off", "y", "n":
		return strconv.Quote(s)
	}
	if plain.MatchString(s) {
		return s
	}
	return strconv.Quote(s)
}

// render is the YAML proper, or, to try it, one that needs no other files.
func (p *proposer) render(probe bool) []byte {
	var b strings.Builder
	var at []string // sections that are open
	order := []string{"process", "cluster", "listen", "relay", "intake", "redis", "hold", "kafka", "output", "dump"}
	settings := slices.Clone(p.settings)
	slices.SortStableFunc(settings, func(a, b setting) int {
		return slices.Index(order, a.path[0]) - slices.Index(order, b.path[0])
	})
	for _, s := range settings {
		section := s.path[:len(s.path)-1]
		n := 0
		for n < len(section) && n < len(at) && at[n] == section[n] {
			n++
		}
		for ; n < len(section); n++ {
			fmt.Fprintf(&b, "%s%s:\n", strings.Repeat("  ", n), section[n])
		}
		at = section
		indent := strings.Repeat("  ", len(section))
		name := s.path[len(section)]
		if len(section) > 1 && section[1] == "properties" {
			name = strconv.Quote(name)
		}
		line := indent + name + ": " + s.value
		if probe && s.probe != "" {
			line = indent + s.probe
		}
		b.WriteString(line)
		if s.from != "" {
			b.WriteString("   # " + clean(s.from))
		}
		b.WriteByte('\n')
	}
	return []byte(b.String())
}

// clean makes a text fit for one line of comment.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\u0085' || r == '\u2028' || r == '\u2029' || r == '\ufeff' || r == '\ufffd' {
			return '?'
		}
		return r
	}, s)
}

// yaml is the whole file: settings, then remarks.
func (p *proposer) yaml(diff []byte) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "# bmpha.yaml for the %s of %s, mode %s.\n", p.c.daemon(), clean(p.c.File), p.o.Mode)
	b.Write(p.render(false))
	list := func(title string, items []string) {
		if len(items) == 0 {
			return
		}
		fmt.Fprintf(&b, "\n# %s\n", title)
		for _, item := range items {
			fmt.Fprintf(&b, "#   - %s\n", clean(item))
		}
	}
	list("Not carried over:", p.lost)
	list("For you to know or to do:", p.todo)
	list("In pmacct's file without effect:", p.c.ignored())
	if len(diff) == 0 {
		b.WriteString("\n# Nothing changes in pmacct's file.\n")
		return []byte(b.String())
	}
	fmt.Fprintf(&b, "\n# Lines that change in pmacct's file (--diff prints them for patch):\n#\n")
	for line := range strings.Lines(string(diff)) {
		b.WriteString("#   " + clean(strings.TrimRight(line, "\r\n")) + "\n")
	}
	return []byte(b.String())
}

package pmconf

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/bmpha/bmpha/pkg/config"
)

// A Finding is something in which pmacct's configuration and bmpha's contradict
// each other.
type Finding struct {
	Note   bool   // it works, but perhaps not as intended
	Bmpha  string // file:line:column: key
	Pmacct string // file:line: key; without a line: the key is not set
	Msg    string // what is wrong
	Do     string // what helps
}

// String returns two lines: what is wrong and where, and what to do.
func (f Finding) String() string {
	note := ""
	if f.Note {
		note = "note: "
	}
	return fmt.Sprintf("%s, %s: %s%s\n\t%s", f.Pmacct, f.Bmpha, note, f.Msg, f.Do)
}

type checker struct {
	c    *Config
	b    *config.Config
	list []Finding
}

// Check returns what pmacct's configuration and bmpha's contradict each other in,
// for a bmpha that stands in front of this daemon, behind it, or both.
func Check(c *Config, b *config.Config) []Finding {
	k := &checker{c: c, b: b}
	if len(b.Relay.To) == 0 && !b.Intake.Active() {
		k.find("relay", "bmp_daemon_port", "bmpha stands neither in front of this daemon nor behind it",
			"set relay.to or intake.listen, or stop this daemon: bmpha alone makes the same records")
	}
	k.daemon()
	k.ports()
	k.relay()
	for _, o := range outputs {
		k.output(o)
	}
	k.intake()
	k.dump()
	if e, ok := c.nativeHA(); ok {
		k.find("cluster", e.Key, "pmacct takes part in the election as well, and what it holds back does not reach bmpha",
			"set "+e.Key+": false")
	}
	return k.list
}

// bmpha is where key stands in bmpha's configuration.
func (k *checker) bmpha(key string) string {
	file, line, col := k.b.At(key)
	if line == 0 {
		return file + ": " + key
	}
	return fmt.Sprintf("%s:%d:%d: %s", file, line, col, key)
}

func (k *checker) find(key, pmacctKey, msg, do string) {
	k.list = append(k.list, Finding{Bmpha: k.bmpha(key), Pmacct: k.c.place(pmacctKey), Msg: msg, Do: do})
}

func (k *checker) note(key, pmacctKey, msg, do string) {
	k.find(key, pmacctKey, msg, do)
	k.list[len(k.list)-1].Note = true
}

func (k *checker) daemon() {
	c := k.c
	usesBMP := slices.ContainsFunc(c.Entries, func(e Entry) bool { return strings.HasPrefix(e.Key, "bmp_") })
	if d := c.daemon(); d != "pmbmpd" && !c.isTrue("bmp_daemon") && (usesBMP || len(k.b.Relay.To) > 0) {
		k.find("relay", "bmp_daemon", d+" hears no BMP without it", "set bmp_daemon: true")
	}
	if e, ok := c.Get("bmp_daemon_ip"); ok {
		if _, err := netip.ParseAddr(e.Value); err != nil {
			k.find("relay.to", e.Key, "not an IP address, with which pmacct does not start", "set bmp_daemon_ip: 127.0.0.1")
		}
	}
}

// ports finds listeners on the same port.
func (k *checker) ports() {
	c := k.c
	host, port := c.listens()
	type listener struct {
		host, key string
		port      int
	}
	theirs := []listener{{host, "bmp_daemon_port", port}}
	if c.isTrue("bgp_daemon") {
		theirs = append(theirs, listener{c.value("bgp_daemon_ip"), "bgp_daemon_port", c.number("bgp_daemon_port", 179)})
	}
	for _, ours := range []struct {
		key       string
		addresses []string
	}{{"listen.address", k.b.Listen.Address}, {"intake.listen", k.b.Intake.Listen}} {
		for i, a := range ours.addresses {
			h, p, _ := net.SplitHostPort(a)
			for _, l := range theirs {
				if p == strconv.Itoa(l.port) && (anywhere(h) || anywhere(l.host) || sameHost(h, l.host)) {
					k.find(item(k.b, ours.key, i), l.key, fmt.Sprintf("both listen on port %d", l.port), "set another "+l.key+", such as "+strconv.Itoa(l.port+1))
				}
			}
		}
	}
}

// item is the key of a list's item as far as it has a place of its own.
func item(b *config.Config, key string, i int) string {
	one := fmt.Sprintf("%s[%d]", key, i)
	_, line, col := b.At(one)
	if _, l, c := b.At(key); l == line && c == col {
		return key
	}
	return one
}

func anywhere(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "" || err == nil && a.IsUnspecified()
}

func sameHost(a, b string) bool { return plainHost(a) == plainHost(b) }

func plainHost(s string) string {
	s = strings.ToLower(strings.Trim(s, "[]"))
	if s == "localhost" {
		return "127.0.0.1"
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Unmap().String()
	}
	return s
}

// reaches reports whether a connection to the address target can be one to a
// listener.
func reaches(target, listener string) bool {
	th, tp, err := net.SplitHostPort(target)
	lh, lp, err2 := net.SplitHostPort(listener)
	return err == nil && err2 == nil && tp == lp && (anywhere(lh) || sameHost(th, lh))
}

func (k *checker) relay() {
	c, r := k.c, &k.b.Relay
	const header = "bmp_daemon_parse_proxy_header"
	if len(r.To) == 0 {
		if c.isTrue(header) {
			k.find("relay.to", header, "without the relay any router could pass for another one", "set "+header+": false, or relay.to")
		}
		if c.number("bmp_daemon_max_peers", 0) == 0 && len(k.b.Intake.Listen) > 0 && c.daemonListens() {
			k.note("intake", "bmp_daemon_max_peers", "pmacct takes 4 (1.7.7) or 10 routers at most", "set it to what you need")
		}
		return
	}
	host, port := c.listens()
	listens := net.JoinHostPort(host, strconv.Itoa(port))
	if !slices.ContainsFunc(r.To, func(a string) bool { return reaches(a, listens) }) {
		to := listens
		if host == "" {
			to = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		}
		key := "bmp_daemon_port"
		if slices.ContainsFunc(r.To, func(a string) bool { return strings.HasSuffix(a, fmt.Sprintf(":%d", port)) }) {
			key = "bmp_daemon_ip"
		}
		k.find(item(k.b, "relay.to", 0), key, fmt.Sprintf("sessions are passed on to %s, but pmacct listens on %s", strings.Join(r.To, ", "), listens),
			"set relay.to: ["+strconv.Quote(to)+"], or pmacct's address")
	} else if ip := c.value("bmp_daemon_ip"); host == "" && (ip == "" || anywhere(ip)) && r.Proxy != config.ProxyNone {
		k.note("relay.to", "bmp_daemon_ip", "pmacct can be reached from outside, by those who pass for another router, too", "set bmp_daemon_ip: 127.0.0.1")
	}
	switch {
	case r.Proxy == config.ProxyNone:
		k.note("relay.proxy", header, "pmacct sees bmpha's address in place of every router's", "set relay.proxy: v1 and "+header+": true")
	case !c.isTrue(header):
		k.find("relay.proxy", header, "pmacct does not look for the header that each session begins with", "set "+header+": true")
	case r.Proxy == config.ProxyV2:
		k.note("relay.proxy", header, "pmacct 1.7.7 reads v2 for IPv4 only (and takes the address of IPv6 routers from neither version)", "set relay.proxy: v1, or use a later pmacct")
	}
	peers, what := c.number("bmp_daemon_max_peers", 0), "pmacct takes %d sessions"
	if peers <= 0 {
		peers, what = 4, "pmacct takes %d sessions (10 in later versions than 1.7.7)"
	}
	if need := k.b.Listen.MaxSessions; peers < need {
		k.find("listen.max_sessions", "bmp_daemon_max_peers", fmt.Sprintf(what+" and bmpha %d, so it would refuse the others", peers, need),
			fmt.Sprintf("set bmp_daemon_max_peers: %d, or listen.max_sessions: %d", need, peers))
	}
	if e, ok := c.Get("bmp_daemon_allow_file"); ok {
		mine := slices.ContainsFunc(c.Allow, func(p netip.Prefix) bool {
			return p.Contains(netip.AddrFrom4([4]byte{127, 0, 0, 1})) || p.Contains(netip.IPv6Loopback())
		})
		if !mine {
			k.find("relay.to", e.Key, "pmacct compares it with bmpha's address, not with the router's in the header", "take it out and set listen.allow")
		}
	}
}

// daemonListens reports whether the daemon has BMP sessions at all.
func (c *Config) daemonListens() bool { return c.daemon() == "pmbmpd" || c.isTrue("bmp_daemon") }

// output checks one kind of records.
func (k *checker) output(o output) {
	c, b := k.c, k.b
	if o.refresh != "" {
		for _, suffix := range []string{"_file", "_kafka_topic", "_amqp_routing_key"} {
			if n := c.number(o.refresh, 0); c.value(o.prefix+suffix) != "" && (n < 60 || n > 86400) {
				k.find("intake", o.refresh, "pmacct writes no "+o.what+" without it", "set "+o.refresh+" to 60 to 86400 seconds")
			}
		}
	}
	topic, ok := c.toKafka(o)
	if !ok {
		return
	}
	kafka := o.prefix + "_kafka_"
	brokers := c.brokers(o)
	past, listening := "", false
	for _, x := range brokers {
		switch {
		case slices.ContainsFunc(b.Kafka.Brokers, func(a string) bool { return reaches(x.address, a) }):
			past = x.from
		case slices.ContainsFunc(b.Intake.Listen, func(a string) bool { return reaches(x.address, a) }):
			listening = true
		}
	}
	if len(b.Intake.Listen) == 0 {
		k.direct(o, topic, past)
		return
	}
	do := fmt.Sprintf("set %sbroker_host and %sbroker_port to intake.listen (%s)", kafka, kafka, strings.Join(b.Intake.Listen, ", "))
	switch {
	case past != "":
		k.list = append(k.list, Finding{
			Bmpha: k.bmpha("kafka.brokers"), Pmacct: past, Do: do,
			Msg: o.what + " still go to Kafka, past bmpha",
		})
		if !strings.HasPrefix(past, c.File+":") {
			k.list[len(k.list)-1].Do = "take it out of " + c.value(kafka+"config_file") + ", or " + kafka + "config_file out of " + c.File
		}
		return
	case !listening && o.prefix == msglog.prefix:
		k.find(item(b, "intake.listen", 0), kafka+"broker_host", fmt.Sprintf("%s go to %s, where bmpha does not listen", o.what, brokers[0].address), do)
		return
	case !listening:
		k.note(item(b, "intake.listen", 0), kafka+"broker_host", fmt.Sprintf("%s go to %s from each collector", o.what, brokers[0].address), do)
		return
	}
	k.redirected(o, topic)
}

// direct is for an output when bmpha takes no records of pmacct's.
func (k *checker) direct(o output, topic Entry, past string) {
	switch {
	case o.prefix == msglog.prefix && k.b.Decodes() && k.b.Sink == config.SinkKafka:
		k.find("kafka.topic", topic.Key, "pmacct and bmpha both write "+o.what+" to Kafka: everything twice",
			"comment out "+o.prefix+"_kafka_*, or set intake.listen and make pmacct write there")
	case o.prefix == tableDump.prefix && k.b.Dump.Topic != "" && past != "":
		k.find("dump.topic", topic.Key, "pmacct and bmpha both write "+o.what+" to Kafka: everything twice",
			"comment out "+o.prefix+"_kafka_*, or set intake.listen and make pmacct write there")
	case o.prefix == tableDump.prefix && past != "":
		k.note("dump", topic.Key, o.what+" go to Kafka from each collector",
			"set dump.period and dump.topic and comment out "+o.prefix+"_kafka_*, or set intake.listen and make pmacct write there")
	case past != "":
		k.note("kafka.brokers", topic.Key, o.what+" go to Kafka from each collector", "set intake.listen and make pmacct write there")
	}
}

// redirected is for an output that goes to the intake.
func (k *checker) redirected(o output, topic Entry) {
	c, b := k.c, k.b
	kafka := o.prefix + "_kafka_"
	if o.prefix == msglog.prefix && b.Decodes() {
		k.find("output.decode", topic.Key, "bmpha decodes BMP and takes pmacct's records as well: everything twice", "set output.decode: auto")
	}
	if n := c.number(kafka+"partition", -1); n >= b.Intake.Partitions {
		k.find("intake.partitions", kafka+"partition", fmt.Sprintf("there is no partition %d of %d", n, b.Intake.Partitions),
			fmt.Sprintf("set intake.partitions: %d", n+1))
	}
	for _, key := range []string{kafka + "topic", kafka + "partition_key"} {
		if varies(c.value(key)) && b.Kafka.Order == config.OrderRouter {
			k.find("kafka.order", key, "a router's port differs between collectors: its records would change their place at a takeover and lose their order",
				"take the port out of it, or set kafka.order: none")
		}
	}
	if x, ok := c.properties(o).Get("security.protocol"); ok && !strings.EqualFold(x.Value, "plaintext") {
		k.find("intake.listen", kafka+"config_file", fmt.Sprintf("security.protocol is %s there (line %d), and the intake speaks plaintext", x.Value, x.Line),
			"comment "+kafka+"config_file out; bmpha's kafka.tls and kafka.sasl take its place")
	}
	if o.prefix == msglog.prefix && c.number(kafka+"retry", 60) > 10 {
		k.note("intake.listen", kafka+"retry", "after an error pmacct throws its records away for that many seconds (60 by default)", "set "+kafka+"retry: 1")
	}
}

// intake finds an intake into which nothing comes.
func (k *checker) intake() {
	c, in := k.c, &k.b.Intake
	if len(in.Listen) > 0 && !slices.ContainsFunc(outputs, func(o output) bool { _, ok := c.toKafka(o); return ok }) {
		k.find(item(k.b, "intake.listen", 0), "bmp_daemon_msglog_kafka_topic", "pmacct writes nothing to Kafka, so nothing comes in", "set it, or take intake.listen out")
	}
	if len(in.Files) == 0 {
		return
	}
	e, ok := c.Get("bmp_daemon_msglog_file")
	sample := variable.ReplaceAllString(e.Value, "1")
	switch {
	case !ok:
		k.note(item(k.b, "intake.files", 0), "bmp_daemon_msglog_file", "pmacct writes BMP messages to no file", "set it, or take intake.files out")
	case !slices.ContainsFunc(in.Files, func(pattern string) bool { m, _ := filepath.Match(pattern, sample); return m }):
		k.find(item(k.b, "intake.files", 0), e.Key, "the files that pmacct writes are not followed", "set intake.files to a pattern of theirs")
	}
}

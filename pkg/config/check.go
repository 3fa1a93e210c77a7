package config

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// The key that the election writes to Redis is
// cluster+id+process+ha_daemon_startup_time, and native pmacct has room for 160
// bytes with the terminator.
const (
	electionSuffix = "+ha_daemon_startup_time"
	maxElectionKey = 159 // bytes
)

// maxMembers is how many members a collector looks at.
const maxMembers = 1024

// fail reports that the value of key is wrong, unless key, or one of others on
// which the finding rests, has been reported.
func (d *decoder) fail(key string, others []string, format string, args ...any) {
	d.failHint(key, others, "", format, args...)
}

func (d *decoder) failHint(key string, others []string, hint, format string, args ...any) {
	for _, k := range append([]string{key}, others...) {
		if d.isFailed(k) {
			return
		}
	}
	d.errorAt(d.config.position(key), key, hint, format, args...)
}

// check reports what single values and their combinations get wrong.
func (d *decoder) check() {
	d.checkNames()
	d.checkListen()
	d.checkTable()
	d.checkRelay()
	d.checkIntake()
	d.checkRedis()
	d.checkLink()
	d.checkHold()
	d.checkSpool()
	if d.config.Sink == SinkFile && d.config.File.Path == "" {
		d.fail("file.path", []string{"sink"}, "required for sink: file")
	}
	d.checkKafka()
	d.checkTemplates()
	d.checkDump()
	d.checkControl()
}

func (d *decoder) checkNames() {
	c := d.config
	if c.Process == "" {
		d.failHint("process", nil, "the name of this collector in the cluster, different on each", "required")
	}
	d.checkName("process", c.Process)
	if c.Cluster.Name == "" {
		d.fail("cluster.name", nil, "expected a name, found nothing")
	}
	d.checkName("cluster.name", c.Cluster.Name)
	if c.Cluster.ID < 0 || c.Cluster.ID > 1<<31-1 {
		d.fail("cluster.id", nil, "expected 0 to %d, found %d", 1<<31-1, c.Cluster.ID)
	}
	if c.Cluster.Members < 0 || c.Cluster.Members > maxMembers {
		d.fail("cluster.members", nil, "expected 0 (not said) or 1 to %d collectors, found %d", maxMembers, c.Cluster.Members)
	}
	key := fmt.Sprintf("%s+%d+%s%s", c.Cluster.Name, c.Cluster.ID, c.Process, electionSuffix)
	if len(key) > maxElectionKey {
		d.fail("process", []string{"cluster.name", "cluster.id"},
			"too long: with the cluster's name and id expected at most %d bytes, found %d",
			maxElectionKey-len("++"+electionSuffix), len(key)-len("++"+electionSuffix))
	}
	for addr, alias := range c.Routers {
		key := d.routerKey(addr)
		if alias == "" {
			d.fail(key, nil, "expected an alias, found nothing")
		}
		d.checkName(key, alias)
	}
}

// routerKey finds the key under which addr was written.
func (d *decoder) routerKey(addr netip.Addr) string {
	for key := range d.config.at {
		if s, ok := strings.CutPrefix(key, "routers."); ok {
			if a, err := netip.ParseAddr(s); err == nil && a.Unmap() == addr {
				return key
			}
		}
	}
	return "routers." + addr.String()
}

// checkName refuses what would break keys in Redis: + separates their parts, and
// native pmacct finds them by a glob pattern.
func (d *decoder) checkName(key, name string) {
	bad := strings.IndexFunc(name, func(r rune) bool {
		return strings.ContainsRune(`+*?[]\`, r) || unicode.IsSpace(r) || !unicode.IsPrint(r)
	})
	if bad >= 0 {
		d.fail(key, nil, `expected a name without spaces, + and the glob characters * ? [ ] \, found %q`, name)
	}
}

func (d *decoder) checkListen() {
	l := &d.config.Listen
	if len(l.Address) == 0 && !d.config.Intake.Active() {
		d.fail("listen.address", nil, "expected at least one address such as :1790, found an empty list")
	}
	for i, address := range l.Address {
		key := d.itemKey("listen.address", i)
		d.checkHostPort(key, address, true)
		if slices.Contains(l.Address[:i], address) && !strings.HasSuffix(address, ":0") {
			d.fail(key, nil, "%s is in the list already", address)
		}
	}
	if l.MaxSessions < 1 {
		d.fail("listen.max_sessions", nil, "expected at least 1, found %d", l.MaxSessions)
	}
	if l.MaxMessage < 4<<10 || l.MaxMessage > 64<<20 {
		d.fail("listen.max_message", nil, "expected 4KiB to 64MiB, found %s", formatBytes(l.MaxMessage))
	}
	if l.Keepalive != 0 && l.Keepalive < time.Second {
		d.fail("listen.keepalive", nil, "expected 0 (off) or at least 1s, found %v", l.Keepalive)
	}
	if l.ReadTimeout == 0 {
		d.fail("listen.read_timeout", nil, "expected more than 0: a router that stops within a message must be noticed")
	}
}

// checkTable reports what needs a table that is not kept. A relay that was not
// told how to bring targets up to date does without.
func (d *decoder) checkTable() {
	c := d.config
	if c.TableMemory != 0 && c.TableMemory < 16<<20 {
		d.fail("table_memory", nil, "expected 0 (no limit) or at least 16MiB, found %s", formatBytes(c.TableMemory))
	}
	if c.Table == TableOff || c.Table == TableState {
		if len(c.Relay.To) > 0 && !c.isSet("relay.resync") {
			c.Relay.Resync = ResyncReset
		}
		const hint = "or leave table at auto"
		switch {
		case len(c.Relay.To) > 0 && c.Relay.Resync == ResyncReplay:
			d.failHint("relay.resync", []string{"table"}, hint, "replay needs table: full, found table: %s", c.Table)
		case c.Output.RIB == RIBOn:
			d.failHint("output.rib", []string{"table"}, hint, "on needs table: full, found table: %s", c.Table)
		case c.Table == TableOff && c.isSet("redump") && c.Redump == RedumpDiff:
			d.failHint("redump", []string{"table"}, hint, "diff needs table: state or full, found table: off")
		}
	}
	if c.Output.RIB == RIBOn && !c.Decodes() {
		d.fail("output.rib", []string{"output.decode", "intake.listen", "intake.files"}, "has no effect where BMP is not decoded (output.decode)")
	}
}

func (d *decoder) checkRelay() {
	r := &d.config.Relay
	for i, address := range r.To {
		key := d.itemKey("relay.to", i)
		d.checkHostPort(key, address, false)
		if slices.Contains(r.To[:i], address) {
			d.fail(key, nil, "%s is in the list already", address)
		}
		if own := d.ownListener(address); own != "" {
			d.fail(key, []string{own}, "%s is this collector itself (%s): sessions would go round in a circle", address, own)
		}
	}
	if r.Buffer < 64<<10 {
		d.fail("relay.buffer", nil, "expected at least 64KiB, found %s", formatBytes(r.Buffer))
	}
	if r.Parallel < 1 {
		d.fail("relay.parallel", nil, "expected at least 1, found %d", r.Parallel)
	}
	if len(r.To) > 0 {
		return
	}
	d.noEffect("relay", "relay.to", "proxy", "buffer", "resync", "parallel", "patience")
	if d.config.Output.Decode == DecodeNever && !d.config.Intake.Active() {
		d.fail("output.decode", []string{"relay.to", "intake.listen", "intake.files"},
			"never: without relay.to and intake there would be nothing to do")
	}
}

// ownListener returns the key of the listener that a local address means, or "".
func (d *decoder) ownListener(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil || port == "0" {
		return ""
	}
	ip, err := netip.ParseAddr(host)
	local := host == "localhost" || err == nil && (ip.IsLoopback() || ip.IsUnspecified())
	for key, list := range map[string][]string{"listen.address": d.config.Listen.Address, "intake.listen": d.config.Intake.Listen} {
		for i, l := range list {
			h, p, err := net.SplitHostPort(l)
			if err != nil || p != port {
				continue
			}
			lip, err := netip.ParseAddr(h)
			anywhere := h == "" || err == nil && lip.IsUnspecified()
			if h == host || local && anywhere {
				return d.itemKey(key, i)
			}
		}
	}
	return ""
}

func (d *decoder) checkIntake() {
	in := &d.config.Intake
	for i, address := range in.Listen {
		key := d.itemKey("intake.listen", i)
		d.checkHostPort(key, address, true)
		if slices.Contains(in.Listen[:i], address) && !strings.HasSuffix(address, ":0") {
			d.fail(key, nil, "%s is in the list already", address)
		}
		if slices.Contains(d.config.Listen.Address, address) && !strings.HasSuffix(address, ":0") {
			d.fail(key, []string{"listen.address"}, "%s is where routers connect (listen.address)", address)
		}
	}
	if in.Advertise != "" {
		d.checkHostPort("intake.advertise", in.Advertise, false)
	}
	if in.Partitions < 1 || in.Partitions > 10_000 {
		d.fail("intake.partitions", nil, "expected 1 to 10000, found %d", in.Partitions)
	}
	for i, pattern := range in.Files {
		key := d.itemKey("intake.files", i)
		if _, err := filepath.Match(pattern, ""); err != nil || !filepath.IsAbs(pattern) {
			d.fail(key, nil, "expected an absolute path, which may have * ? and [a-z], found %q", pattern)
		}
	}
	if in.Positions == "" {
		d.fail("intake.positions", nil, "expected the path of a file, found nothing")
	}
	if len(in.Listen) == 0 {
		d.noEffect("intake", "intake.listen", "allow", "advertise", "partitions")
	}
	if len(in.Files) == 0 {
		d.noEffect("intake", "intake.files", "positions")
	}
}

func (d *decoder) checkSpool() {
	s := &d.config.Spool
	if s.Dir == "" {
		d.noEffect("spool", "spool.dir", "max_bytes")
		return
	}
	if !filepath.IsAbs(s.Dir) {
		d.fail("spool.dir", nil, "expected an absolute path, found %q", s.Dir)
	}
	if s.MaxBytes < 64<<20 {
		d.fail("spool.max_bytes", nil, "expected at least 64MiB, found %s", formatBytes(s.MaxBytes))
	}
}

// noEffect reports those keys of a section that were changed although they mean
// nothing without another.
func (d *decoder) noEffect(section, without string, names ...string) {
	defaults := Default()
	got := maps.Collect(leaves(reflect.ValueOf(d.config).Elem(), ""))
	for key, l := range leaves(reflect.ValueOf(&defaults).Elem(), "") {
		for _, name := range names {
			if key == section+"."+name && !reflect.DeepEqual(l.value.Interface(), got[key].value.Interface()) {
				d.fail(key, []string{without}, "has no effect without %s", without)
			}
		}
	}
}

// itemKey is the key of a list's item, or of the list when it was written as a
// single value or in the environment.
func (d *decoder) itemKey(key string, i int) string {
	item := fmt.Sprintf("%s[%d]", key, i)
	if _, ok := d.config.at[item]; ok {
		return item
	}
	return key
}

var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_.])?$`)

// checkHostPort checks an address to listen on, or else one to connect to.
func (d *decoder) checkHostPort(key, address string, listen bool) {
	want := "host:port"
	if listen {
		want = "IP:port or :port"
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		d.failHint(key, nil, portHint(key, address), "expected %s, found %q", want, address)
		return
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 && !listen {
		d.fail(key, nil, "expected a port from 1 to 65535, found %q", port)
	}
	_, err = netip.ParseAddr(host)
	switch {
	case err == nil:
	case listen && host == "":
	case !listen && hostName.MatchString(host):
	default:
		d.fail(key, nil, "expected %s, found %q", want, address)
	}
}

// portHint completes an address that lacks its port or the brackets of IPv6.
func portHint(key, address string) string {
	port := map[string]string{"listen.address": "1790", "relay.to": "1791", "intake.listen": "9093", "redis.address": "6379",
		"redis.sentinel.addresses": "26379", "redis.cluster": "6379", "kafka.brokers": "9092"}
	key, _, _ = strings.Cut(key, "[")
	host := strings.Trim(address, "[]")
	if _, err := netip.ParseAddr(host); port[key] == "" || err != nil && !hostName.MatchString(host) {
		return ""
	}
	return fmt.Sprintf("did you mean %q?", net.JoinHostPort(host, port[key]))
}

func (d *decoder) checkRedis() {
	r := &d.config.Redis
	switch {
	case r.Sentinel.Active() && r.Address != "":
		d.failHint("redis.sentinel", []string{"redis.address"}, "the sentinels know the address", "redis.address is set as well; expected one of the two")
	case len(r.Cluster) > 0 && r.Address != "":
		d.failHint("redis.cluster", []string{"redis.address"}, "one address in redis.cluster is enough", "redis.address is set as well; expected one of the two")
	case r.Sentinel.Active() && len(r.Cluster) > 0:
		d.fail("redis.cluster", []string{"redis.sentinel"}, "redis.sentinel is set as well; expected one of the two")
	case r.Address != "":
		d.checkHostPort("redis.address", r.Address, false)
	case !r.Sentinel.Active() && len(r.Cluster) == 0:
		d.failHint("redis.address", []string{"redis.sentinel", "redis.cluster"}, "such as 127.0.0.1:6379, or redis.sentinel, or redis.cluster", "required")
	}
	d.checkSentinel()
	d.checkAddresses("redis.cluster", r.Cluster)
	if len(r.Cluster) > 0 && r.Database != 0 {
		d.fail("redis.database", []string{"redis.cluster"}, "expected 0 with redis.cluster, found %d", r.Database)
	}
	if r.Database < 0 {
		d.fail("redis.database", nil, "expected 0 or more, found %d", r.Database)
	}
	if r.Username != "" && r.Password == "" {
		d.fail("redis.username", []string{"redis.password", "redis.password_file"}, "expected redis.password or redis.password_file with it")
	}
	d.checkTLS("redis.tls", r.TLS.Enabled, r.TLS.Cert, r.TLS.Key, map[string]string{
		"ca": r.TLS.CA, "cert": r.TLS.Cert, "key": r.TLS.Key, "server_name": r.TLS.ServerName,
	})
	if r.Heartbeat < 50*time.Millisecond {
		d.fail("redis.heartbeat", nil, "expected at least 50ms, found %v", r.Heartbeat)
	}
	if r.Expiry/2 < r.Heartbeat {
		d.fail("redis.expiry", []string{"redis.heartbeat"},
			"expected at least two heartbeats (redis.heartbeat is %v), found %v", r.Heartbeat, r.Expiry)
	}
}

func (d *decoder) checkSentinel() {
	s := &d.config.Redis.Sentinel
	const section = "redis.sentinel."
	if !s.Active() {
		d.noEffect("redis.sentinel", section+"master", "username", passwordKey("password", s.PasswordFile))
		return
	}
	if s.Master == "" {
		d.failHint(section+"master", nil, "the name that the sentinels have for the set of servers", "required with redis.sentinel.addresses")
	}
	if len(s.Addresses) == 0 {
		d.failHint(section+"addresses", nil, "such as [127.0.0.1:26379]", "required with redis.sentinel.master")
	}
	d.checkAddresses(section+"addresses", s.Addresses)
	if s.Username != "" && s.Password == "" {
		d.fail(section+"username", []string{section + "password", section + "password_file"},
			"expected redis.sentinel.password or redis.sentinel.password_file with it")
	}
}

// passwordKey is the key from which the secret called name came.
func passwordKey(name, file string) string {
	if file != "" {
		return name + "_file"
	}
	return name
}

// checkAddresses checks a list of addresses to connect to, each of which may be
// there once.
func (d *decoder) checkAddresses(key string, list []string) {
	for i, address := range list {
		item := d.itemKey(key, i)
		d.checkHostPort(item, address, false)
		if slices.Contains(list[:i], address) {
			d.fail(item, nil, "%s is in the list already", address)
		}
	}
}

// minLinkSecret keeps the secret from being guessed by those who listened to a
// handshake.
const minLinkSecret = 16 // bytes

func (d *decoder) checkLink() {
	l := &d.config.Link
	if d.config.RedisLost == RedisLostHold && l.Listen == "" {
		d.fail("redis_lost", []string{"link.listen"}, "hold needs link.listen: without Redis the collectors must hear each other")
	}
	if l.Listen == "" {
		d.noEffect("link", "link.listen", "advertise", passwordKey("secret", l.SecretFile))
		return
	}
	d.checkHostPort("link.listen", l.Listen, true)
	if own := d.ownListener(l.Listen); own != "" {
		d.fail("link.listen", []string{own}, "%s is a listener already (%s)", l.Listen, own)
	}
	if l.Advertise != "" {
		d.checkHostPort("link.advertise", l.Advertise, false)
	} else if host, _, err := net.SplitHostPort(l.Listen); err == nil {
		if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
			d.failHint("link.advertise", []string{"link.listen"}, "or name an address of this host in link.listen",
				"required with link.listen: %q, which does not tell the others where to connect", l.Listen)
		}
	}
	switch {
	case l.Secret == "":
		d.failHint("link.secret", []string{"link.secret_file"}, "or link.secret_file; the same on all collectors", "required with link.listen")
	case len(l.Secret) < minLinkSecret:
		d.fail("link."+passwordKey("secret", l.SecretFile), nil, "expected at least %d bytes, found %d", minLinkSecret, len(l.Secret))
	}
}

// checkTLS checks one section tls; set has its keys that mean nothing alone.
func (d *decoder) checkTLS(section string, enabled bool, cert, key string, set map[string]string) {
	if !enabled {
		for name, value := range set {
			if value != "" {
				d.fail(section+"."+name, []string{section + ".enabled"}, "has no effect without %s.enabled: true", section)
			}
		}
		return
	}
	if cert != "" && key == "" {
		d.fail(section+".cert", []string{section + ".key"}, "expected %s.key with it", section)
	}
	if key != "" && cert == "" {
		d.fail(section+".key", []string{section + ".cert"}, "expected %s.cert with it", section)
	}
}

func (d *decoder) checkHold() {
	c := d.config
	if c.Hold.Memory < c.Listen.MaxMessage {
		d.fail("hold.memory", []string{"listen.max_message"},
			"expected room for one message at least (listen.max_message is %s), found %s",
			formatBytes(c.Listen.MaxMessage), formatBytes(c.Hold.Memory))
	}
	// The time after which the others know that the active collector is gone, a
	// round late at either end, and the skew between sessions.
	least := c.Redis.Expiry + 2*c.Redis.Heartbeat + c.Hold.Margin
	if c.Hold.Window < least || least < c.Redis.Expiry {
		d.fail("hold.window", []string{"redis.expiry", "redis.heartbeat", "hold.margin"},
			"expected at least redis.expiry + 2 × redis.heartbeat + hold.margin = %v, found %v", least, c.Hold.Window)
		return
	}
	// Native members have timers of their own and give no low-water marks.
	const nativeExpiry, nativeHeartbeat = 3 * time.Second, time.Second
	if least := nativeExpiry + nativeHeartbeat + c.Hold.Margin; c.Redis.Scan && c.Hold.Window < least {
		d.failHint("hold.window", []string{"redis.scan", "hold.margin"}, "or say redis.scan: false",
			"expected at least %v for native pmacct members, whose timestamps expire after %v, found %v", least, nativeExpiry, c.Hold.Window)
	}
}

func (d *decoder) checkKafka() {
	k := &d.config.Kafka
	if len(k.Brokers) == 0 && d.config.Sink == SinkKafka {
		d.failHint("kafka.brokers", []string{"sink"}, "such as 127.0.0.1:9092", "required for sink: kafka")
	}
	for i, broker := range k.Brokers {
		d.checkHostPort(d.itemKey("kafka.brokers", i), broker, false)
	}
	if k.InFlight < 1 || k.InFlight > 100_000 {
		d.fail("kafka.in_flight", nil, "expected 1 to 100000 records, found %d", k.InFlight)
	}
	switch {
	case k.Fencing && d.config.Sink != SinkKafka:
		d.fail("kafka.fencing", []string{"sink"}, "true needs sink: kafka, found sink: %s", d.config.Sink)
	case k.Fencing && k.Client == ClientReference:
		d.fail("kafka.fencing", []string{"kafka.client"}, "true needs kafka.client: native, found kafka.client: reference")
	case k.Fencing && k.ReadBack == 0:
		d.fail("kafka.fencing", []string{"kafka.read_back"}, "true needs kafka.read_back, found 0: who takes over fences where it reads back")
	case k.Fencing && !d.config.Output.Header:
		d.fail("kafka.fencing", []string{"output.header"}, "true needs output.header: true, found false: who takes over fences where it reads back")
	case !k.Fencing:
		d.noEffect("kafka", "kafka.fencing", "commit_interval")
	}
	if k.CommitInterval < 10*time.Millisecond || k.CommitInterval > 10*time.Second {
		d.fail("kafka.commit_interval", nil, "expected 10ms to 10s, found %v", formatDuration(k.CommitInterval))
	}
	if k.ReadBack != 0 && (k.ReadBack < 50*time.Millisecond || k.ReadBack > 30*time.Second) {
		d.fail("kafka.read_back", nil, "expected 0 (never) or 50ms to 30s, found %v", formatDuration(k.ReadBack))
	}
	if k.DeadLetter == "" {
		d.fail("kafka.dead_letter", nil, "expected the path of a file, found nothing")
	}
	keyPassword := string(k.TLS.KeyPassword)
	if k.TLS.KeyPasswordFile != "" {
		keyPassword = "" // reported under its own key
	}
	d.checkTLS("kafka.tls", k.TLS.Enabled, k.TLS.Cert, k.TLS.Key, map[string]string{
		"ca": k.TLS.CA, "cert": k.TLS.Cert, "key": k.TLS.Key,
		"key_password": keyPassword, "key_password_file": k.TLS.KeyPasswordFile,
	})
	d.checkSASL()
}

func (d *decoder) checkSASL() {
	s := &d.config.Kafka.SASL
	const section = "kafka.sasl."
	password := section + "password"
	if d.config.Kafka.SASL.PasswordFile != "" {
		password = section + "password_file"
	}
	if s.Mechanism == "" {
		for key, value := range map[string]string{section + "username": s.Username, password: string(s.Password)} {
			if value != "" {
				d.fail(key, []string{section + "mechanism"}, "has no effect without kafka.sasl.mechanism")
			}
		}
		return
	}
	if s.Username == "" {
		d.fail(section+"username", nil, "required for kafka.sasl.mechanism: %s", s.Mechanism)
	}
	if s.Password == "" {
		d.failHint(section+"password", []string{section + "password_file"}, "or kafka.sasl.password_file",
			"required for kafka.sasl.mechanism: %s", s.Mechanism)
	}
}

var legalTopic = regexp.MustCompile(`^[a-zA-Z0-9._-]+$`)

// maxTopic is Kafka's limit for the name of a topic, in bytes.
const maxTopic = 249

// longestAddress makes the longest of what a template can become.
var longestAddress = netip.MustParseAddr("2001:1db8:1111:2222:3333:4444:5555:6666")

// checkTopic checks the template of a topic.
func (d *decoder) checkTopic(key, tmpl string) {
	topic := Expand(tmpl, longestAddress, 65535)
	d.checkVariables(key, topic)
	switch {
	case topic == "":
		d.fail(key, nil, "expected a topic, found nothing")
	case !legalTopic.MatchString(topic) || topic == "." || topic == "..":
		d.fail(key, nil, "expected letters, digits, dots, - and _ (and $bmp_router), found %q", tmpl)
	case len(topic) > maxTopic:
		d.fail(key, nil, "too long: expected at most %d bytes, found up to %d", maxTopic, len(topic))
	}
}

func (d *decoder) checkTemplates() {
	k := &d.config.Kafka
	d.checkTopic("kafka.topic", k.Topic)
	d.checkVariables("kafka.key", Expand(k.Key, longestAddress, 65535))
	if k.Order == OrderRouter {
		const hint = "or say kafka.order: none"
		related := []string{"kafka.order"}
		if varies(k.Topic) {
			d.failHint("kafka.topic", related, hint, "a router's port differs between collectors: its records would change their topic at a takeover")
		}
		if varies(k.Key) {
			d.failHint("kafka.key", related, hint, "a router's port differs between collectors: its records would change their partition at a takeover and lose their order")
		}
		if k.Key == "" {
			d.failHint("kafka.key", related, hint, "without a key a router's records go to any partition and lose their order")
		}
	}

	id := d.config.Output.WriterID
	rest := strings.NewReplacer("$proc_name", "", "$writer_pid", "", "$pmacct_build", "").Replace(id)
	switch {
	case id == "":
		d.fail("output.writer_id", nil, "expected a text, found nothing")
	case strings.Contains(rest, "$"):
		d.fail("output.writer_id", nil, "expected the variables $proc_name, $writer_pid and $pmacct_build only, found %q", id)
	}
}

// checkVariables reports what Expand left over.
func (d *decoder) checkVariables(key, expanded string) {
	if i := strings.IndexByte(expanded, '$'); i >= 0 {
		d.fail(key, nil, "expected at most one of $bmp_router and $peer_src_ip and one of $bmp_router_port and $peer_tcp_port, found %q besides", expanded[i:])
	}
}

func (d *decoder) checkControl() {
	const maxSocket = 107 // bytes, by the kernel's struct sockaddr_un
	c := &d.config.Control
	if c.Socket == "" {
		d.fail("control.socket", nil, "expected a path, found nothing")
	}
	if len(c.Socket) > maxSocket {
		d.fail("control.socket", nil, "expected a path of at most %d bytes, found %d", maxSocket, len(c.Socket))
	}
	if c.HTTP != "" {
		d.checkHostPort("control.http", c.HTTP, true)
	}
}

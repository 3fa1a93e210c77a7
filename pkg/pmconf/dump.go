package pmconf

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/bmpha/bmpha/pkg/config"
)

// tableDump is pmacct's counterpart of bmpha's dump section.
var tableDump = outputs[1]

// dumps reports whether the daemon dumps BMP tables to Kafka or to files.
func (c *Config) dumps() bool {
	period := c.number(tableDump.refresh, 0)
	return (c.value("bmp_dump_kafka_topic") != "" || c.value("bmp_dump_file") != "") && period >= 60 && period <= 86400
}

// dump makes bmpha dump the tables in place of pmacct, as far as it can.
func (p *proposer) dump() {
	c := p.c
	if !c.dumps() {
		return
	}
	if e, ok := c.Get("bmp_dump_output"); ok && e.Value != "json" {
		p.lose("%s: bmpha's dumps are JSON: pmacct's stay as they are, on each collector; with --mode both one of them makes them", c.at(e))
		return
	}
	var to []setting
	if e, ok := c.toKafka(tableDump); ok {
		switch {
		case !sameBrokers(c.brokers(msglog), c.brokers(tableDump)):
			p.lose("%s: %s go to another Kafka than %s and stay as they are, on each collector", c.at(e), tableDump.what, msglog.what)
		case varies(e.Value):
			p.lose("%s: has the session's port in it, which differs between collectors: %s stay as they are", c.at(e), tableDump.what)
		default:
			to = append(to, setting{path: []string{"dump", "topic"}, value: text(e.Value), from: c.at(e)})
		}
	}
	if e, ok := c.Get("bmp_dump_file"); ok {
		if why := unfitFile(e.Value); why != "" {
			p.lose("%s: %s: pmacct goes on writing there, on each collector", c.at(e), why)
		} else {
			to = append(to, setting{path: []string{"dump", "file"}, value: strconv.Quote(e.Value), from: c.at(e)})
			if l, ok := c.Get("bmp_dump_latest_file"); ok {
				if why := unfitFile(l.Value); why != "" || strings.Contains(l.Value, "%") {
					p.lose("%s: the link needs an absolute path for each router ($bmp_router)", c.at(l))
				} else {
					to = append(to, setting{path: []string{"dump", "latest"}, value: strconv.Quote(l.Value), from: c.at(l)})
				}
			}
		}
	}
	if len(to) == 0 {
		return
	}
	p.put(c.place(tableDump.refresh), fmt.Sprintf("%ds", c.number(tableDump.refresh, 0)), "dump", "period")
	if e, ok := c.Get("bmp_dump_time_slots"); ok {
		if n, period := c.number(e.Key, 1), c.number(tableDump.refresh, 0); n >= 1 && period%n == 0 {
			p.put(c.at(e), strconv.Itoa(n), "dump", "slots")
		} else {
			p.lose("%s: does not divide %s", c.at(e), c.place(tableDump.refresh))
		}
	}
	p.settings = append(p.settings, to...)
	if e, ok := c.Get("bmp_dump_exclude_stats"); ok && c.isTrue(e.Key) {
		p.put(c.at(e), "false", "dump", "stats")
	}
	if e, ok := c.Get("bmp_dump_kafka_partition_key"); ok && e.Value != c.value("bmp_daemon_msglog_kafka_partition_key") {
		p.lose("%s: bmpha's dumps have the key of its other records, kafka.key", c.at(e))
	}
	for _, key := range []string{"bmp_dump_kafka_topic_rr", "bmp_dump_kafka_partition"} {
		if e, ok := c.Get(key); ok && c.number(key, -1) >= 0 {
			p.lose("%s: bmpha's own records do not have this; with --mode both they stay pmacct's", c.at(e))
		}
	}
	for _, e := range c.Entries {
		if strings.HasPrefix(e.Key, tableDump.prefix+"_") && !strings.HasPrefix(e.Key, tableDump.prefix+"_amqp_") {
			p.edits.comment(e.Key)
		}
	}
	p.hand("%s: bmpha dumps the tables from now on, on that collector that sends for the router; its dumps have the state of all peers in them, not only what has changed since the one before", c.place(tableDump.refresh))
}

// unfitFile says why bmpha cannot write dumps to a path, "" if it can.
func unfitFile(path string) string {
	v4, v6 := netip.AddrFrom4([4]byte{192, 0, 2, 1}), netip.IPv6Loopback()
	switch {
	case !filepath.IsAbs(path):
		return "expected an absolute path"
	case config.Expand(path, v4, 0) == config.Expand(path, v6, 0):
		return "bmpha writes a file for each router, and $bmp_router is missing"
	}
	if _, err := config.ExpandFile(path, v4, 0, time.Unix(0, 0)); err != nil {
		return err.Error()
	}
	return ""
}

// dump finds dumps that both make.
func (k *checker) dump() {
	c, b := k.c, k.b
	if b.Dump.Period == 0 || !c.dumps() {
		return
	}
	if e, ok := c.Get("bmp_dump_file"); ok && e.Value == b.Dump.File {
		k.find("dump.file", e.Key, "pmacct and bmpha write the same files", "comment out bmp_dump_file, or write to other ones")
	}
}

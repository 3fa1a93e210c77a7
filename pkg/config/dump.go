package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"
)

// Dump says when the routers' tables are dumped as a whole, and to where. Topic,
// File and Latest are templates as Kafka.Topic is, and may differ from router to
// router; File is one for [ExpandFile].
type Dump struct {
	Period time.Duration `yaml:"period"` // from one dump of a router to its next, 1 min to 24 h; 0: none
	Slots  int           `yaml:"slots"`  // of a period, over which routers are spread; 1 to as many as it has seconds
	Topic  string        `yaml:"topic"`  // of Kafka; empty: none
	File   string        `yaml:"file"`   // path; empty: none
	Latest string        `yaml:"latest"` // path of a symbolic link to the newest file; empty: none
	Stats  bool          `yaml:"stats"`  // dumps have the last Statistics Report of each peer
}

// Limits of Dump.Period, pmacct's.
const (
	minDumpPeriod = time.Minute
	maxDumpPeriod = 24 * time.Hour
)

// checkDump follows checkTable and checkTemplates.
func (d *decoder) checkDump() {
	c, u := d.config, &d.config.Dump
	if u.Period == 0 {
		d.noEffect("dump", "dump.period", "slots", "topic", "file", "latest", "stats")
		return
	}
	if u.Period < minDumpPeriod || u.Period > maxDumpPeriod || u.Period%time.Second != 0 {
		d.fail("dump.period", nil, "expected 0 (no dumps) or whole seconds from 1m to 24h, found %v", u.Period)
	}
	if u.Slots < 1 || u.Period%(time.Duration(max(u.Slots, 1))*time.Second) != 0 {
		d.fail("dump.slots", []string{"dump.period"}, "expected a number that divides dump.period (%v) into whole seconds, found %d",
			formatDuration(u.Period), u.Slots)
	}
	switch {
	case c.Table == TableOff || c.Table == TableState:
		d.failHint("dump.period", []string{"table"}, "or leave table at auto", "dumps need table: full, found table: %s", c.Table)
	case !c.Decodes():
		d.fail("dump.period", []string{"output.decode", "intake.listen", "intake.files"}, "has no effect where BMP is not decoded (output.decode)")
	case u.Topic == "" && u.File == "":
		d.fail("dump.period", []string{"dump.topic", "dump.file"}, "expected dump.topic or dump.file with it")
	}
	d.checkDumpTopic()
	d.checkDumpFiles()
}

func (d *decoder) checkDumpTopic() {
	c, topic := d.config, d.config.Dump.Topic
	if topic == "" {
		return
	}
	d.checkTopic("dump.topic", topic)
	if c.Kafka.Order == OrderRouter && varies(topic) {
		d.failHint("dump.topic", []string{"kafka.order"}, "or say kafka.order: none",
			"a router's port differs between collectors: its dumps would change their topic at a takeover")
	}
}

func (d *decoder) checkDumpFiles() {
	u := &d.config.Dump
	if u.File == "" {
		if u.Latest != "" {
			d.fail("dump.latest", []string{"dump.file"}, "has no effect without dump.file")
		}
		return
	}
	for key, path := range map[string]string{"dump.file": u.File, "dump.latest": u.Latest} {
		if path == "" {
			continue
		}
		if !filepath.IsAbs(path) || strings.HasSuffix(path, "/") {
			d.fail(key, nil, "expected the absolute path of a file, found %q", path)
		}
		d.checkVariables(key, Expand(path, longestAddress, 65535))
		if Expand(path, longestAddress, 0) == Expand(path, netip.IPv4Unspecified(), 0) {
			d.failHint(key, nil, "write $bmp_router into it", "expected a file for each router, found %q", path)
		}
	}
	if _, err := ExpandFile(u.File, longestAddress, 65535, time.Unix(0, 0)); err != nil {
		d.failHint("dump.file", nil, "%% is a percent sign", "%v", err)
	}
	switch {
	case strings.Contains(u.Latest, "%"):
		d.fail("dump.latest", nil, "expected one path for dumps of all times, found %q", u.Latest)
	case u.Latest == u.File:
		d.fail("dump.latest", []string{"dump.file"}, "expected another path than dump.file")
	}
}

// ExpandFile is Expand for Dump.File, which may have conversions of strftime as
// well: %Y %m %d %H %M %S, %y %j %s %z, %F for %Y-%m-%d, %T for %H:%M:%S, and %%.
// Others are an error, that names them. at is written in its own time zone.
func ExpandFile(tmpl string, addr netip.Addr, port uint16, at time.Time) (string, error) {
	var b strings.Builder
	for rest := tmpl; rest != ""; {
		text, verb, ok := strings.Cut(rest, "%")
		b.WriteString(text)
		if !ok {
			break
		}
		if verb == "" {
			return "", fmt.Errorf("expected a conversion of strftime after the last %%, found nothing")
		}
		switch verb[0] {
		case 'Y', 'm', 'd', 'H', 'M', 'S', 'y', 'j', 'z', 'F', 'T':
			b.WriteString(at.Format(layouts[verb[0]]))
		case 's':
			fmt.Fprint(&b, at.Unix())
		case '%':
			b.WriteByte('%')
		default:
			return "", fmt.Errorf("expected %%Y, %%m, %%d, %%H, %%M, %%S, %%y, %%j, %%s, %%z, %%F, %%T or %%%%, found %q", "%"+verb[:1])
		}
		rest = verb[1:]
	}
	return Expand(b.String(), addr, port), nil
}

var layouts = map[byte]string{
	'Y': "2006", 'm': "01", 'd': "02", 'H': "15", 'M': "04", 'S': "05", 'y': "06", 'j': "002", 'z': "-0700",
	'F': "2006-01-02", 'T': "15:04:05",
}

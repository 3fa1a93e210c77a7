package pmacct

import (
	"fmt"
	"strconv"
	"time"
)

// Timestamps is the form of the timestamps in records.
type Timestamps uint8

// The forms that pmacct knows, with its configuration keys.
const (
	Default Timestamps = iota // 2024-11-14 10:51:34.018337 in the zone of Options
	UTC                       // the same in UTC: timestamps_utc
	RFC3339                   // 2024-11-14T10:51:34.018337+01:00: timestamps_rfc3339
	Epoch                     // 1731577894.018337: timestamps_since_epoch
)

// ParseTimestamps returns the form called default, utc, rfc3339 or epoch.
func ParseTimestamps(name string) (Timestamps, error) {
	for i, n := range timestampNames {
		if n == name {
			return Timestamps(i), nil
		}
	}
	return 0, fmt.Errorf("timestamps %q, want default, utc, rfc3339 or epoch", name)
}

var timestampNames = [...]string{"default", "utc", "rfc3339", "epoch"}

func (t Timestamps) String() string {
	if int(t) < len(timestampNames) {
		return timestampNames[t]
	}
	return "timestamps " + strconv.Itoa(int(t))
}

// A clockStyle is how times are written.
type clockStyle struct {
	form   Timestamps
	zone   *time.Location
	layout string // up to the seconds
	zero   string // a time whose seconds are 0, up to the seconds
}

func newClockStyle(form Timestamps, zone *time.Location) (clockStyle, error) {
	if zone == nil {
		zone = time.Local
	}
	c := clockStyle{form: form, zone: zone, layout: time.DateTime, zero: "0000-00-00 00:00:00"}
	switch form {
	case Default, Epoch:
	case UTC:
		c.zone = time.UTC
	case RFC3339:
		c.layout, c.zero = "2006-01-02T15:04:05", "0000-00-00T00:00:00"
	default:
		return c, fmt.Errorf("unknown form of timestamps %d", form)
	}
	return c, nil
}

// A clock writes times, and remembers the text of the second that it wrote
// last. The zero value is ready to use.
type clock struct {
	sec   int64
	known bool
	n     int // of text
	text  [24]byte
	zone  [8]byte // offset, if the form has one
	zoneN int
}

// append appends the time sec seconds and usec microseconds after the epoch.
// pmacct does not look at usec when sec is 0, and prints it as it is when it is
// more than a second.
func (c *clock) append(dst []byte, style *clockStyle, sec int64, usec uint32) []byte {
	if sec == 0 {
		usec = 0
	}
	if style.form == Epoch {
		dst = strconv.AppendInt(dst, sec, 10)
		return appendMicros(dst, usec)
	}
	c.set(style, sec)
	dst = append(dst, c.text[:c.n]...)
	dst = appendMicros(dst, usec)
	return append(dst, c.zone[:c.zoneN]...)
}

// set makes text and zone those of sec.
func (c *clock) set(style *clockStyle, sec int64) {
	if !c.known || c.sec != sec {
		t := time.Unix(sec, 0).In(style.zone)
		c.sec, c.known = sec, true
		if sec == 0 {
			c.n = copy(c.text[:], style.zero)
		} else {
			c.n = len(t.AppendFormat(c.text[:0], style.layout))
		}
		if style.form == RFC3339 {
			c.zoneN = len(t.AppendFormat(c.zone[:0], "-07:00"))
		}
	}
}

// appendSeconds appends a time of whole seconds without a fraction, as dumps
// have it.
func (style *clockStyle) appendSeconds(dst []byte, sec int64) []byte {
	if style.form == Epoch {
		return strconv.AppendInt(dst, sec, 10)
	}
	var c clock
	c.set(style, sec)
	dst = append(dst, c.text[:c.n]...)
	return append(dst, c.zone[:c.zoneN]...)
}

// appendMicros appends a point and at least six digits.
func appendMicros(dst []byte, usec uint32) []byte {
	dst = append(dst, '.')
	if usec > 999999 {
		return strconv.AppendUint(dst, uint64(usec), 10)
	}
	for div := uint32(100000); div != 0; div /= 10 {
		dst = append(dst, byte('0'+usec/div%10))
	}
	return dst
}

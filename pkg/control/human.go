package control

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// span writes a span of time with two figures' worth of detail: "0.3 s", "34 s",
// "4 min", "3 h 12 min", "3 d 4 h".
func span(s Seconds) string {
	switch {
	case math.IsNaN(float64(s)) || s <= 0:
		return "0 s"
	case s < 0.00995:
		return fmt.Sprintf("%.1f ms", float64(s)*1e3)
	case s < 0.0995:
		return fmt.Sprintf("%.0f ms", float64(s)*1e3)
	case s < 9.95:
		return fmt.Sprintf("%.1f s", float64(s))
	case s < 119.5:
		return fmt.Sprintf("%.0f s", float64(s))
	}
	minutes := int64(math.Min(float64(s)/60, math.MaxInt32))
	switch hours := minutes / 60; {
	case minutes < 60:
		return fmt.Sprintf("%d min", minutes)
	case hours < 24:
		return fmt.Sprintf("%d h %d min", hours, minutes%60)
	default:
		return fmt.Sprintf("%d d %d h", hours/24, hours%24)
	}
}

// sinceWords writes the span from t to now, "an unknown time" for the zero time.
func sinceWords(t, now time.Time) string {
	if t.IsZero() {
		return "an unknown time"
	}
	return span(Seconds(now.Sub(t).Seconds()))
}

// count writes n with thousands separators.
func count[T ~int | ~int64 | ~uint64](n T) string {
	s := strconv.FormatInt(int64(n), 10)
	if n > 0 {
		s = strconv.FormatUint(uint64(n), 10)
	}
	sign := ""
	if s[0] == '-' {
		sign, s = "-", s[1:]
	}
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return sign + s
}

// plural writes n and the right form of a noun whose plural ends in s.
func plural[T ~int | ~int64 | ~uint64](n T, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return count(n) + " " + noun + "s"
}

// mebibytes writes bytes in MiB.
func mebibytes(n uint64) string {
	const mib = 1 << 20
	switch {
	case n == 0:
		return "0 MiB"
	case n < mib/20:
		return "<0.1 MiB"
	case n < 100*mib:
		return fmt.Sprintf("%.1f MiB", float64(n)/mib)
	default:
		return count((n+mib/2)/mib) + " MiB"
	}
}

// clean makes a string from outside harmless on a terminal: control characters,
// also those of Unicode that change the direction of text, become '?'.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// list writes names as "a, b and c", the first limit of them.
func list(names []string, limit int) string {
	if more := len(names) - limit; more > 0 {
		return strings.Join(names[:limit], ", ") + " and " + count(more) + " more"
	}
	if n := len(names); n > 1 {
		return strings.Join(names[:n-1], ", ") + " and " + names[n-1]
	}
	return strings.Join(names, "")
}

// sortedKeys returns the keys of m in order.
func sortedKeys(m map[string]uint64) []string { return slices.Sorted(maps.Keys(m)) }

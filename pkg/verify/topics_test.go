package verify

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/bmpha/bmpha/pkg/replay"
)

// TestAgainst: two topics that say the same are equal, however they got there, and of
// what differs it is told who said it last.
func TestAgainst(t *testing.T) {
	native := func(value string) said { return said{value: value} }
	of := func(value, router string) string {
		return strings.Replace(value, `"bmp_router": "192.0.2.1"`, `"bmp_router": "`+router+`"`, 1)
	}
	ours := []said{
		{1, 1, 1, 0, 0, peerUp, 0, 0}, {1, 1, 2, 0, 0, update1, 0, 0}, {1, 1, 3, 0, 0, update2, 0, 0}, {2, 2, 1, 0, 0, update1b, 0, 0},
		{1, 1, 9, 0, 0, of(update1, "192.0.2.3"), 0, 0},
	}
	for _, tt := range []struct {
		name                                     string
		there                                    []said
		scope                                    Scope
		partial, otherPartial                    bool
		equal, missing, extra, different, silent int64
	}{
		{"equal", []said{native(update1b), native(update2), native(of(update1, "::ffff:192.0.2.3"))}, Scope{}, false, false, 3, 0, 0, 0, 0},
		{"less", []said{native(update1b)}, Scope{}, false, false, 1, 0, 2, 0, 0},
		{"more", []said{native(update1b), native(update2), native(of(update1, "192.0.2.3")), native(of(update2, "192.0.2.3")), native(of(update2, "192.0.2.4"))}, Scope{}, false, false, 3, 2, 0, 0, 0},
		{"other", []said{native(update1), native(update2), native(of(update1, "192.0.2.3"))}, Scope{}, false, false, 2, 0, 0, 1, 0},
		{"another RIB", []said{native(update1b)}, Scope{RIB: replay.Loc}, false, false, 0, 0, 0, 0, 0},
		{"another peer", []said{native(update1b)}, Scope{Peer: netip.MustParseAddr("192.0.2.12")}, false, false, 0, 0, 0, 0, 0},
		{"that peer", []said{native(update1b)}, Scope{Peer: netip.MustParseAddr("::ffff:192.0.2.11")}, false, false, 1, 0, 2, 0, 0},
		{"read from the middle", []said{native(withdraw1)}, Scope{}, false, true, 0, 0, 1, 0, 2},
		{"of which we know the end only", []said{native(update1b), native(update2), native(of(update1, "192.0.2.3")), native(of(update1, "192.0.2.4"))}, Scope{}, true, false, 3, 0, 0, 0, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, other := take(Options{Partial: tt.partial}, ours), take(Options{Partial: tt.otherPartial}, tt.there)
			c := l.Against(other, tt.scope)
			if c.Equal != tt.equal || c.Missing.Count != tt.missing || c.Extra.Count != tt.extra || c.Different.Count != tt.different || c.NotMentioned != tt.silent {
				t.Errorf("%+v", c)
			}
			if c.Differences() != tt.missing+tt.extra+tt.different {
				t.Errorf("%d differences", c.Differences())
			}
			for _, d := range c.Different.First {
				if d.Sender == nil || d.Sender.Token != 2 || !d.At.Equal(start.Add(3e9)) || d.Other == "" || d.Kafka == "" || d.Collector != "" || len(d.Fields) != 1 {
					t.Errorf("%+v", d)
				}
			}
			for _, d := range c.Missing.First {
				if d.Other == "" || d.Kafka != "" || d.Sender == nil || d.Sender.Instance != "" {
					t.Errorf("%+v", d)
				}
			}
			c.Topic = "bmp.native"
			r := Result{Topic: "bmp", Report: l.Report(), Against: c}
			if r.Sound() != (c.Differences() == 0) {
				t.Error("sound is wrong")
			}
			var b bytes.Buffer
			must(t, r.Write(&b, false))
			if tt.name == "more" || tt.name == "other" || tt.name == "read from the middle" {
				golden(t, "against-"+strings.Fields(tt.name)[0], b.String())
			}
		})
	}
}

package control

import (
	"errors"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/bmpha/bmpha/pkg/table"
)

var comparePrefixes = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func TestParseQuery(t *testing.T) {
	rd := func(b ...byte) *[8]byte { return (*[8]byte)(b) }
	for _, c := range []struct {
		text string
		want Query
	}{
		{"", Query{}},
		{"prefix=10.1.2.3", Query{Prefix: netip.MustParsePrefix("10.1.2.3/32")}},
		{"prefix=10.1.2.3/8", Query{Prefix: netip.MustParsePrefix("10.0.0.0/8")}},
		{"prefix=2001:db8::1", Query{Prefix: netip.MustParsePrefix("2001:db8::1/128")}},
		{"prefix=2001:DB8::1/32", Query{Prefix: netip.MustParsePrefix("2001:db8::/32")}},
		{"prefix=::ffff:10.1.2.3", Query{Prefix: netip.MustParsePrefix("10.1.2.3/32")}},
		{"prefix=0.0.0.0/0&match=longer", Query{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Match: table.Longer}},
		{"match=exact&prefix=::/0", Query{Prefix: netip.MustParsePrefix("::/0"), Match: table.Exact}},
		{"router=edge-1&prefix=", Query{Router: "edge-1"}},
		{"peer=::ffff:192.0.2.1", Query{Peer: netip.MustParseAddr("192.0.2.1")}},
		{"origin_as=as64500", Query{OriginAS: 64500}},
		{"origin_as=4294967295", Query{OriginAS: 1<<32 - 1}},
		{"rib=loc", Query{RIB: "loc"}},
		{"rib=adj-out-post", Query{RIB: "out-post"}},
		{"family=ipv6-vpn", Query{Family: "ipv6-vpn"}},
		{"rd=64500:1", Query{RD: rd(0, 0, 0xfb, 0xf4, 0, 0, 0, 1)}},
		{"rd=0:64500:4294967295", Query{RD: rd(0, 0, 0xfb, 0xf4, 255, 255, 255, 255)}},
		{"rd=65536:1", Query{RD: rd(0, 2, 0, 1, 0, 0, 0, 1)}},
		{"rd=2:1:1", Query{RD: rd(0, 2, 0, 0, 0, 1, 0, 1)}},
		{"rd=192.0.2.1:65535", Query{RD: rd(0, 1, 192, 0, 2, 1, 255, 255)}},
		{"rd=1:192.0.2.1:7", Query{RD: rd(0, 1, 192, 0, 2, 1, 0, 7)}},
		{"withdrawn=true&limit=0", Query{Withdrawn: true, Limit: -1}},
		{"limit=5", Query{Limit: 5}},
	} {
		v, err := url.ParseQuery(c.text)
		if err != nil {
			t.Fatal(err)
		}
		if c.want.Match == 0 && !strings.Contains(c.text, "match") {
			c.want.Match = table.Longest
		}
		switch c.want.Limit {
		case 0:
			c.want.Limit = DefaultLimit
		case -1:
			c.want.Limit = 0
		}
		got, err := ParseQuery(v)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if diff := cmp.Diff(c.want, got, comparePrefixes); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.text, diff)
		}
	}
}

func TestBadQueries(t *testing.T) {
	for _, c := range []struct{ text, key string }{
		{"prefix=10.1.2", "prefix"},
		{"prefix=10.0.0.0/33", "prefix"},
		{"prefix=2001:db8::/129", "prefix"},
		{"prefix=fe80::1%25eth0", "prefix"},
		{"prefix=example.net", "prefix"},
		{"prefix=10.0.0.0/-1", "prefix"},
		{"prefix=1.1.1.1&prefix=2.2.2.2", "prefix"},
		{"match=longer", "match"},
		{"prefix=1.1.1.1&match=best", "match"},
		{"router=" + strings.Repeat("x", maxName+1), "router"},
		{"peer=192.0.2.0/24", "peer"},
		{"peer=fe80::1%25eth0", "peer"},
		{"origin_as=0", "origin_as"},
		{"origin_as=as", "origin_as"},
		{"origin_as=4294967296", "origin_as"},
		{"origin_as=-1", "origin_as"},
		{"rib=main", "rib"},
		{"rib=adj-", "rib"},
		{"family=ipv5", "family"},
		{"family=l2vpn", "family"},
		{"rd=64500", "rd"},
		{"rd=64500:4294967296", "rd"},
		{"rd=65536:65536", "rd"},
		{"rd=0:65536:1", "rd"},
		{"rd=1:64500:1", "rd"},
		{"rd=0:192.0.2.1:1", "rd"},
		{"rd=3:1:1", "rd"},
		{"rd=::1:1", "rd"},
		{"rd=192.0.2.1:65536", "rd"},
		{"withdrawn=yes", "withdrawn"},
		{"limit=-1", "limit"},
		{"limit=2147483648", "limit"},
		{"limit=many", "limit"},
		{"colour=red", "colour"},
	} {
		v, err := url.ParseQuery(c.text)
		if err != nil {
			t.Fatal(err)
		}
		_, err = ParseQuery(v)
		var bad *QueryError
		if !errors.As(err, &bad) || bad.Key != c.key || bad.Want == "" {
			t.Errorf("%s: %v, want an error about %s", c.text, err, c.key)
		}
	}
}

// A query that was read is written as what is read the same again.
func FuzzQuery(f *testing.F) {
	for _, s := range []string{
		"", "prefix=10.1.2.3/8&match=longer", "prefix=::ffff:1.2.3.4", "rd=192.0.2.1:1&family=ipv4-vpn", "rd=2:1:65535&rd=1",
		"origin_as=AS64500&rib=adj-in-pre&peer=::1", "router=a%20b&withdrawn=true&limit=0", "prefix=::ffff:0:0/96&match=exact", "limit=07", "%zz",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		v, err := url.ParseQuery(text)
		if err != nil {
			return
		}
		q, err := ParseQuery(v)
		if err != nil {
			var bad *QueryError
			if !errors.As(err, &bad) {
				t.Fatalf("%q: %T", text, err)
			}
			return
		}
		again, err := ParseQuery(q.Values())
		if err != nil {
			t.Fatalf("%q becomes %q: %v", text, q.Values(), err)
		}
		if diff := cmp.Diff(q, again, comparePrefixes); diff != "" {
			t.Fatalf("%q becomes %q:\n%s", text, q.Values(), diff)
		}
		if q.Prefix.IsValid() && q.Prefix != q.Prefix.Masked() {
			t.Fatalf("%q: host bits in %v", text, q.Prefix)
		}
		q.scopes()
	})
}

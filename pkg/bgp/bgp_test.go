package bgp_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/bmpha/bmpha/pkg/bgp"
)

const marker = "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"

// pdu is a BGP message of type t.
func pdu(t byte, body string) []byte {
	n := len(body) + 19
	return []byte(marker + string([]byte{byte(n >> 8), byte(n), t}) + body)
}

// update is an UPDATE message of three parts.
func update(withdrawn, attrs, nlri string) []byte {
	l := func(s string) string { return string([]byte{byte(len(s) >> 8), byte(len(s))}) }
	return pdu(2, l(withdrawn)+withdrawn+l(attrs)+attrs+nlri)
}

func wantError(t *testing.T, err error, offset int, what string) {
	t.Helper()
	var e *bgp.Error
	if !errors.As(err, &e) {
		t.Fatalf("error %v, want a *bgp.Error", err)
	}
	if e.Offset != offset || !strings.Contains(e.What, what) || !strings.HasPrefix(e.Section, "RFC ") {
		t.Errorf("error %q, want %q at offset %d and an RFC section", e, what, offset)
	}
}

func TestParseUpdateBad(t *testing.T) {
	short := update("", "", "")
	for _, tt := range []struct {
		name   string
		pdu    []byte
		offset int
		what   string
	}{
		{"empty", nil, 0, "ends within its header"},
		{"header only", short[:18], 18, "ends within its header"},
		{"marker", append([]byte{0}, short[1:]...), 0, "marker"},
		{"length too large", append(bytes.Clone(short[:16]), 0, 99, 2, 0, 0, 0, 0), 16, "length 99"},
		{"not an UPDATE", pdu(4, ""), 18, "type 4"},
		{"no lengths", pdu(2, "\x00\x00"), 21, "lengths of UPDATE"},
		{"withdrawn overrun", pdu(2, "\x00\x05\x00\x00"), 19, "5 bytes of withdrawn routes where 0"},
		{"attributes overrun", pdu(2, "\x00\x00\x00\x05\x40"), 21, "5 bytes of path attributes where 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := bgp.ParseUpdate(tt.pdu)
			wantError(t, err, tt.offset, tt.what)
		})
	}
}

func TestAttributesBad(t *testing.T) {
	for _, tt := range []struct {
		name, attrs string
		good        int
		offset      int
		what        string
	}{
		{"header cut", "\x40\x01\x01\x00\x40\x02", 1, 27, "attribute header"},
		{"extended header cut", "\x50\x02\x00", 0, 23, "attribute header"},
		{"overrun", "\x40\x01\x01\x00\x40\x02\x09\x02", 1, 27, "attribute 2 of 9 bytes where 1"},
		{"extended overrun", "\x50\x02\xff\xff", 0, 23, "attribute 2 of 65535 bytes where 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u, err := bgp.ParseUpdate(update("", tt.attrs, ""))
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			a := u.Attributes()
			for a.Next() {
				n++
			}
			if n != tt.good {
				t.Errorf("%d attributes before the error, want %d", n, tt.good)
			}
			wantError(t, a.Err(), tt.offset, tt.what)
			if a.Next() {
				t.Error("walk goes on after an error")
			}
		})
	}
}

func TestRoutes(t *testing.T) {
	const rd = "\x00\x00\x00\x01\x00\x00\x00\x02"
	type route struct {
		id    uint32
		label uint32
		rd    bool
		pfx   string
	}
	for _, tt := range []struct {
		name    string
		nlri    string
		family  bgp.Family
		addPath bool
		labels  bgp.Labels
		want    []route
		err     string
	}{
		{"IPv4", "\x18\xc6\x33\x64\x00\x13\xcb\x00\x7f", bgp.IPv4Unicast, false, 0, []route{{pfx: "198.51.100.0/24"}, {pfx: "0.0.0.0/0"}, {pfx: "203.0.127.0/19"}}, ""},
		{"ADD-PATH", "\x00\x00\x00\x07\x18\xc6\x33\x64\x00\x00\x00\x08\x00", bgp.IPv4Unicast, true, 0, []route{{id: 7, pfx: "198.51.100.0/24"}, {id: 8, pfx: "0.0.0.0/0"}}, ""},
		{"IPv6", "\x20\x20\x01\x0d\xb8", bgp.IPv6Unicast, false, 0, []route{{pfx: "2001:db8::/32"}}, ""},
		{"label", "\x30\x00\x03\xe1\xc6\x33\x64", bgp.IPv4Labelled, false, 0, []route{{label: 62, pfx: "198.51.100.0/24"}}, ""},
		{"two labels", "\x48\x00\x01\x00\x00\x03\xe1\xc6\x33\x64", bgp.IPv4Labelled, false, 0, []route{{label: 62, pfx: "198.51.100.0/24"}}, ""},
		{"VPN", "\x70\x00\x03\xe1" + rd + "\xc6\x33\x64", bgp.IPv4VPN, false, 0, []route{{label: 62, rd: true, pfx: "198.51.100.0/24"}}, ""},
		{"VPN withdrawn", "\x70\x80\x00\x00" + rd + "\xc6\x33\x64", bgp.IPv4VPN, false, bgp.SingleLabel, []route{{label: 0x80000, rd: true, pfx: "198.51.100.0/24"}}, ""},
		{"good, then too long", "\x08\x0a\x21\x01\x02\x03\x04\x05", bgp.IPv4Unicast, false, 0, []route{{pfx: "10.0.0.0/8"}}, "prefix length 33"},
		{"IPv6 too long", "\x81" + strings.Repeat("\x01", 17), bgp.IPv6Unicast, false, 0, nil, "prefix length 129"},
		{"overrun", "\x20\x01\x02", bgp.IPv4Unicast, false, 0, nil, "prefix of 4 bytes where 2"},
		{"path identifier cut", "\x00\x00\x00", bgp.IPv4Unicast, true, 0, nil, "path identifier"},
		{"nothing after it", "\x00\x00\x00\x01", bgp.IPv4Unicast, true, 0, nil, "prefix length"},
		{"label overruns", "\x10\x00\x03", bgp.IPv4Labelled, false, 0, nil, "label stack"},
		{"no bottom of stack", "\x30\x00\x03\xe0\xc6\x33\x64", bgp.IPv4Labelled, false, 0, nil, "label stack"},
		{"RD overruns", "\x28\x00\x03\xe1\x00\x00", bgp.IPv4VPN, false, 0, nil, "route distinguisher"},
		{"shorter than its label", "\x16\x00\x03\xe1", bgp.IPv4Labelled, false, 0, nil, "prefix length -2"},
		{"unknown family", "\x00", bgp.Family{AFI: 25, SAFI: 70}, false, 0, nil, "AFI 25 SAFI 70"},
		{"unknown AFI", "\x00", bgp.Family{AFI: 25, SAFI: 1}, false, 0, nil, "AFI 25 SAFI 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := bgp.Routes([]byte(tt.nlri), 100, tt.family, tt.addPath, tt.labels)
			if w.Whole() != (tt.err == "") {
				t.Errorf("Whole is %v", w.Whole())
			}
			var got []route
			for w.Next() {
				p := w.Prefix()
				got = append(got, route{p.PathID, p.Label(), p.RD == [8]byte([]byte(rd)), netip.PrefixFrom(p.Addr(tt.family), p.Bits).String()})
			}
			if len(got) != len(tt.want) {
				t.Fatalf("routes %v, want %v", got, tt.want)
			}
			for i := range got {
				if got[i] != tt.want[i] {
					t.Errorf("route %d is %v, want %v", i, got[i], tt.want[i])
				}
			}
			if tt.err == "" {
				if w.Err() != nil {
					t.Error(w.Err())
				}
				return
			}
			var e *bgp.Error
			if !errors.As(w.Err(), &e) || !strings.Contains(e.What, tt.err) || e.Offset < 100 {
				t.Errorf("error %v, want %q", w.Err(), tt.err)
			}
		})
	}
}

func TestOpen(t *testing.T) {
	params := "\x02\x06\x41\x04\xfa\x56\xea\x01" + "\x02\x0c\x45\x08\x00\x01\x01\x03\x00\x02\x01\x01\x40\x00" + "\x02\x06\x01\x04\x00\x02\x00\x01"
	fixed := "\x04\x5b\xa0\x00\xb4\xc0\x00\x02\x01"
	extended := "\xff\xff\x00\x29" + // RFC 9072: lengths of two bytes
		"\x02\x00\x06\x41\x04\xfa\x56\xea\x01" + "\x02\x00\x0c\x45\x08\x00\x01\x01\x03\x00\x02\x01\x01\x40\x00" + "\x02\x00\x06\x01\x04\x00\x02\x00\x01" + "\x02\x00\x05\x40\x03\x00\x00\x00"
	for _, tt := range []struct{ name, body string }{
		{"plain", fixed + string([]byte{byte(len(params))}) + params},
		{"extended parameters", fixed + extended},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o, err := bgp.ParseOpen(pdu(1, tt.body))
			if err != nil {
				t.Fatal(err)
			}
			if o.AS() != 4200000001 || o.MyAS != bgp.ASTrans || o.HoldTime != 180 || o.ID != [4]byte{192, 0, 2, 1} {
				t.Errorf("%+v, AS %d", o, o.AS())
			}
			if m4, m6, v4 := o.AddPath(bgp.IPv4Unicast), o.AddPath(bgp.IPv6Unicast), o.AddPath(bgp.IPv4VPN); m4 != bgp.AddPathBoth || m6 != bgp.AddPathReceive || v4 != 0 {
				t.Errorf("ADD-PATH %d, %d, %d; want 3, 1, 0", m4, m6, v4)
			}
			if !o.Multiprotocol(bgp.IPv6Unicast) || o.Multiprotocol(bgp.IPv4Unicast) {
				t.Error("multiprotocol capability is not IPv6 alone")
			}
			c := o.Capabilities()
			for c.Next() {
			}
			if c.Err() != nil {
				t.Error(c.Err())
			}
		})
	}
	for _, tt := range []struct{ name, body, what string }{
		{"cut", "\x04\x5b\xa0", "fixed part"},
		{"parameters overrun", fixed + "\x05\x02", "5 bytes of optional parameters where 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := bgp.ParseOpen(pdu(1, tt.body))
			if err == nil || !strings.Contains(err.Error(), tt.what) {
				t.Errorf("error %v, want %q", err, tt.what)
			}
		})
	}
	for _, tt := range []struct{ name, params, what string }{
		{"parameter overruns", "\x02\x09\x41", "optional parameter of 9 bytes where 1"},
		{"parameter cut", "\x02", "ends within an optional parameter"},
		{"capability overruns", "\x02\x03\x41\x04\x00", "capability of 4 bytes where 1"},
		{"capability cut", "\x02\x01\x41", "ends within a capability"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o, err := bgp.ParseOpen(pdu(1, fixed+string([]byte{byte(len(tt.params))})+tt.params))
			if err != nil {
				t.Fatal(err)
			}
			c := o.Capabilities()
			for c.Next() {
			}
			if c.Err() == nil || !strings.Contains(c.Err().Error(), tt.what) {
				t.Errorf("error %v, want %q", c.Err(), tt.what)
			}
		})
	}
}

func TestEndOfRIB(t *testing.T) {
	for _, tt := range []struct {
		name string
		pdu  []byte
		want bgp.Family
		ok   bool
	}{
		{"IPv4 unicast", update("", "", ""), bgp.IPv4Unicast, true},
		{"IPv6 VPN", update("", "\x80\x0f\x03\x00\x02\x80", ""), bgp.IPv6VPN, true},
		{"withdrawal", update("\x00", "", ""), bgp.Family{}, false},
		{"MP withdrawal", update("", "\x80\x0f\x04\x00\x02\x01\x00", ""), bgp.Family{}, false},
		{"more attributes", update("", "\x80\x0f\x03\x00\x02\x80\x40\x01\x01\x00", ""), bgp.Family{}, false},
	} {
		u, err := bgp.ParseUpdate(tt.pdu)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := u.EndOfRIB(); got != tt.want || ok != tt.ok {
			t.Errorf("%s: %v %v, want %v %v", tt.name, got, ok, tt.want, tt.ok)
		}
	}
}

func TestMergeAS4Path(t *testing.T) {
	seg2 := func(typ byte, as ...uint16) []byte {
		b := []byte{typ, byte(len(as))}
		for _, a := range as {
			b = binary.BigEndian.AppendUint16(b, a)
		}
		return b
	}
	seg4 := func(typ byte, as ...uint32) []byte {
		b := []byte{typ, byte(len(as))}
		for _, a := range as {
			b = binary.BigEndian.AppendUint32(b, a)
		}
		return b
	}
	for _, tt := range []struct {
		name            string
		path, as4, want []byte
	}{
		{"RFC 6793", seg2(2, 1, 2, 23456, 23456), seg4(2, 70000, 70001), append(seg4(2, 1, 2), seg4(2, 70000, 70001)...)},
		{"all of it", seg2(2, 23456), seg4(2, 70000), seg4(2, 70000)},
		{"too long", seg2(2, 23456), seg4(2, 70000, 70001), seg4(2, 23456)},
		{"set", append(seg2(2, 1), seg2(1, 2, 23456)...), seg4(1, 2, 70000), append(seg4(2, 1), seg4(1, 2, 70000)...)},
		{"none", seg2(2, 1, 2), nil, seg4(2, 1, 2)},
	} {
		got, err := bgp.MergeAS4Path(nil, bgp.Attr{Value: tt.path}, bgp.Attr{Value: tt.as4})
		if err != nil || !bytes.Equal(got, tt.want) {
			t.Errorf("%s: %x, %v; want %x", tt.name, got, err, tt.want)
		}
	}
	if _, err := bgp.MergeAS4Path(nil, bgp.Attr{Value: []byte{2, 9}}, bgp.Attr{}); err == nil {
		t.Error("no error for a segment that overruns")
	}
}

func TestFourOctetPath(t *testing.T) {
	for _, tt := range []struct {
		path             string
		negotiated, want bool
	}{
		{"\x02\x01\x00\x01", false, false},
		{"\x02\x01\x00\x01", true, false},
		{"\x02\x01\x00\x01\x00\x01", false, true},
		{"\x02\x01\x00\x01\x00\x01", true, true},
		{"", true, true},
		{"", false, false},
		{"\x02\x01\x00", true, true}, // neither
	} {
		if got := bgp.FourOctetPath(bgp.Attr{Value: []byte(tt.path)}, tt.negotiated); got != tt.want {
			t.Errorf("%x, negotiated %v: %v, want %v", tt.path, tt.negotiated, got, tt.want)
		}
	}
}

func TestNextHop(t *testing.T) {
	rd := make([]byte, 8)
	v4 := netip.MustParseAddr("192.0.2.1")
	v6, ll := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("fe80::1")
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for _, tt := range []struct {
		b          []byte
		global, ll netip.Addr
	}{
		{v4.AsSlice(), v4, netip.Addr{}},
		{cat(rd, v4.AsSlice()), v4, netip.Addr{}},
		{v6.AsSlice(), v6, netip.Addr{}},
		{cat(rd, v6.AsSlice()), v6, netip.Addr{}},
		{cat(v6.AsSlice(), ll.AsSlice()), v6, ll},
		{cat(rd, v6.AsSlice(), rd, ll.AsSlice()), v6, ll},
	} {
		if g, l, err := bgp.NextHop(tt.b); err != nil || g != tt.global || l != tt.ll {
			t.Errorf("%d bytes: %v, %v, %v", len(tt.b), g, l, err)
		}
	}
	if _, _, err := bgp.NextHop(make([]byte, 5)); err == nil {
		t.Error("no error for 5 bytes")
	}
}

// FuzzUpdate walks everything that can be walked in an UPDATE.
func FuzzUpdate(f *testing.F) {
	f.Add(update("\x18\xc6\x33\x64", "\x40\x01\x01\x00\x40\x02\x06\x02\x01\x00\x00\xfb\xf4\x40\x03\x04\xc0\x00\x02\x01", "\x08\x0a"))
	f.Add(update("", "\x80\x0e\x1b\x00\x01\x80\x0c\x00\x00\x00\x00\x00\x00\x00\x00\xc0\x00\x02\x01\x00\x60\x00\x03\xe1\x00\x00\x00\x01\x00", ""))
	f.Add(update("", "\x80\x0f\x03\x00\x02\x80\x80\x1a\x0b\x01\x00\x0b\x00\x00\x00\x00\x00\x00\x04\xd2\xc0\x28\x0a\x01\x00\x07\x00\x00\x00\x00\x00\x00\x4d", ""))
	f.Fuzz(func(t *testing.T, b []byte) {
		u, err := bgp.ParseUpdate(b)
		if err != nil {
			return
		}
		if len(u.Withdrawn)+len(u.Attrs)+len(u.NLRI)+bgp.HeaderLen+4 != len(b) {
			t.Errorf("parts of %d, %d and %d bytes in a message of %d", len(u.Withdrawn), len(u.Attrs), len(u.NLRI), len(b))
		}
		walk := func(nlri []byte, off int, f bgp.Family) {
			if string(b[off:off+len(nlri)]) != string(nlri) {
				t.Errorf("routes are not at offset %d", off)
			}
			for _, addPath := range []bool{false, true} {
				for _, labels := range []bgp.Labels{bgp.LabelStack, bgp.SingleLabel} {
					w := bgp.Routes(nlri, off, f, addPath, labels)
					whole := w.Whole()
					for w.Next() {
						p := w.Prefix()
						if !netip.PrefixFrom(p.Addr(f), p.Bits).IsValid() {
							t.Errorf("route %+v of %v", p, f)
						}
					}
					if whole != (w.Err() == nil) {
						t.Errorf("whole %v, error %v", whole, w.Err())
					}
				}
			}
		}
		walk(u.Withdrawn, bgp.WithdrawnOffset, bgp.IPv4Unicast)
		walk(u.NLRI, u.NLRIOffset, bgp.IPv4Unicast)
		u.EndOfRIB()
		var path, as4 bgp.Attr
		a := u.Attributes()
		for a.Next() {
			t4 := a.Attr()
			if string(b[t4.Offset:t4.Offset+len(t4.Value)]) != string(t4.Value) {
				t.Errorf("attribute is not at offset %d", t4.Offset)
			}
			for _, four := range []bool{false, true} {
				s := bgp.Path(t4, four)
				for s.Next() {
					for i := range s.Segment().Len() {
						s.Segment().AS(i)
					}
				}
			}
			bgp.FourOctetPath(t4, true)
			_, _ = bgp.AIGP(t4)
			_, _, _ = bgp.LabelIndex(t4)
			_, _ = t4.Origin()
			_, _ = t4.Uint32()
			if r, err := bgp.ParseMPReach(t4); err == nil {
				walk(r.NLRI, r.NLRIOffset, r.Family)
				_, _, _ = bgp.NextHop(r.NextHop)
			}
			if r, err := bgp.ParseMPUnreach(t4); err == nil {
				walk(r.Withdrawn, r.WithdrawnOffset, r.Family)
			}
			switch t4.Type {
			case bgp.AttrASPath:
				path = t4
			case bgp.AttrAS4Path:
				as4 = t4
			}
		}
		_, _ = bgp.MergeAS4Path(nil, path, as4)
	})
}

// FuzzOpen walks everything that can be walked in an OPEN.
func FuzzOpen(f *testing.F) {
	f.Add(pdu(1, "\x04\x5b\xa0\x00\xb4\xc0\x00\x02\x01\x08\x02\x06\x41\x04\xfa\x56\xea\x01"))
	f.Add(pdu(1, "\x04\x5b\xa0\x00\xb4\xc0\x00\x02\x01\xff\xff\x00\x09\x02\x00\x06\x45\x04\x00\x01\x01\x03"))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := bgp.ParseOpen(b)
		if err != nil {
			return
		}
		o.AS()
		o.AddPath(bgp.IPv4Unicast)
		o.Multiprotocol(bgp.IPv6VPN)
		n := 0
		c := o.Capabilities()
		for c.Next() {
			n += 2 + len(c.Value())
		}
		if n > len(b) {
			t.Errorf("%d bytes of capabilities in a message of %d", n, len(b))
		}
	})
}

package pmacct

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/record"
)

var updateGolden = flag.Bool("update", false, "rewrite the golden files")

// arrival is when all messages of these tests arrive.
var arrival = time.Date(2026, 11, 21, 1, 2, 3, 4000, time.UTC)

func decodeOptions(form Timestamps) DecodeOptions {
	return DecodeOptions{
		Timestamps: form,
		Zone:       time.FixedZone("", 3600),
		Router:     netip.MustParseAddr("203.0.113.1"),
		Port:       50000,
		Now:        func() time.Time { return arrival },
	}
}

// TestGolden compares the records of a session that has everything in it with
// a file that was looked through by hand.
func TestGolden(t *testing.T) {
	for _, form := range []Timestamps{UTC, Default, RFC3339, Epoch} {
		t.Run(form.String(), func(t *testing.T) {
			stream := everything()
			if form != UTC {
				stream = cat(initiation(), peerUp(peerV4, "192.0.2.1", open(1), open(1)), route(peerV4, update(nil, nil, nil)))
			}
			opts := decodeOptions(form)
			if form == Epoch {
				opts.WriterID = `bmpha/"1"`
			}
			opts.Warn = func(offset int64, err error) { t.Errorf("offset %d: %v", offset, err) }
			var got bytes.Buffer
			st, err := Decode(&got, iotest.OneByteReader(bytes.NewReader(stream)), opts)
			if err != nil {
				t.Fatal(err)
			}
			if n := bytes.Count(got.Bytes(), []byte("\n")); st.Bytes != int64(len(stream)) || st.Records != int64(n) || st.Bad != 0 {
				t.Errorf("stats %+v of %d bytes and %d lines", st, len(stream), n)
			}
			checkJSON(t, got.Bytes())
			name := filepath.Join("testdata", form.String()+".jsonl")
			if *updateGolden {
				if err := os.WriteFile(name, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got.String(), "\n")); d != "" {
				t.Errorf("%s - and records +: %s", name, d)
			}
		})
	}
}

// checkJSON checks that each line is one JSON object, in valid UTF-8, without
// a key twice.
func checkJSON(t *testing.T, lines []byte) {
	t.Helper()
	for line := range bytes.Lines(lines) {
		if !utf8.Valid(line) {
			t.Errorf("not UTF-8: %q", line)
		}
		d := json.NewDecoder(bytes.NewReader(line))
		if tok, err := d.Token(); err != nil || tok != json.Delim('{') {
			t.Fatalf("%v %v: %s", tok, err, line)
		}
		keys := map[string]bool{}
		for d.More() {
			k, err := d.Token()
			if err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			if keys[k.(string)] {
				t.Errorf("key %v twice: %s", k, line)
			}
			keys[k.(string)] = true
			if _, err := d.Token(); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
		}
		if _, err := d.Token(); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if _, err := d.Token(); err != io.EOF {
			t.Fatalf("more than one object: %s", line)
		}
	}
}

// newSession returns a session and its encoder.
func newSession(t testing.TB, o Options) (*Encoder, *Session) {
	t.Helper()
	enc, err := NewEncoder(o)
	if err != nil {
		t.Fatal(err)
	}
	return enc, enc.Session(Identity{
		Router: "r1", Addr: netip.MustParseAddr("::ffff:203.0.113.1"), Port: 50000, Topic: 7, Key: []byte("203.0.113.1"),
	})
}

// values returns the values of b as strings.
func values(b *record.Batch) (v []string) {
	for i := range b.Len() {
		v = append(v, string(b.Value(i)))
	}
	return v
}

// field returns the text of a key's value in a record, "" if it is not there.
func field(rec, key string) string {
	_, v, ok := strings.Cut(rec, `"`+key+`": `)
	if !ok {
		return ""
	}
	if s, ok := strings.CutPrefix(v, `"`); ok {
		v, _, _ = strings.Cut(s, `"`)
		return v
	}
	return v[:strings.IndexAny(v, ",}")]
}

// TestRoutes checks single properties of route records against what pmacct
// makes of the same UPDATE.
func TestRoutes(t *testing.T) {
	plain := cat(origin(0), asPath(seg(2, 64500)), nextHop("192.0.2.7"))
	four := open(64500, capAS4(64500))
	two := open(64500)
	addPath := func(mode byte) []byte { return open(64500, capAS4(64500), capAddPath(1, 1, mode)) }
	vpn := func(nh []byte, nlri ...[]byte) []byte { return mpReach(1, 128, nh, cat(nlri...)) }
	nh12 := cat(make([]byte, 8), ip("192.0.2.9"))
	for _, tt := range []struct {
		name           string
		sent, received []byte
		pdu            []byte
		key            string
		want           []string // of key, by record
		err            string
	}{
		{"AS path, four octets", four, four, update(nil, plain, pfx("10.0.0.0/8")), "as_path", []string{"64500"}, ""},
		{"AS path, two octets", two, four, update(nil, cat(asPath(seg2(2, 1, 2, 3))), pfx("10.0.0.0/8")), "as_path", []string{"1 2 3"}, ""},
		{"AS path, four octets not negotiated", two, two, update(nil, asPath(seg(2, 70000, 2)), pfx("10.0.0.0/8")), "as_path", []string{"70000 2"}, ""},
		{"AS path, two octets where four are negotiated", four, four, update(nil, asPath(seg2(2, 1)), pfx("10.0.0.0/8")), "as_path", []string{""}, ""},
		{"AS path with an empty segment", four, four, update(nil, asPath(seg(2, 1), seg(2)), pfx("10.0.0.0/8")), "as_path", []string{""}, ""},
		{"AS path with an unknown segment", four, four, update(nil, asPath(seg(2, 1), seg(9, 2)), pfx("10.0.0.0/8")), "as_path", []string{""}, ""},
		{"AS path of odd length", four, four, update(nil, attr(0x40, 2, []byte{1}), pfx("10.0.0.0/8")), "as_path", []string{""}, ""},
		{"no attributes", four, four, update(nil, nil, pfx("10.0.0.0/8")), "bgp_nexthop", []string{"0.0.0.0"}, ""},
		{"AS4_PATH shorter", two, two, update(nil, cat(asPath(seg2(2, 1, 23456, 3)), attr(0xc0, 17, seg(2, 70000, 3))), pfx("10.0.0.0/8")), "as_path", []string{"1 70000 3"}, ""},
		{"AS4_PATH longer", two, two, update(nil, cat(asPath(seg2(2, 1)), attr(0xc0, 17, seg(2, 2, 3))), pfx("10.0.0.0/8")), "as_path", []string{"1 2 3"}, ""},
		{"AS4_PATH, set and confederation", two, two, update(nil, cat(asPath(seg2(3, 9, 8), seg2(2, 1), seg2(1, 5, 4)), attr(0xc0, 17, seg(1, 5, 4))), pfx("10.0.0.0/8")), "as_path", []string{"(9 8) 1 {4,5}"}, ""},
		{"AS4_PATH ignored with four octets", four, four, update(nil, cat(asPath(seg(2, 1)), attr(0xc0, 17, seg(2, 2))), pfx("10.0.0.0/8")), "as_path", []string{"1"}, ""},
		{"AS4_PATH alone", two, two, update(nil, attr(0xc0, 17, seg(2, 2)), pfx("10.0.0.0/8")), "as_path", nil, "AS4_PATH without"},
		{"ADD-PATH both", addPath(3), addPath(3), update(nil, plain, cat(u32(9), pfx("10.0.0.0/8"))), "as_path_id", []string{"9"}, ""},
		{"ADD-PATH, received may only receive", addPath(3), addPath(1), update(nil, plain, pfx("10.0.0.0/8")), "as_path_id", []string{""}, ""},
		{"ADD-PATH, sent may only receive", addPath(1), addPath(2), update(nil, plain, cat(u32(0), pfx("10.0.0.0/8"))), "as_path_id", []string{"0"}, ""},
		{"ADD-PATH one-sided", four, addPath(3), update(nil, plain, pfx("10.0.0.0/8")), "as_path_id", []string{""}, ""},
		{"next hop with link-local", four, four, update(nil, mpReach(2, 1, cat(ip("2001:db8::9"), ip("fe80::9")), pfx("2001:db8::/32")), nil), "bgp_nexthop", []string{"2001:db8::9"}, ""},
		{"next hop, VPN pair", four, four, update(nil, mpReach(2, 128, make([]byte, 48), labelled("2001:db8::/32", rd0(1, 1), label(1, true))), nil), "bgp_nexthop", []string{"0.0.0.0"}, ""},
		{"next hop, IPv4-compatible", four, four, update(nil, mpReach(2, 1, ip("::192.0.2.9"), pfx("2001:db8::/32")), nil), "bgp_nexthop", []string{"::192.0.2.9"}, ""},
		{"next hop of odd length", four, four, update(nil, mpReach(2, 1, make([]byte, 17), pfx("2001:db8::/32")), nil), "", nil, "next hop of 17"},
		{"MP_REACH without routes", four, four, update(nil, mpReach(2, 1, ip("2001:db8::9"), nil), pfx("10.0.0.0/8")), "", nil, "without routes"},
		{"host bits stay", four, four, update(nil, plain, []byte{19, 192, 0, 63}), "ip_prefix", []string{"192.0.63.0/19"}, ""},
		{"IPv4 first, then IPv6", four, four, update(pfx("10.1.0.0/16"), cat(mpUnreach(1, 1, pfx("10.4.0.0/16")), mpReach(2, 1, ip("2001:db8::9"), pfx("2001:db8::/32"))), pfx("10.2.0.0/16")), "ip_prefix",
			[]string{"10.1.0.0/16", "10.2.0.0/16", "10.4.0.0/16", "2001:db8::/32"}, ""},
		{"communities cut", four, four, update(nil, cat(plain, attr(0xc0, 8, []byte{1, 2, 3})), pfx("10.0.0.0/8")), "comms", []string{""}, ""},
		{"origin above 2", four, four, update(nil, origin(9), pfx("10.0.0.0/8")), "origin", []string{""}, ""},
		{"label stack: the bottom one", four, four, update(nil, mpReach(2, 4, ip("2001:db8::9"), labelled("2001:db8::/32", nil, label(5, false), label(6, true))), nil), "mpls_label", []string{"6"}, ""},
		{"label stack too long for IPv4", four, four, update(nil, mpReach(1, 4, ip("192.0.2.9"), cat(labelled("10.1.0.0/16", nil, label(4, true)), labelled("10.2.0.0/16", nil, label(5, false), label(6, true)))), nil), "mpls_label", []string{"4"}, "pmacct takes 56"},
		{"VPN route", four, four, update(nil, cat(plain, vpn(nh12, labelled("10.1.0.0/16", rd2(70000, 3), label(4, true)))), nil), "rd", []string{"2:70000:3"}, ""},
		{"unknown type of RD", four, four, update(nil, cat(plain, vpn(nh12, labelled("10.1.0.0/16", rd1("192.0.2.1", 5), label(4, true)), labelled("10.2.0.0/16", cat(u16(9), make([]byte, 6)), label(4, true)))), nil), "rd", []string{"1:192.0.2.1:5"}, "unknown type"},
		{"withdrawn label", four, four, update(nil, mpUnreach(1, 128, labelled("10.1.0.0/16", rd0(1, 1), label(0x80000, false))), nil), "mpls_label", []string{"524288"}, ""},
		{"unknown family", four, four, update(nil, cat(plain, mpReach(25, 70, ip("192.0.2.9"), []byte{1, 2, 3})), pfx("10.0.0.0/8")), "ip_prefix", []string{"10.0.0.0/8"}, ""},
		{"prefix too long", four, four, update(nil, plain, cat(pfx("10.0.0.0/8"), []byte{33, 1, 2, 3, 4, 5})), "ip_prefix", []string{"10.0.0.0/8"}, "prefix length 33"},
		{"prefix overruns", four, four, update(nil, plain, cat(pfx("10.0.0.0/8"), []byte{32, 1, 2})), "ip_prefix", []string{"10.0.0.0/8"}, "prefix of 4 bytes"},
		{"attribute overruns", four, four, update(nil, cat(origin(0), []byte{0x40, 2, 99, 1}), pfx("10.0.0.0/8")), "ip_prefix", nil, "attribute 2 of 99 bytes"},
		{"MED of 3 bytes", four, four, update(nil, attr(0x80, 4, []byte{1, 2, 3}), pfx("10.0.0.0/8")), "ip_prefix", nil, "attribute 4 of 3 bytes"},
		{"a KEEPALIVE", four, four, bgpMsg(4), "seq", nil, ""},
		{"End-of-RIB of an unknown family", four, four, update(nil, mpUnreach(25, 70, nil), nil), "log_type", []string{"end-of-rib"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, s := newSession(t, Options{Timestamps: UTC})
			var b record.Batch
			if err := s.Message(&b, nil, 0, peerUp(peerV4, "192.0.2.1", tt.sent, tt.received)); err != nil {
				t.Fatal(err)
			}
			b.Reset()
			err := s.Message(&b, nil, 0, route(peerV4, tt.pdu))
			var got []string
			for _, v := range values(&b) {
				got = append(got, field(v, tt.key))
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("%s: %s\n%s", tt.key, d, strings.Join(values(&b), "\n"))
			}
			checkError(t, err, tt.err)
		})
	}
}

// checkError checks that err is an *Error that contains want, or nil if want
// is empty.
func checkError(t *testing.T, err error, want string) {
	t.Helper()
	var e *Error
	switch {
	case want == "" && err != nil:
		t.Error(err)
	case want != "" && (!errors.As(err, &e) || !strings.Contains(e.Error(), want)):
		t.Errorf("error %v, want an *Error with %q", err, want)
	}
}

// TestBadMessages checks that bad messages make an error that says where, no
// record, and leave the session as it was.
func TestBadMessages(t *testing.T) {
	good := open(64500, capAS4(64500))
	loc := locRIB
	loc.addr = "192.0.2.1"
	other := peerV4
	other.addr = "192.0.2.99"
	plain := cat(origin(0), nextHop("192.0.2.7"))
	up := func(sent, received []byte, tlvs ...[]byte) []byte {
		return peerUp(other, "192.0.2.1", sent, received, tlvs...)
	}
	for _, tt := range []struct {
		name    string
		msg     []byte
		offset  int
		err     string
		is      error
		records int
	}{
		{"header only", bmpMsg(0), 6, "per-peer header", nil, 0},
		{"cut in the per-peer header", bmpMsg(1, peerV4.bytes()[:20]), 26, "per-peer header", nil, 0},
		{"Route Monitoring before Peer Up", route(other, update(nil, plain, pfx("10.0.0.0/8"))), 6, "no Peer Up", ErrNoPeerUp, 0},
		{"Loc-RIB peer with an address", route(loc, update(nil, nil, nil)), 16, "Loc-RIB peer with an address", ErrLocRIBAddress, 0},
		{"counters of such a peer", stats(loc, tlv(0, u32(1))), 16, "Loc-RIB peer", ErrLocRIBAddress, 0},
		{"longer than pmacct takes", route(peerV4, update(nil, nil, nil), make([]byte, 100000)), 1, "longer than 100000", ErrTooLong, 0},
		{"PDU overruns", bmpMsg(0, peerV4.bytes(), update(nil, plain, pfx("10.0.0.0/8"))[:30]), 64, "BGP message of", nil, 0},
		{"marker", bmpMsg(0, peerV4.bytes(), make([]byte, 16), u16(23), []byte{2}, make([]byte, 4)), 48, "marker", nil, 0},
		{"attributes overrun", bmpMsg(0, peerV4.bytes(), bgpMsg(2, u16(0), u16(9))), 69, "9 bytes of path attributes", nil, 0},
		{"Peer Up without OPENs", bmpMsg(3, other.bytes(), make([]byte, 20)), 68, "BGP header", nil, 0},
		{"Peer Up with an UPDATE", up(update(nil, nil, nil), good), 86, "type 2 where an OPEN", nil, 0},
		{"BGP version 3", up(good, bgpMsg(1, []byte{3}, u16(1), u16(1), ip("192.0.2.1"), []byte{0})), 124, "version", nil, 0},
		{"AS_TRANS alone", up(open(23456), good), 88, "AS numbers", nil, 0},
		{"AS numbers that differ", up(open(1, capAS4(2)), good), 88, "AS numbers", nil, 0},
		{"AS4 capability of 2 bytes", up(open(1, capability(65, u16(1))), good), 97, "not 4 bytes", nil, 0},
		{"Peer Up with half a TLV", up(good, good, []byte{0, 0, 0}), 145, "TLV header", nil, 0},
		{"Initiation with half a TLV", initiation(tlv(0, nil), []byte{0, 1, 0, 9}), 12, "TLV of 9 bytes", nil, 0},
		{"enterprise TLV without number", initiation(tlv(0x8000, []byte{1})), 8, "enterprise TLV of 1", nil, 0},
		{"Peer Down without a code", peerDown(peerV4, []byte{2, 0}), 50, "FSM event code", nil, 0},
		{"fewer counters than promised", bmpMsg(1, peerV4.bytes(), u32(2), tlv(0, u32(1))), 60, "before a counter", nil, 1},
		{"counter overruns", bmpMsg(1, peerV4.bytes(), u32(1), u16(77), u16(9), u32(1)), 54, "counter of 9 bytes", nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			enc, s := newSession(t, Options{Timestamps: UTC})
			var b record.Batch
			if err := s.Message(&b, nil, 0, peerUp(peerV4, "192.0.2.1", good, good)); err != nil {
				t.Fatal(err)
			}
			b.Reset()
			err := s.Message(&b, nil, 0, tt.msg)
			checkError(t, err, tt.err)
			var e *Error
			if errors.As(err, &e) && e.Offset != tt.offset {
				t.Errorf("offset %d, want %d: %v", e.Offset, tt.offset, err)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %v is not %v", err, tt.is)
			}
			if b.Len() != tt.records {
				t.Errorf("%d records, want %d: %s", b.Len(), tt.records, b.Data)
			}
			if enc.Counters() == (Counters{}) {
				t.Error("not counted")
			}
			b.Reset()
			if err := s.Message(&b, nil, 0, route(peerV4, update(nil, plain, pfx("10.0.0.0/8")))); err != nil || b.Len() != 1 {
				t.Errorf("the session does not go on: %d records, %v", b.Len(), err)
			}
		})
	}
}

// TestTLVsAfterUpdate checks that they are no error.
func TestTLVsAfterUpdate(t *testing.T) {
	enc, s := newSession(t, Options{})
	var b record.Batch
	o := open(1, capAS4(1))
	for _, msg := range [][]byte{
		peerUp(peerV4, "192.0.2.1", o, o),
		route(peerV4, update(nil, nil, pfx("10.0.0.0/8")), tlv(1, []byte{0, 0, 7})),
		route(peerV4, update(nil, nil, pfx("10.0.0.0/8")), []byte{1}),
	} {
		if err := s.Message(&b, nil, 0, msg); err != nil {
			t.Error(err)
		}
	}
	if c := enc.Counters(); b.Len() != 3 || c != (Counters{TrailingTLVs: 2}) {
		t.Errorf("%d records, counters %+v", b.Len(), c)
	}
}

// TestPeers checks who is up when, and with what capabilities.
func TestPeers(t *testing.T) {
	_, s := newSession(t, Options{})
	two, four := open(7), open(7, capAS4(7))
	pdu := update(nil, asPath(seg2(2, 1, 2, 3, 4)), pfx("10.0.0.0/8"))
	path := func(s *Session, p testPeer) string {
		var b record.Batch
		if err := s.Message(&b, nil, 0, route(p, pdu)); err != nil {
			return err.Error()
		}
		return field(string(b.Value(0)), "as_path") + " of " + field(string(b.Value(0)), "peer_asn")
	}
	do := func(msg []byte) {
		t.Helper()
		s.Observe(msg)
	}
	expect := func(what, got, want string) {
		t.Helper()
		if got != want && !(want == "" && strings.Contains(got, "no Peer Up")) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	expect("nobody is up", path(s, peerV4), "")
	do(peerUp(peerV4, "192.0.2.1", two, two))
	expect("up", path(s, peerV4), "1 2 3 4 of 7")
	do(peerUp(peerV4, "192.0.2.1", open(8, capAS4(8)), open(8, capAS4(8))))
	expect("a second Peer Up changes nothing", path(s, peerV4), "1 2 3 4 of 7")

	post, out := peerV4, peerV4
	post.flags, out.flags = 0x40, 0x10
	expect("another RIB of the same peer", path(s, post), "1 2 3 4 of 7")
	expect("one more", path(s, out), "1 2 3 4 of 7")
	rd := peerV4
	rd.rd = rd0(1, 1)
	expect("a distinguisher counts for RD instances only", path(s, rd), "1 2 3 4 of 7")
	rd.typ = 1
	expect("for those it does", path(s, rd), "")
	do(peerUp(rd, "192.0.2.1", four, four))
	if s.Peers() != 2 {
		t.Errorf("%d peers up, want 2", s.Peers())
	}

	c := s.Clone()
	do(peerDown(peerV4, []byte{4}))
	expect("down", path(s, peerV4), "")
	expect("still up in the clone", path(c, peerV4), "1 2 3 4 of 7")
	c.Observe(peerDown(rd, []byte{4}))
	expect("down in the clone only", path(s, rd), " of 7")
	do(peerUp(peerV4, "192.0.2.1", open(9), open(9)))
	expect("up again", path(s, peerV4), "1 2 3 4 of 9")
}

// TestTermination checks that log_close comes once, and nothing after it.
func TestTermination(t *testing.T) {
	for _, observe := range []bool{false, true} {
		_, s := newSession(t, Options{})
		var b record.Batch
		s.Open(&b, nil, 0)
		if observe {
			s.Observe(termination())
		} else if err := s.Message(&b, nil, 0, termination()); err != nil {
			t.Fatal(err)
		}
		if err := s.Message(&b, nil, 0, initiation()); err != nil {
			t.Fatal(err)
		}
		s.Close(&b, nil, 0)
		s.Clone().Close(&b, nil, 0)
		var got []string
		for _, v := range values(&b) {
			got = append(got, field(v, "event_type")+field(v, "bmp_msg_type"))
		}
		want := []string{"log_init", "logterm", "log_close"}
		if observe {
			want = want[:1]
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("observe %v: %s", observe, d)
		}
	}
}

// TestObserve checks that a session that was moved forward without encoding
// goes on as one that encoded everything.
func TestObserve(t *testing.T) {
	var msgs [][]byte
	eachMessage(t, everything(), func(msg []byte) { msgs = append(msgs, msg) })
	for cut := range msgs {
		_, encoded := newSession(t, Options{Timestamps: UTC})
		_, observed := newSession(t, Options{Timestamps: UTC})
		var b, want, got record.Batch
		for _, msg := range msgs[:cut] {
			_ = encoded.Message(&b, nil, 0, msg)
			observed.Observe(msg)
		}
		observed.enc.seq.Store(encoded.enc.seq.Load())
		for _, msg := range msgs[cut:] {
			_ = encoded.Message(&want, nil, 0, msg)
			_ = observed.Message(&got, nil, 0, msg)
		}
		if d := cmp.Diff(values(&want), values(&got)); d != "" {
			t.Errorf("from message %d: %s", cut, d)
		}
	}
}

// TestHeader checks keys and headers of records.
func TestHeader(t *testing.T) {
	_, s := newSession(t, Options{Header: true})
	_, bare := newSession(t, Options{})
	var b, plain record.Batch
	o := &record.Origin{Instance: 5, Session: 6, Message: 7, Token: 8, Flags: record.FlagReplayed}
	s.Open(&b, o, 1)
	bare.Open(&plain, nil, 1)
	eachMessage(t, everything(), func(msg []byte) {
		_ = s.Message(&b, o, 1, msg)
		_ = bare.Message(&plain, nil, 1, msg)
	})
	if d := cmp.Diff(values(&plain), values(&b)); d != "" {
		t.Errorf("values differ with headers: %s", d)
	}
	index := 0
	for i := range b.Len() {
		if b.Recs[i].Topic != 7 || string(b.Key(i)) != "203.0.113.1" || plain.Header(i) != nil {
			t.Errorf("record %d: topic %d, key %q", i, b.Recs[i].Topic, b.Key(i))
		}
		h, err := record.ParseHeader(b.Header(i))
		if err != nil {
			t.Fatal(err)
		}
		v := string(b.Value(i))
		kind := field(v, "log_type")
		isRoute := kind == "update" || kind == "withdraw"
		want := record.Header{Origin: *o, KeyHash: h.KeyHash, ValueHash: h.ValueHash}
		if isRoute {
			want.Flags |= record.FlagRoute
		} else {
			want.Flags |= record.FlagState
		}
		if h.KeyHash == 0 || h.ValueHash == 0 || (h.ValueHash == withdrawn) != (kind == "withdraw") {
			t.Errorf("hashes %x %x: %s", h.KeyHash, h.ValueHash, v)
		}
		if want.Index = h.Index; int(h.Index) != 0 && int(h.Index) != index+1 {
			t.Errorf("record %d has index %d after %d", i, h.Index, index)
		}
		index = int(h.Index)
		if d := cmp.Diff(want, h); d != "" {
			t.Errorf("header of %s: %s", v, d)
		}
	}
}

// hashes returns the hashes of the first record of pdu from p, in a session of
// the router called name.
func hashes(t *testing.T, name string, p testPeer, pdu []byte, caps ...[]byte) (key, value uint64) {
	t.Helper()
	enc, err := NewEncoder(Options{Header: true})
	if err != nil {
		t.Fatal(err)
	}
	s := enc.Session(Identity{Router: name})
	var b record.Batch
	oo := open(64500, append([][]byte{capAS4(64500)}, caps...)...)
	s.Observe(peerUp(p, "", oo, oo))
	if err := s.Message(&b, &record.Origin{}, 1, route(p, pdu)); err != nil || b.Len() == 0 {
		t.Fatalf("%d records, %v", b.Len(), err)
	}
	h, err := record.ParseHeader(b.Header(0))
	if err != nil {
		t.Fatal(err)
	}
	return h.KeyHash, h.ValueHash
}

// TestHashLayout pins what the hashes are made of by their values, and that
// each part counts and nothing else does.
func TestHashLayout(t *testing.T) {
	attrs := cat(origin(0), asPath(seg(2, 64500)), nextHop("192.0.2.7"))
	base := peerV4
	key, value := hashes(t, "r1", base, update(nil, attrs, pfx("10.1.0.0/16")))

	// The layout as documented, written out by hand.
	want := cat(u16(2), []byte("r1"), make([]byte, 8), addr16("192.0.2.7"), ip("192.0.2.7"), []byte{0},
		u16(1), []byte{1}, make([]byte, 8), u32(0), []byte{16, 10, 1})
	if h := sum(want); h != key {
		t.Errorf("key hash %x, want %x", key, h)
	}
	wantValue := cat([]byte{0x40, 1}, u16(1), []byte{0}, []byte{0x40, 2}, u16(6), seg(2, 64500), []byte{0x40, 3}, u16(4), ip("192.0.2.7"))
	if h := sum(wantValue); h != value {
		t.Errorf("value hash %x, want %x", value, h)
	}
	if h := sum(nil); h != withdrawn {
		t.Errorf("withdrawn is %x, want %x", uint64(withdrawn), h)
	}

	with := func(f func(p *testPeer)) testPeer { p := base; f(&p); return p }
	one := pfx("10.1.0.0/16")
	lab := func(l uint32) []byte {
		return update(nil, cat(attrs, mpReach(1, 4, ip("192.0.2.7"), labelled("10.1.0.0/16", nil, label(l, true)))), nil)
	}
	labKey, labValue := hashes(t, "r1", base, lab(1))
	for _, tt := range []struct {
		name     string
		router   string
		peer     testPeer
		pdu      []byte
		caps     []byte
		key, val bool // equal to the first ones
	}{
		{"another time", "r1", with(func(p *testPeer) { p.sec++; p.usec++ }), update(nil, attrs, one), nil, true, true},
		{"another AS in the header", "r1", with(func(p *testPeer) { p.as++ }), update(nil, attrs, one), nil, true, true},
		{"host bits", "r1", base, update(nil, attrs, []byte{15, 10, 1}), nil, false, true},
		{"another route in the message", "r1", base, update(nil, attrs, cat(one, pfx("10.2.0.0/16"))), nil, true, true},
		{"withdrawn", "r1", base, update(one, nil, nil), nil, true, false},
		{"another router", "r2", base, update(nil, attrs, one), nil, false, true},
		{"another peer", "r1", with(func(p *testPeer) { p.addr = "192.0.2.8" }), update(nil, attrs, one), nil, false, true},
		{"another BGP identifier", "r1", with(func(p *testPeer) { p.id = "192.0.2.8" }), update(nil, attrs, one), nil, false, true},
		{"another RIB", "r1", with(func(p *testPeer) { p.flags = 0x40 }), update(nil, attrs, one), nil, false, true},
		{"a distinguisher", "r1", with(func(p *testPeer) { p.typ, p.rd = 1, rd0(1, 1) }), update(nil, attrs, one), nil, false, true},
		{"a path identifier", "r1", base, update(nil, attrs, cat(u32(1), one)), capAddPath(1, 1, 3), false, true},
		{"another attribute", "r1", base, update(nil, cat(attrs, med(1)), one), nil, true, false},
		{"extended length", "r1", base, update(nil, cat(origin(0), asPath(seg(2, 64500)), []byte{0x50, 3}, u16(4), ip("192.0.2.7")), one), nil, true, true},
		{"withdrawals beside it", "r1", base, update(nil, cat(attrs, mpUnreach(2, 1, pfx("2001:db8::/32"))), one), nil, true, true},
	} {
		k, v := hashes(t, tt.router, tt.peer, tt.pdu, tt.caps)
		if (k == key) != tt.key || (v == value) != tt.val {
			t.Errorf("%s: key equal %v, value equal %v; want %v, %v", tt.name, k == key, v == value, tt.key, tt.val)
		}
	}
	if k, v := hashes(t, "r1", base, lab(2)); k != labKey || v == labValue || labKey == key {
		t.Error("a label belongs to the value, not to the key")
	}
	hk, _ := hashes(t, "r1", base, update(nil, attrs, []byte{15, 10, 1}))
	if k, _ := hashes(t, "r1", base, update(nil, attrs, []byte{15, 10, 0})); k != hk {
		t.Error("host bits belong to the key")
	}
	reach := func(nh string, p ...string) []byte {
		var n []byte
		for _, p := range p {
			n = append(n, pfx(p)...)
		}
		return update(nil, cat(attrs, mpReach(2, 1, ip(nh), n)), nil)
	}
	k1, v1 := hashes(t, "r1", base, reach("2001:db8::1", "2001:db8:1::/48", "2001:db8:2::/48"))
	k2, v2 := hashes(t, "r1", base, reach("2001:db8::1", "2001:db8:1::/48"))
	_, v3 := hashes(t, "r1", base, reach("2001:db8::2", "2001:db8:1::/48"))
	if k1 != k2 || v1 != v2 || v2 == v3 {
		t.Error("of MP_REACH_NLRI the next hop counts and the routes do not")
	}
}

// TestDecodeBadStream checks that what came before is written, log_close
// included, and that the error names the offset.
func TestDecodeBadStream(t *testing.T) {
	good := initiation(tlv(2, []byte("r1")))
	for _, tt := range []struct {
		name  string
		good  int // messages before what is bad
		bad   string
		err   string
		frame bool
	}{
		{"garbage", 1, "garbage", fmt.Sprintf("offset %d", len(good)), true},
		{"HTTP", 0, "GET / HTTP/1.1\r\n\r\n", "offset 0", true},
		{"version 4", 2, "\x04\x00\x00\x00\x06\x04", "version 4", true},
		{"length 5", 1, "\x03\x00\x00\x00\x05\x04", "length 5", true},
		{"length 4 GiB", 0, "\x03\xff\xff\xff\xff\x04", "length 4294967295", true},
		{"truncated", 1, string(good[:9]), fmt.Sprintf("offset %d", len(good)), false},
		{"truncated header", 1, "\x03\x00", "ends within a message, 2 bytes", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			in := strings.Repeat(string(good), tt.good) + tt.bad
			_, err := Decode(&out, iotest.HalfReader(strings.NewReader(in)), decodeOptions(UTC))
			var fe *bmp.FrameError
			if err == nil || !strings.Contains(err.Error(), tt.err) || errors.As(err, &fe) != tt.frame || errors.Is(err, io.ErrUnexpectedEOF) == tt.frame {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			if len(lines) != tt.good+2 {
				t.Errorf("%d records, want %d:\n%s", len(lines), tt.good+2, out.String())
			}
			if field(lines[0], "event_type") != "log_init" || field(lines[len(lines)-1], "event_type") != "log_close" {
				t.Errorf("not between log_init and log_close:\n%s", out.String())
			}
		})
	}
	t.Run("large messages", func(t *testing.T) {
		big := initiation(tlv(0, bytes.Repeat([]byte("x"), 60000)))
		var out bytes.Buffer
		st, err := Decode(&out, bytes.NewReader(bytes.Repeat(big, 20)), decodeOptions(UTC))
		if err != nil || st.Messages != 20 || st.Records != 22 {
			t.Errorf("%+v, %v", st, err)
		}
	})
	t.Run("a writer that fails", func(t *testing.T) {
		r, w := io.Pipe()
		r.Close()
		if _, err := Decode(w, bytes.NewReader(good), decodeOptions(UTC)); !errors.Is(err, io.ErrClosedPipe) {
			t.Error(err)
		}
	})
	t.Run("a reader that fails", func(t *testing.T) {
		var out bytes.Buffer
		_, err := Decode(&out, iotest.TimeoutReader(iotest.OneByteReader(bytes.NewReader(good))), decodeOptions(UTC))
		if !errors.Is(err, iotest.ErrTimeout) || strings.Count(out.String(), "log_close") != 1 {
			t.Errorf("%v: %s", err, out.String())
		}
	})
}

func TestNewEncoderBad(t *testing.T) {
	for _, o := range []Options{{Dialect: "1.7.7"}, {Timestamps: 9}, {WriterID: "\xff"}} {
		if _, err := NewEncoder(o); err == nil {
			t.Errorf("no error for %+v", o)
		}
	}
	if _, err := ParseTimestamps("local"); err == nil {
		t.Error("no error for timestamps local")
	}
	for _, f := range []Timestamps{Default, UTC, RFC3339, Epoch} {
		if got, err := ParseTimestamps(f.String()); got != f || err != nil {
			t.Errorf("%v: %v, %v", f, got, err)
		}
	}
}

func TestClock(t *testing.T) {
	zone := time.FixedZone("", -5*3600-1800)
	for _, tt := range []struct {
		form Timestamps
		sec  int64
		usec uint32
		want string
	}{
		{Default, 1700000000, 5, "2023-11-14 16:43:20.000005"},
		{UTC, 1700000000, 999999, "2023-11-14 22:13:20.999999"},
		{UTC, 1700000000, 1000000, "2023-11-14 22:13:20.1000000"},
		{RFC3339, 1700000000, 0, "2023-11-14T16:43:20.000000-05:30"},
		{Epoch, 1700000000, 120, "1700000000.000120"},
		{UTC, 0, 77, "0000-00-00 00:00:00.000000"},
		{RFC3339, 0, 77, "0000-00-00T00:00:00.000000-05:30"},
		{Epoch, 0, 77, "0.000000"},
	} {
		style, err := newClockStyle(tt.form, zone)
		if err != nil {
			t.Fatal(err)
		}
		var c clock
		for range 2 { // the second time from memory
			if got := string(c.append(nil, &style, tt.sec, tt.usec)); got != tt.want {
				t.Errorf("%v %d.%d: %s, want %s", tt.form, tt.sec, tt.usec, got, tt.want)
			}
		}
	}
}

// TestAddresses checks IPv6 addresses as the C library writes them.
func TestAddresses(t *testing.T) {
	for _, s := range []string{
		"::", "::1", "1::", "2001:db8::1", "2001:db8:0:1:1:1:1:1", "1:0:0:2::3", "1::2:0:0:3:4", "0:0:1::", "fe80::a:b",
		"::ffff:192.0.2.1", "::192.0.2.1", "::0.1.0.0", "1:2:3:4:5:6:7:8", "0:1::", "1:2:3:4:5:6::", "ab:cd:ef:1200:345:67:8:fff",
	} {
		a := netip.MustParseAddr(s).As16()
		if got := string(appendIPv6(nil, a[:])); got != s {
			t.Errorf("%s, want %s", got, s)
		}
	}
}

// TestMessageAllocates checks that encoding allocates nothing once the memory
// has grown.
func TestMessageAllocates(t *testing.T) {
	_, s := newSession(t, Options{Header: true, WriterID: "w"})
	var msgs [][]byte
	eachMessage(t, everything(), func(msg []byte) {
		switch bmp.Type(msg) {
		case bmp.TypeRouteMonitoring, bmp.TypeStatisticsReport, bmp.TypeInitiation:
			msgs = append(msgs, msg)
		case bmp.TypePeerUp:
			s.Observe(msg)
		}
	})
	var b record.Batch
	o := &record.Origin{}
	n := testing.AllocsPerRun(100, func() {
		b.Reset()
		for _, msg := range msgs {
			if err := s.Message(&b, o, 1, msg); err != nil {
				t.Error(err)
			}
		}
	})
	if n != 0 {
		t.Errorf("%v allocations for %d messages", n, len(msgs))
	}
}

// FuzzMessage encodes a stream of messages and moves a copy of the session
// over them: no panic, valid JSON, and both end in the same state.
func FuzzMessage(f *testing.F) {
	f.Add(everything())
	o := open(64500, capAS4(64500), capAddPath(1, 1, 3))
	up := peerUp(peerV4, "192.0.2.1", o, o)
	f.Add(cat(up, route(peerV4, update(nil, cat(asPath(seg(2, 1)), nextHop("192.0.2.1")), cat(u32(1), pfx("10.0.0.0/8"))))))
	f.Add(cat(up, stats(peerV4, tlv(0, u32(1)), tlv(9, make([]byte, 11)), tlv(99, []byte{1})), peerDown(peerV4, []byte{2, 0, 1})))
	f.Add(initiation(tlv(1, []byte("\xff\x00\"")), tlv(0x8001, u32(1))))
	f.Fuzz(func(t *testing.T, stream []byte) {
		_, s := newSession(t, Options{Timestamps: RFC3339, Header: true, WriterID: "w"})
		observed := s.Clone()
		var b record.Batch
		o := &record.Origin{}
		s.Open(&b, o, 1)
		for {
			n, err := bmp.Next(stream, 1<<20)
			if n == 0 || err != nil {
				break
			}
			msg := stream[:n:n]
			if err := s.Message(&b, o, 1, msg); err != nil {
				var e *Error
				if !errors.As(err, &e) || e.Offset < 0 || e.Offset > n {
					t.Errorf("error %#v for a message of %d bytes", err, n)
				}
				_ = err.Error()
			}
			observed.Observe(msg)
			stream = stream[n:]
		}
		if s.closed != observed.closed || s.Peers() != observed.Peers() {
			t.Errorf("closed %v, %d peers; observed %v, %d", s.closed, s.Peers(), observed.closed, observed.Peers())
		}
		s.Close(&b, o, 1)
		var lines []byte
		for i := range b.Len() {
			if bytes.ContainsRune(b.Value(i), '\n') {
				t.Errorf("a record of several lines: %q", b.Value(i))
			}
			if _, err := record.ParseHeader(b.Header(i)); err != nil {
				t.Error(err)
			}
			lines = append(append(lines, b.Value(i)...), '\n')
		}
		checkJSON(t, lines)
	})
}

// TestFamilies checks that families and their index go together.
func TestFamilies(t *testing.T) {
	for i, f := range bgp.Families {
		if f.Index() != i || !f.Known() {
			t.Errorf("%v has index %d, want %d", f, f.Index(), i)
		}
	}
	for _, f := range []bgp.Family{{}, {AFI: 1, SAFI: 2}, {AFI: 25, SAFI: 1}} {
		if f.Index() != -1 {
			t.Errorf("%v has index %d", f, f.Index())
		}
	}
}

// sum is xxHash64 with seed 0 as its specification has it, for short and long
// input, so that the layout test does not depend on the library.
func sum(b []byte) uint64 {
	const p1, p2, p3, p4, p5 = 11400714785074694791, 14029467366897019727, 1609587929392839161, 9650029242287828579, 2870177450012600261
	rol := func(x uint64, r int) uint64 { return x<<r | x>>(64-r) }
	round := func(acc, in uint64) uint64 { return rol(acc+in*p2, 31) * p1 }
	n := uint64(len(b))
	var h uint64
	if len(b) >= 32 {
		one, two := uint64(p1), uint64(p2)
		v := [4]uint64{one + two, two, 0, -one}
		for ; len(b) >= 32; b = b[32:] {
			for i := range v {
				v[i] = round(v[i], binary.LittleEndian.Uint64(b[8*i:]))
			}
		}
		h = rol(v[0], 1) + rol(v[1], 7) + rol(v[2], 12) + rol(v[3], 18)
		for _, x := range v {
			h = (h^round(0, x))*p1 + p4
		}
	} else {
		h = p5
	}
	h += n
	for ; len(b) >= 8; b = b[8:] {
		h = rol(h^round(0, binary.LittleEndian.Uint64(b)), 27)*p1 + p4
	}
	if len(b) >= 4 {
		h = rol(h^uint64(binary.LittleEndian.Uint32(b))*p1, 23)*p2 + p3
		b = b[4:]
	}
	for _, c := range b {
		h = rol(h^uint64(c)*p5, 11) * p1
	}
	h = (h ^ h>>33) * p2
	h = (h ^ h>>29) * p3
	return h ^ h>>32
}

package bmp_test

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/bmpha/bmpha/pkg/bmp"
)

const limit = 1 << 20

func TestNext(t *testing.T) {
	whole := message(4, "\x00\x02\x00\x02r1")
	for _, tt := range []struct {
		name string
		in   []byte
		n    int
		what string // of the error, "" for none
		got  uint64
	}{
		{"nothing", nil, 0, "", 0},
		{"one good byte", []byte{3}, 0, "", 0},
		{"header cut", whole[:5], 0, "", 0},
		{"body cut", whole[:len(whole)-1], 0, "", 0},
		{"whole", whole, len(whole), "", 0},
		{"whole and more", append(bytes.Clone(whole), 99), len(whole), "", 0},
		{"shortest", []byte{3, 0, 0, 0, 6, 4}, 6, "", 0},
		{"at the limit, cut", []byte{3, 0, 0x10, 0, 0, 0}, 0, "", 0},
		{"version 2", []byte{2}, 0, "version", 2},
		{"version 4", append([]byte{4}, whole[1:]...), 0, "version", 4},
		{"HTTP", []byte("GET / HTTP/1.1\r\n"), 0, "version", 'G'},
		{"length 0", []byte{3, 0, 0, 0, 0, 0}, 0, "length", 0},
		{"length 5", []byte{3, 0, 0, 0, 5, 0}, 0, "length", 5},
		{"length above the limit", []byte{3, 0, 0x10, 0, 1, 0}, 0, "length", limit + 1},
		{"length 4 GiB", []byte{3, 0xff, 0xff, 0xff, 0xff, 0}, 0, "length", 1<<32 - 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n, err := bmp.Next(tt.in, limit)
			if n != tt.n {
				t.Errorf("n %d, want %d", n, tt.n)
			}
			var fe *bmp.FrameError
			switch {
			case tt.what == "" && err != nil:
				t.Error(err)
			case tt.what != "" && (!errors.As(err, &fe) || fe.What != tt.what || fe.Got != tt.got || fe.Want == "" || fe.Section == ""):
				t.Errorf("error %v, want a *FrameError about %s %d", err, tt.what, tt.got)
			}
		})
	}
}

// message is a BMP message of type t.
func message(t byte, body string) []byte {
	n := len(body) + 6
	return []byte(string([]byte{3, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n), t}) + body)
}

// pdu is a BGP message of type t.
func pdu(t byte, body string) string {
	n := len(body) + 19
	return strings.Repeat("\xff", 16) + string([]byte{byte(n >> 8), byte(n), t}) + body
}

// peer is a per-peer header.
func peer(typ, flags byte) string {
	return string([]byte{typ, flags}) + "\x00\x01\xc0\x00\x02\x09\x00\x4d" +
		"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\xc6\x33\x64\x01" +
		"\x00\x00\xfb\xf4\xc0\x00\x02\x07\x65\x53\xf1\x00\x00\x01\xe2\x40"
}

func TestPerPeer(t *testing.T) {
	for _, tt := range []struct {
		typ, flags byte
		addr       string
		rib        bmp.RIB
		filtered   bool
	}{
		{bmp.PeerGlobal, 0, "198.51.100.1", bmp.AdjRIBInPre, false},
		{bmp.PeerRD, bmp.FlagL, "198.51.100.1", bmp.AdjRIBInPost, false},
		{bmp.PeerLocal, bmp.FlagO | bmp.FlagV, "2001:db8::c633:6401", bmp.AdjRIBOutPre, false},
		{bmp.PeerGlobal, bmp.FlagO | bmp.FlagL, "198.51.100.1", bmp.AdjRIBOutPost, false},
		{bmp.PeerLocRIB, 0, "198.51.100.1", bmp.LocRIB, false},
		{bmp.PeerLocRIB, bmp.FlagF, "198.51.100.1", bmp.LocRIB, true},
		{9, bmp.FlagV, "2001:db8::c633:6401", bmp.AdjRIBInPre, false},
	} {
		p, err := bmp.ParsePerPeer(message(2, peer(tt.typ, tt.flags)))
		if err != nil {
			t.Fatal(err)
		}
		if p.Address() != netip.MustParseAddr(tt.addr) || p.RIB() != tt.rib || p.Filtered() != tt.filtered {
			t.Errorf("type %d flags %#x: %v %v %v; want %+v", tt.typ, tt.flags, p.Address(), p.RIB(), p.Filtered(), tt)
		}
		if p.AS != 64500 || p.BGPID != [4]byte{192, 0, 2, 7} || p.Sec != 1700000000 || p.Usec != 123456 || p.Distinguisher != [8]byte{0, 1, 192, 0, 2, 9, 0, 77} {
			t.Errorf("%+v", p)
		}
	}
}

func TestMessages(t *testing.T) {
	open := pdu(1, "\x04\xfb\xf4\x00\xb4\xc0\x00\x02\x07\x00")
	update := pdu(2, "\x00\x00\x00\x00")

	u, err := bmp.ParsePeerUp(message(3, peer(0, 0)+strings.Repeat("\x00", 12)+"\xc0\x00\x02\x01\x00\xb3\x9c\x40"+open+pdu(1, "\x04\xfb\xf5\x00\xb4\xc0\x00\x02\x07\x00")+"\x00\x03\x00\x01V"))
	if err != nil {
		t.Fatal(err)
	}
	if u.LocalAddr != netip.MustParseAddr("192.0.2.1") || u.LocalPort != 179 || u.RemotePort != 40000 ||
		string(u.Sent) != open || len(u.Received) != len(open) || u.ReceivedOffset != u.SentOffset+len(open) {
		t.Errorf("%+v", u)
	}
	if !u.TLVs.Next() || u.TLVs.TLV().Type != bmp.PeerUpVRFTable || string(u.TLVs.TLV().Value) != "V" || u.TLVs.Next() || u.TLVs.Err() != nil {
		t.Errorf("TLVs %+v", u.TLVs)
	}

	d, err := bmp.ParsePeerDown(message(2, peer(0, 0)+"\x02\x00\x12"))
	if err != nil {
		t.Fatal(err)
	}
	if code, ok := d.Event(); !ok || code != 18 || d.Reason != bmp.DownLocal {
		t.Errorf("%+v", d)
	}

	s, err := bmp.ParseStats(message(1, peer(0, 0)+"\x00\x00\x00\x01\x00\x07\x00\x01\x05"))
	if err != nil {
		t.Fatal(err)
	}
	if s.Count != 1 || !s.Counters.Next() || s.Counters.TLV().Type != 7 {
		t.Errorf("%+v", s)
	}

	// What follows the BGP message is kept and is not an error, whatever it is.
	for _, tail := range []string{"", "\x00\x01\x00\x01x", "\x00", "\xff\xff\xff\xff"} {
		rm, err := bmp.ParseRouteMonitoring(message(0, peer(0, 0)+update+tail))
		if err != nil {
			t.Fatal(err)
		}
		if string(rm.Update) != update || string(rm.TLVs.Rest()) != tail || rm.Offset != 48 {
			t.Errorf("tail %q: %+v", tail, rm)
		}
	}

	i := bmp.ParseInitiation(message(4, "\x00\x02\x00\x02r1\x00\x01\x00\x00"))
	if !i.Next() || i.TLV().Type != bmp.InitSysName || string(i.TLV().Value) != "r1" || !i.Next() || i.TLV().Offset != 12 || i.Next() || i.Err() != nil {
		t.Errorf("%+v", i)
	}
}

func TestBad(t *testing.T) {
	open := pdu(1, "\x04\xfb\xf4\x00\xb4\xc0\x00\x02\x07\x00")
	routes := func(m []byte) error { _, err := bmp.ParseRouteMonitoring(m); return err }
	up := func(m []byte) error { _, err := bmp.ParsePeerUp(m); return err }
	down := func(m []byte) error { _, err := bmp.ParsePeerDown(m); return err }
	stats := func(m []byte) error { _, err := bmp.ParseStats(m); return err }
	tlvs := func(m []byte) error {
		w := bmp.ParseInitiation(m)
		for w.Next() {
		}
		return w.Err()
	}
	for _, tt := range []struct {
		name   string
		parse  func([]byte) error
		msg    []byte
		offset int
		what   string
	}{
		{"per-peer header cut", routes, message(0, peer(0, 0)[:41]), 47, "per-peer header"},
		{"no BGP message", routes, message(0, peer(0, 0)), 48, "BGP header"},
		{"BGP message cut", routes, message(0, peer(0, 0)+open[:28]), 64, "29 bytes where 28"},
		{"BGP length 18", routes, message(0, peer(0, 0)+open[:16]+"\x00\x12\x02"), 64, "18 bytes"},
		{"peer up header cut", up, message(3, peer(0, 0)+strings.Repeat("\x00", 19)), 67, "peer up header"},
		{"one OPEN", up, message(3, peer(0, 0)+strings.Repeat("\x00", 20)+open), 97, "BGP header"},
		{"second OPEN cut", up, message(3, peer(0, 0)+strings.Repeat("\x00", 20)+open+open[:28]), 113, "29 bytes where 28"},
		{"no reason", down, message(2, peer(0, 0)), 48, "reason"},
		{"no counter count", stats, message(1, peer(0, 0)+"\x00\x00\x00"), 51, "counter count"},
		{"TLV header cut", tlvs, message(4, "\x00\x02\x00"), 9, "TLV header"},
		{"TLV overruns", tlvs, message(4, "\x00\x02\x00\x03r1"), 8, "3 bytes where 2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var e *bmp.Error
			if err := tt.parse(tt.msg); !errors.As(err, &e) {
				t.Fatalf("error %v, want a *bmp.Error", err)
			}
			if e.Offset != tt.offset || !strings.Contains(e.What, tt.what) || !strings.HasPrefix(e.Section, "RFC ") {
				t.Errorf("error %q, want %q at offset %d and an RFC section", e, tt.what, tt.offset)
			}
		})
	}
}

// FuzzMessages frames a stream and parses each message as every type.
func FuzzMessages(f *testing.F) {
	open := pdu(1, "\x04\xfb\xf4\x00\xb4\xc0\x00\x02\x07\x00")
	f.Add(message(3, peer(0, 0)+strings.Repeat("\x00", 20)+open+open+"\x00\x00\x00\x01x"))
	f.Add(append(message(0, peer(3, 0)+pdu(2, "\x00\x00\x00\x00")+"\x00"), message(2, peer(1, 0x80)+"\x02\x00\x12")...))
	f.Add(message(1, peer(0, 0)+"\x00\x00\x00\x01\x00\x07\x00\x08\x00\x00\x00\x00\x00\x00\x00\x05"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		for {
			n, err := bmp.Next(stream, limit)
			if err != nil || n == 0 {
				if n != 0 {
					t.Errorf("n %d with an error", n)
				}
				return
			}
			msg := stream[:n:n]
			bmp.Type(msg)
			within := func(b []byte, off int) {
				if off < 0 || off+len(b) > len(msg) || string(msg[off:off+len(b)]) != string(b) {
					t.Errorf("%d bytes are not at offset %d of %d", len(b), off, len(msg))
				}
			}
			walk := func(w bmp.TLVs) {
				for w.Next() {
					within(w.TLV().Value, w.TLV().Offset+4)
				}
				within(w.Rest(), min(w.Offset(), len(msg)))
			}
			walk(bmp.ParseInitiation(msg))
			walk(bmp.ParseTermination(msg))
			if p, err := bmp.ParsePerPeer(msg); err == nil {
				p.Address()
				_ = p.RIB().String()
			}
			if m, err := bmp.ParseRouteMonitoring(msg); err == nil {
				within(m.Update, m.Offset)
				walk(m.TLVs)
			}
			if m, err := bmp.ParsePeerUp(msg); err == nil {
				within(m.Sent, m.SentOffset)
				within(m.Received, m.ReceivedOffset)
				walk(m.TLVs)
			}
			if m, err := bmp.ParsePeerDown(msg); err == nil {
				m.Event()
			}
			if m, err := bmp.ParseStats(msg); err == nil {
				walk(m.Counters)
			}
			if _, w, err := bmp.ParseRouteMirroring(msg); err == nil {
				walk(w)
			}
			stream = stream[n:]
		}
	})
}

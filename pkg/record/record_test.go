package record

import (
	"bytes"
	"testing"
)

var sample = Origin{Instance: 0x0102030405060708, Session: 9, Message: 10, Token: 11, Flags: FlagReplayed}

// TestHeaderLayout pins the bytes that consumers depend on.
func TestHeaderLayout(t *testing.T) {
	plain := []byte{
		1, FlagReplayed, 0, 3, 0, 0, 0, 9,
		1, 2, 3, 4, 5, 6, 7, 8,
		0, 0, 0, 0, 0, 0, 0, 10,
		0, 0, 0, 0, 0, 0, 0, 11,
	}
	if got := AppendHeader(nil, &sample, 3); !bytes.Equal(got, plain) {
		t.Errorf("header\n% x, want\n% x", got, plain)
	}
	route := append(bytes.Clone(plain), 0, 0, 0, 0, 0, 0, 0, 0xaa, 0, 0, 0, 0, 0, 0, 0, 0xbb)
	route[1] |= FlagRoute
	if got := AppendRouteHeader(nil, &sample, 3, 0xaa, 0xbb); !bytes.Equal(got, route) {
		t.Errorf("route header\n% x, want\n% x", got, route)
	}
	state := bytes.Clone(route)
	state[1] = FlagReplayed | FlagState
	if FlagState != 8 {
		t.Errorf("FlagState is %d", FlagState)
	}
	if got := AppendStateHeader(nil, &sample, 3, 0xaa, 0xbb); !bytes.Equal(got, state) {
		t.Errorf("state header\n% x, want\n% x", got, state)
	}
	// An origin has no say in which of them a record is.
	o := sample
	o.Flags |= FlagRoute | FlagState
	for _, tt := range []struct{ got, want []byte }{
		{AppendHeader(nil, &o, 3), plain},
		{AppendRouteHeader(nil, &o, 3, 0xaa, 0xbb), route},
		{AppendStateHeader(nil, &o, 3, 0xaa, 0xbb), state},
	} {
		if !bytes.Equal(tt.got, tt.want) {
			t.Errorf("% x, want\n% x", tt.got, tt.want)
		}
	}
}

func TestParseHeader(t *testing.T) {
	plain, err := ParseHeader(append(AppendHeader(nil, &sample, 3), "of a later version"...))
	if want := (Header{Origin: sample, Index: 3}); err != nil || plain != want || plain.Keyed() {
		t.Errorf("parsed %+v, %v, want %+v", plain, err, want)
	}
	for flag, b := range map[uint8][]byte{
		FlagRoute: AppendRouteHeader(nil, &sample, 70000, 1, 2),
		FlagState: AppendStateHeader(nil, &sample, 70000, 1, 2),
	} {
		h, err := ParseHeader(append(bytes.Clone(b), "of a later version"...))
		if err != nil {
			t.Fatal(err)
		}
		want := Header{Origin: sample, Index: 0xffff, KeyHash: 1, ValueHash: 2}
		want.Flags |= flag
		if h != want || !h.Keyed() {
			t.Errorf("parsed %+v, want %+v", h, want)
		}
		for _, bad := range [][]byte{nil, b[:31], b[:47], append([]byte{0}, b[1:]...)} {
			if h, err := ParseHeader(bad); err == nil {
				t.Errorf("% x parsed as %+v", bad, h)
			}
		}
	}
}

func FuzzParseHeader(f *testing.F) {
	f.Add(AppendHeader(nil, &sample, 0))
	f.Add(AppendRouteHeader(nil, &sample, 1, 2, 3))
	f.Add(AppendStateHeader(nil, &sample, 1, 2, 3))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHeader(b)
		if err != nil {
			return
		}
		again := AppendHeader(nil, &h.Origin, int(h.Index))
		switch h.Flags & flagsKeyed {
		case FlagRoute:
			again = AppendRouteHeader(nil, &h.Origin, int(h.Index), h.KeyHash, h.ValueHash)
		case FlagState:
			again = AppendStateHeader(nil, &h.Origin, int(h.Index), h.KeyHash, h.ValueHash)
		case flagsKeyed: // nobody writes this
			again = AppendRouteHeader(nil, &h.Origin, int(h.Index), h.KeyHash, h.ValueHash)
			again[1] |= FlagState
		}
		if got, err := ParseHeader(again); err != nil || got != h {
			t.Errorf("%+v became %+v, %v", h, got, err)
		}
	})
}

// TestBatch: what is put in comes out.
func TestBatch(t *testing.T) {
	var b Batch
	for range 2 {
		b.Reset()
		b.Data = append(b.Data, "keyheadervalue"...)
		b.Recs = append(b.Recs,
			Rec{Topic: 1, KeyLen: 3, HeaderOff: 3, HeaderLen: 6, ValueOff: 9, ValueLen: 5},
			Rec{ValueOff: 9, ValueLen: 5})
		if string(b.Key(0)) != "key" || string(b.Header(0)) != "header" || string(b.Value(0)) != "value" {
			t.Errorf("record 0: %q %q %q", b.Key(0), b.Header(0), b.Value(0))
		}
		if b.Key(1) != nil || b.Header(1) != nil || string(b.Value(1)) != "value" {
			t.Errorf("record 1: %q %q %q", b.Key(1), b.Header(1), b.Value(1))
		}
		if b.Len() != 2 {
			t.Errorf("%d records", b.Len())
		}
	}
}

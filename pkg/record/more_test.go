package record

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type pair struct{ Name, Value []byte }

func pairs(more []byte) (out []pair, err error) {
	err = EachMore(more, func(name, value []byte) { out = append(out, pair{name, value}) })
	return out, err
}

// TestMoreLayout pins the bytes that C reads, and that null is not empty.
func TestMoreLayout(t *testing.T) {
	want := []byte{
		0, 0, 0, 1, 'a', 0, 0, 0, 2, 'x', 'y',
		0, 0, 0, 1, 'a', 0xff, 0xff, 0xff, 0xff,
		0, 0, 0, 0, 0, 0, 0, 0,
	}
	headers := []pair{{[]byte("a"), []byte("xy")}, {[]byte("a"), nil}, {[]byte{}, []byte{}}}
	var more []byte
	for _, h := range headers {
		more = AppendMore(more, h.Name, h.Value)
	}
	if !bytes.Equal(more, want) {
		t.Fatalf("% x, want\n% x", more, want)
	}
	got, err := pairs(more)
	if diff := cmp.Diff(headers, got); err != nil || diff != "" {
		t.Errorf("%v; want - got +\n%s", err, diff)
	}
	for n := range len(more) {
		if got, err := pairs(more[:n]); (err == nil) != (n == 0 || n == 11 || n == 20) {
			t.Errorf("the first %d bytes: %q, %v", n, got, err)
		}
	}
	for _, bad := range [][]byte{
		{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}, // a name is never null
		{0xff, 0xff, 0xff, 0xfe, 0, 0, 0, 0},
		{0, 0, 0, 0, 0xff, 0xff, 0xff, 0xfe},
	} {
		if got, err := pairs(bad); err == nil {
			t.Errorf("% x: %q", bad, got)
		}
	}
}

func FuzzEachMore(f *testing.F) {
	f.Add([]byte{})
	f.Add(AppendMore(AppendMore(nil, []byte("a"), nil), []byte("trace"), []byte("0123")))
	f.Add([]byte{0, 0, 0, 1, 'a', 0xff, 0xff, 0xff, 0xfe})
	f.Fuzz(func(t *testing.T, more []byte) {
		got, err := pairs(more)
		var again []byte
		for _, h := range got {
			again = AppendMore(again, h.Name, h.Value)
		}
		if err == nil && !bytes.Equal(again, more) || !bytes.HasPrefix(more, again) {
			t.Errorf("% x read as %q, %v", more, got, err)
		}
	})
}

// TestRouteOf: CRC-32 has a published check value.
func TestRouteOf(t *testing.T) {
	if got := RouteOf("123456789"); got != 0xcbf43926 {
		t.Errorf("%#x", got)
	}
}

// TestEmptyAndNull: a key and a value of no bytes are null or empty as asked, by
// default a null key and an empty value.
func TestEmptyAndNull(t *testing.T) {
	b := Batch{Recs: []Rec{{}, {Flags: RecEmptyKey}, {Flags: RecNullValue}}}
	for i, want := range []struct{ keyNull, valueNull bool }{{true, false}, {false, false}, {true, true}} {
		if k, v := b.Key(i), b.Value(i); (k == nil) != want.keyNull || (v == nil) != want.valueNull || len(k)+len(v) > 0 {
			t.Errorf("record %d: key %#v, value %#v", i, k, v)
		}
	}
}

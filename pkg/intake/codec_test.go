package intake

import (
	"bytes"
	"testing"

	"github.com/bmpha/bmpha/pkg/record"
)

var entries = []Record{
	{KeyNull: true, ValueNull: true, Timestamp: -1},
	{Topic: []byte("pmacct.bmp"), Partition: 7, Key: []byte("k"), Value: []byte("value"), Timestamp: 1_700_000_000_123},
	{Topic: []byte("t"), Headers: record.AppendMore(nil, []byte("h"), nil), Value: bytes.Repeat([]byte("v"), 100_000)},
}

func TestEntry(t *testing.T) {
	for i := range entries {
		b := AppendEntry([]byte("before"), &entries[i])[6:]
		r, err := ParseEntry(b)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := describe([]Record{r}), describe(entries[i:i+1]); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	good := AppendEntry(nil, &entries[2])[:60]
	for name, edit := range map[string]func(b []byte) []byte{
		"short":         func(b []byte) []byte { return b[:entryHead-1] },
		"version":       func(b []byte) []byte { b[0]++; return b },
		"flags":         func(b []byte) []byte { b[1] = 4; return b },
		"topic":         func(b []byte) []byte { b[2] = 1; return b },
		"key":           func(b []byte) []byte { b[16] = 0xff; return b },
		"headers":       func(b []byte) []byte { b[20] = 0xff; return b },
		"header":        func(b []byte) []byte { b[23]--; return b },
		"null value":    func(b []byte) []byte { b[1] = entryValueNull; return b },
		"null key":      func(b []byte) []byte { b[1], b[19] = entryKeyNull, 1; b[23]--; return b },
		"sum of sizes ": func(b []byte) []byte { copy(b[16:], "\xff\xff\xff\xff\xff\xff\xff\xff"); return b },
	} {
		if r, err := ParseEntry(edit(bytes.Clone(good))); err == nil {
			t.Errorf("%s: accepted: %+v", name, r)
		}
	}
}

func FuzzParseEntry(f *testing.F) {
	for i := range entries[:2] {
		f.Add(AppendEntry(nil, &entries[i]))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseEntry(b)
		if err != nil {
			return
		}
		if again := AppendEntry(nil, &r); !bytes.Equal(again, b) {
			t.Errorf("% x became % x", b, again)
		}
	})
}

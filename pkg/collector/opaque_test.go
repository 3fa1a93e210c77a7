package collector

import (
	"testing"

	"github.com/bmpha/bmpha/pkg/intake"
	"github.com/bmpha/bmpha/pkg/record"
)

// TestOpaqueHeader: a record of pmacct's passes as it came, with the hashes of what it
// says where it is JSON that is known, and without any else.
func TestOpaqueHeader(t *testing.T) {
	const opened = `{"seq": 0, "timestamp": "1", "bmp_router": "192.0.2.1", "bmp_router_port": 1, "event_type": "log_init"}`
	c := new(Collector)
	c.topics.handles = map[string]uint32{"t": 4}
	codec := opaque{c: c}
	o := &record.Origin{Instance: 1, Session: 2, Message: 3, Token: 4, Flags: record.FlagReplayed}
	for name, tt := range map[string]struct {
		rec    intake.Record
		header bool
		keyed  bool
	}{
		"JSON":             {intake.Record{Value: []byte(opened)}, true, true},
		"other JSON":       {intake.Record{Value: []byte(`{"a": 1}`)}, true, false},
		"Avro":             {intake.Record{Value: []byte("\x00\x02ab")}, true, false},
		"nothing":          {intake.Record{ValueNull: true}, true, false},
		"without a header": {intake.Record{Value: []byte(opened)}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			c.o.Header = tt.header
			tt.rec.Topic = []byte("t")
			var b record.Batch
			body := intake.AppendEntry(nil, &tt.rec)
			if err := codec.Message(&b, o, 1, body); err != nil || b.Len() != 1 {
				t.Fatalf("%d records, %v", b.Len(), err)
			}
			if string(b.Value(0)) != string(tt.rec.Value) || (b.Value(0) == nil) != tt.rec.ValueNull {
				t.Errorf("value %q", b.Value(0))
			}
			if !tt.header {
				if b.Header(0) != nil {
					t.Errorf("header % x", b.Header(0))
				}
				return
			}
			h, err := record.ParseHeader(b.Header(0))
			if err != nil {
				t.Fatal(err)
			}
			want := record.Header{Origin: *o}
			if tt.keyed {
				want.Flags |= record.FlagState
				want.KeyHash, want.ValueHash, _ = intake.Hashes(tt.rec.Value)
			}
			if h != want {
				t.Errorf("header %+v, want %+v", h, want)
			}
			if n := testing.AllocsPerRun(10, func() { b.Reset(); _ = codec.Message(&b, o, 1, body) }); n > 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
}

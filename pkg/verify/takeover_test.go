package verify

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bmpha/bmpha/pkg/record"
)

// spoken is a ledger of what senders said about one router: words as in "1:a5", token 1
// says that key a has the value 5, "1:a5*" flagged as replayed, "1:a5!" as shared, "1:up"
// a Peer Up.
func spoken(t *testing.T, words ...string) *Ledger {
	t.Helper()
	l := New(Options{})
	for i, w := range words {
		var token uint64
		var what string
		if _, err := fmt.Sscanf(w, "%d:%s", &token, &what); err != nil {
			t.Fatalf("%s: %v", w, err)
		}
		o := record.Origin{Instance: token, Session: 1, Message: uint64(i), Token: token}
		if s, ok := strings.CutSuffix(what, "*"); ok {
			what, o.Flags = s, record.FlagReplayed
		}
		if s, ok := strings.CutSuffix(what, "!"); ok {
			what, o.Flags = s, record.FlagShared
		}
		value := strings.Replace(update1, "{", fmt.Sprintf(`{"writer_id": "bmpha/%d", `, token), 1)
		r := Record{Offset: int64(i), Time: start.Add(time.Duration(i) * time.Second)}
		if what == "up" {
			r.Value, r.Header = []byte(peerUp), record.AppendStateHeader(nil, &o, 0, 7, 1)
		} else {
			value = strings.Replace(value, "198.18.0.0", fmt.Sprintf("198.18.%d.0", what[0]), 1)
			r.Value, r.Header = []byte(value), record.AppendRouteHeader(nil, &o, 0, uint64(what[0]), uint64(what[1]))
		}
		l.Record(r)
	}
	return l
}

// TestTakeovers: what is told again behind a takeover, and what is only alike.
func TestTakeovers(t *testing.T) {
	for _, tt := range []struct {
		name, words string
		want        AtTakeovers
	}{
		{"nobody took over", "1:a1 1:a2 1:a1", AtTakeovers{}},
		{"exact", "1:a1 1:b1 2:a2 2:b2", AtTakeovers{Takeovers: 1}},
		{"its last word again", "1:a1 1:a2 2:a2", AtTakeovers{1, Behind{Repeated: 1}}},
		{"flagged", "1:a1 1:b1 2:b1* 2:a1*", AtTakeovers{1, Behind{Repeated: 2, RepeatedFlagged: 2}}},
		{"while two can send", "1:a1 2:a1!", AtTakeovers{1, Behind{Repeated: 1, RepeatedFlagged: 1}}},
		{"from an older word on", "1:a1 1:a2 1:a3 2:a1 2:a2* 2:a3", AtTakeovers{1, Behind{Repeated: 3, RepeatedFlagged: 1, Back: 2, BackFlagged: 1}}},
		{"the newest that is alike", "1:a1 1:a2 1:a1 2:a1", AtTakeovers{1, Behind{Repeated: 1}}},
		{"once only", "1:a1 2:a1 2:a2 2:a1", AtTakeovers{1, Behind{Repeated: 1}}},
		{"the router says it again", "1:a1 2:a1 2:a1", AtTakeovers{1, Behind{Repeated: 1}}},
		{"news, then an old word", "1:a1 1:a2 2:a3 2:a1", AtTakeovers{Takeovers: 1}},
		{"back, and then news", "1:a1 1:a2 1:a3 2:a1 2:a4 2:a3", AtTakeovers{1, Behind{Repeated: 1, Back: 1}}},
		{"nobody had said it", "1:a1 2:a2* 2:b1*", AtTakeovers{1, Behind{Unmatched: 2}}},
		{"late", "1:a1 2:a2 1:a3 1:b1!", AtTakeovers{1, Behind{Late: 2, LateFlagged: 1}}},
		{"what came late is not of those before", "1:a1 2:b1 1:a3 2:a3", AtTakeovers{1, Behind{Late: 1}}},
		{"three senders", "1:a1 1:a2 2:a2 2:a3 5:a2 5:a3", AtTakeovers{2, Behind{Repeated: 3, Back: 1}}},
		{"a new life", "1:a1 2:up 2:a1", AtTakeovers{Takeovers: 1}},
		{"an old life again", "1:up 1:a1 2:up 2:a1", AtTakeovers{1, Behind{Repeated: 2}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := spoken(t, strings.Fields(tt.words)...)
			rep := l.Report().Routers[0]
			if d := cmp.Diff(tt.want, rep.AtTakeovers); d != "" {
				t.Errorf("%s: %s", tt.words, d)
			}
			var sum Behind
			for i := range rep.Takeovers {
				sum.add(&rep.Takeovers[i].Behind)
			}
			if sum != rep.AtTakeovers.Behind || int64(len(rep.Takeovers)) != rep.AtTakeovers.Takeovers {
				t.Errorf("%+v listed", rep.Takeovers)
			}
		})
	}
}

// TestTakeoverSenders: each takeover tells who, from whom, where and when.
func TestTakeoverSenders(t *testing.T) {
	rep := spoken(t, "1:a1", "1:a2", "2:a2", "1:a3").Report().Routers[0]
	want := []Takeover{{
		Offset: 2, Time: start.Add(2 * time.Second), Gap: 1,
		From: Sender{"0000000000000001", 1, "bmpha/1"}, By: Sender{"0000000000000002", 2, "bmpha/2"},
		Behind: Behind{Repeated: 1, Late: 1},
	}}
	if d := cmp.Diff(want, rep.Takeovers); d != "" {
		t.Error(d)
	}
	if rep.Faults != 1 || rep.FaultsFirst[0].Sender == nil || *rep.FaultsFirst[0].Sender != want[0].From {
		t.Errorf("%+v", rep.FaultsFirst)
	}
}

// TestTail: it is bounded, and what is gone is not found.
func TestTail(t *testing.T) {
	var l tail
	for i := range uint64(5000) {
		l.add(i%7, i, 0, 100)
	}
	if n := len(l.recs); n > 201 || len(l.last) != 7 || l.end() != 5000 {
		t.Errorf("%d records, %d keys, end %d", n, len(l.last), l.end())
	}
	for i := int64(4900); i < 5000; i++ {
		if r := l.at(i); r == nil || r.value != uint64(i) {
			t.Fatalf("record %d is %+v", i, r)
		}
	}
	if l.at(4899) != nil || l.at(5000) != nil || l.at(-1) != nil {
		t.Error("records that are not there")
	}
	l.add(99, 1, 0, 10)
	if len(l.last) != 8 || l.at(4991) == nil || l.at(4990) != nil {
		t.Errorf("%d keys", len(l.last))
	}
}

package table_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/pmacct"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/table"
)

// TestReplay: after the stream of a router, which knows its own table, the
// table is the router's. It is compared by the records that package pmacct makes
// of messages made of the routes.
func TestReplay(t *testing.T) {
	churn := replay.DefaultChurn
	churn.PeerFlap = 0.01
	for _, s := range []replay.Synthetic{
		{Seed: 1, Peers: 3, Prefixes: 500, IPv6: 0.2, Routes: 10, Attributes: 50},
		{Seed: 2, Peers: 4, Prefixes: 300, IPv6: 0.5, Routes: 3, Attributes: 100, PostPolicy: true, Churn: churn},
		{Seed: 3, Peers: 2, Prefixes: 2000, Routes: 1, Attributes: 10, Churn: churn},
	} {
		stream, err := s.Stream()
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := net.Pipe()
		defer ours.Close()
		first := true
		router, err := replay.NewRouter(replay.Config{
			Stream: replay.Limit(stream, 20_000), To: []string{"the test"}, Source: netip.MustParseAddr("127.0.0.9"),
			Dial: func(ctx context.Context, _ string) (net.Conn, error) {
				if !first {
					<-ctx.Done()
					return nil, ctx.Err()
				}
				first = false
				return theirs, nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		tab := table.NewTable(table.NewStore(), table.Options{})
		read := make(chan error, 1)
		go func() {
			b, err := io.ReadAll(ours)
			for err == nil && len(b) > 0 {
				n, _ := bmp.Next(b, 1<<20)
				if n == 0 {
					break
				}
				err = tab.Apply(b[:n], 1, nil)
				b = b[n:]
			}
			read <- err
		}()
		router.Start()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := router.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		want := router.Table()
		if err := router.Stop(ctx, replay.Terminate); err != nil {
			t.Fatal(err)
		}
		if err := <-read; err != nil {
			t.Fatal(err)
		}

		enc, err := pmacct.NewEncoder(pmacct.Options{})
		if err != nil {
			t.Fatal(err)
		}
		session := enc.Session(pmacct.Identity{Addr: netip.MustParseAddr("127.0.0.9")})
		var consumer replay.Consumer
		var batch record.Batch
		take := func(msg []byte) {
			batch.Reset()
			if err := session.Message(&batch, nil, 1, msg); err != nil {
				t.Error(err)
			}
			for i := range batch.Recs {
				if err := consumer.Record(batch.Value(i)); err != nil {
					t.Error(err)
				}
			}
		}
		for _, p := range tab.Peers() {
			for _, m := range p.PeerUps {
				take(m)
			}
		}
		var w table.Walk
		for tab.Walk(&w, 100, func(r *table.Route) { take(r.AppendMessage(nil)) }) {
		}
		if d := replay.Compare(want, consumer.Routes()); !d.Empty() || d.Equal == 0 {
			t.Errorf("seed %d: %v", s.Seed, d)
		}
	}
}

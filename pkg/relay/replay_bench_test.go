package relay

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/table"
)

// fullTable returns the messages that make a table of n routes of one peer, one
// route each, with as many sets of attributes as a full table has, and more of the
// same kind.
func fullTable(n, more int) (ups []byte, dump, news [][]byte) {
	rng := rand.New(rand.NewPCG(1, 2))
	local, remote := netip.MustParseAddr("10.0.0.254"), netip.MustParseAddr("10.0.0.1")
	header := func() []byte {
		return bmp.AppendPeerHeader(nil, bmp.PeerGlobal, 0, 0, remote, 65001, remote, time.Unix(1e9, 0))
	}
	ups = bmp.AppendInitiation(nil, "a router", "r")
	up := bmp.AppendPeerUp(nil, header(), local, 179, 1000,
		bgp.AppendOpen(nil, 65000, 90, local, bgp.AppendCapAS4(nil, 65000)),
		bgp.AppendOpen(nil, 65001, 90, remote, bgp.AppendCapAS4(nil, 65001)), nil)
	announce := func(i int) []byte {
		set := rng.Uint32N(200_000)
		attrs := bgp.AppendASPath(bgp.AppendOrigin(nil, 0), 65001, 64000+set%1000, 1+set, 3356, 174)
		attrs = bgp.AppendNextHop(attrs, remote)
		attrs = bgp.AppendCommunities(attrs, 65001<<16|1, set, 3356<<16|set&0xffff)
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(20 + i>>16), byte(i >> 8), byte(i), 0}), 24)
		return bmp.AppendRouteMonitoring(nil, header(), bgp.AppendUpdate(nil, nil, attrs, bgp.AppendPrefix(nil, p)))
	}
	dump = append(dump, slices.Clone(ups), up)
	for i := range n {
		dump = append(dump, announce(i))
	}
	dump = append(dump, bmp.AppendRouteMonitoring(nil, header(), bgp.AppendEndOfRIB(nil, 1, 1)))
	for range more {
		news = append(news, announce(rng.IntN(n)))
	}
	return ups, dump, news
}

// BenchmarkReplay replays a million routes to a target that takes everything,
// while the router says 10,000 updates a second.
func BenchmarkReplay(b *testing.B) {
	const routes = 1_000_000
	_, dump, news := fullTable(routes, 100_000)
	tab := table.NewTable(table.NewStore(), table.Options{})
	for _, m := range dump {
		if err := tab.Apply(m, 1, nil); err != nil {
			b.Fatal(err)
		}
	}
	dump = nil
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(io.Discard, struct{ io.Reader }{c})
			}()
		}
	}()
	b.ReportAllocs()
	b.StopTimer()
	b.ResetTimer()
	var longest time.Duration
	var all []time.Duration
	var bytes uint64
	for range b.N {
		var up atomic.Bool
		r := New(Options{
			Targets: []string{ln.Addr().String()}, Proxy: "none", Buffer: 64 << 20, Parallel: 1, Resync: true, Replay: true, Log: slog.New(slog.DiscardHandler),
			Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
				if !up.Load() {
					return nil, errors.New("refused")
				}
				return new(net.Dialer).DialContext(ctx, network, address)
			},
		})
		s := r.Open(1, router4, local4, nil)
		s.Table(tab)
		for r.Status()[0].Waiting == 0 {
			time.Sleep(time.Millisecond)
		}
		up.Store(true)
		for r.Status()[0].Replays == 0 {
			time.Sleep(time.Millisecond)
		}
		b.StartTimer()
		begin := time.Now()
		for i := 0; i == 0 || r.Status()[0].Replaying > 0; {
			for n := 0; n < 100 && i < int(time.Since(begin)/(100*time.Microsecond)); n, i = n+1, i+1 {
				at := time.Now()
				if err := s.Apply(news[i%len(news)], 1, nil); err != nil {
					b.Fatal(err)
				}
				took := time.Since(at)
				longest = max(longest, took)
				all = append(all, took)
			}
			time.Sleep(100 * time.Microsecond)
			if time.Since(begin) > time.Minute {
				b.Fatalf("status %+v", r.Status()[0])
			}
			if i == 0 {
				i = 1
			}
		}
		b.StopTimer()
		s.Join(nil)
		st := r.Status()[0]
		if st.Cuts+st.Lost != 1 { // the first try to connect
			b.Fatalf("status %+v", st)
		}
		bytes = st.Bytes
		s.Close()
		_ = r.Close(context.Background())
	}
	slices.Sort(all)
	b.ReportMetric(float64(longest.Microseconds())/1000, "longest-ms")
	b.ReportMetric(float64(all[len(all)*999/1000].Microseconds())/1000, "p99.9-ms")
	b.ReportMetric(float64(bytes)/1e6, "MB")
}

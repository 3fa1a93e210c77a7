package pmacct

import (
	"net/netip"
	"testing"

	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/record"
)

// benchStreams returns the captured sessions, or streams made by hand where
// there are none.
func benchStreams(b *testing.B) [][]byte {
	dir, ok := fixturesDir()
	if !ok {
		return [][]byte{everything()}
	}
	var streams [][]byte
	for _, name := range captures {
		streams = append(streams, readCapture(b, dir, name))
	}
	return streams
}

// benchmarkEncode encodes the messages of the captures that keep accepts, over
// and over; one operation is one record.
func benchmarkEncode(b *testing.B, header bool, keep func(msg []byte) bool) {
	enc, err := NewEncoder(Options{Timestamps: UTC, Header: header, WriterID: "bmpha/1"})
	if err != nil {
		b.Fatal(err)
	}
	type item struct {
		s   *Session
		msg []byte
	}
	var items []item
	var batch record.Batch
	o := &record.Origin{Instance: 1, Session: 1}
	for i, stream := range benchStreams(b) {
		s := enc.Session(Identity{
			Router: "router", Addr: netip.AddrFrom4([4]byte{127, 0, 1, byte(i)}), Port: 1790, Key: []byte("127.0.1.1"),
		})
		eachMessage(b, stream, func(msg []byte) {
			// What cannot be decoded, and events, are not the steady state.
			batch.Reset()
			if err := s.Message(&batch, o, 1, msg); err == nil && batch.Len() > 0 && keep(msg) {
				items = append(items, item{s, msg})
			}
		})
		s.closed = false
	}
	b.ReportAllocs()
	b.ResetTimer()
	bytes, messages := 0, 0
	for n := 0; n < b.N; {
		for i := range items {
			batch.Reset()
			_ = items[i].s.Message(&batch, o, int64(n), items[i].msg)
			n += batch.Len()
			bytes += len(batch.Data)
			messages++
			if n >= b.N {
				break
			}
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(messages), "ns/msg")
	b.ReportMetric(float64(bytes)/float64(b.N), "bytes/record")
}

func isRouteMonitoring(msg []byte) bool { return bmp.Type(msg) == bmp.TypeRouteMonitoring }
func isStats(msg []byte) bool           { return bmp.Type(msg) == bmp.TypeStatisticsReport }

// BenchmarkEncode measures the encoding of routes: one operation is a record.
func BenchmarkEncode(b *testing.B) { benchmarkEncode(b, false, isRouteMonitoring) }

// BenchmarkEncodeHeader is BenchmarkEncode with bmpha's header and its hashes.
func BenchmarkEncodeHeader(b *testing.B) { benchmarkEncode(b, true, isRouteMonitoring) }

// BenchmarkEncodeStats measures the encoding of counters.
func BenchmarkEncodeStats(b *testing.B) { benchmarkEncode(b, false, isStats) }

// BenchmarkEncodeStatsHeader is BenchmarkEncodeStats with bmpha's header and its
// hashes.
func BenchmarkEncodeStatsHeader(b *testing.B) { benchmarkEncode(b, true, isStats) }

// BenchmarkObserve measures what a message costs that is not encoded.
func BenchmarkObserve(b *testing.B) {
	enc, err := NewEncoder(Options{})
	if err != nil {
		b.Fatal(err)
	}
	s := enc.Session(Identity{})
	var msgs [][]byte
	for _, stream := range benchStreams(b) {
		eachMessage(b, stream, func(msg []byte) {
			if isRouteMonitoring(msg) {
				msgs = append(msgs, msg)
			}
		})
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s.Observe(msgs[i%len(msgs)])
	}
}

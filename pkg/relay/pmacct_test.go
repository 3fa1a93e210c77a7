package relay

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/bmpha/bmpha/pkg/rig"
)

// events returns how often pmbmpd has written each event of each router.
func events(t *testing.T, file string) map[string]int {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	n := make(map[string]int)
	for line := range bytes.Lines(b) {
		var e struct {
			Event  string `json:"event_type"`
			Router string `json:"bmp_router"`
		}
		if json.Unmarshal(line, &e) == nil { // the last line may be half
			n[e.Event+" "+e.Router]++
		}
	}
	return n
}

// The real pmbmpd takes the sessions for the routers'. When it is killed and comes
// back it gets them again, with no trace of how the relay found out, and has room
// for as many routers as before. All are IPv4: of an IPv6 router, 1.7.7 reads the
// header, v1 or v2, and shows the address of the connection nevertheless.
func TestPmbmpd(t *testing.T) {
	rig.Require(t, rig.PmbmpdPart)
	file := filepath.Join(t.TempDir(), "msglog")
	d, err := rig.StartPmbmpd(t.Context(), rig.PmbmpdOptions{Config: []string{
		"bmp_daemon_parse_proxy_header: true", "bmp_daemon_msglog_file: " + file, "bmp_daemon_msglog_output: json"}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	stream, err := os.ReadFile(filepath.Join("..", "capture", "frr.bmp"))
	if err != nil {
		t.Fatal(err)
	}
	r := start(t, Options{Targets: []string{d.Addr()}, Proxy: "v1", Resync: true, Parallel: 2})
	routers := []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}
	reset := make(chan int, 10)
	streams := make([]*Stream, len(routers))
	open := func(i int) {
		addr := netip.AddrPortFrom(netip.MustParseAddr(routers[i]), 40000)
		streams[i] = r.Open(uint64(i), addr, local4, func() { reset <- i })
		if !streams[i].Write(stream) {
			t.Error("Write: false")
		}
	}
	whole := func(what string, opened int) {
		t.Helper()
		until(t, what, func() bool {
			n := events(t, file)
			for _, a := range routers {
				// 2,414 messages are in the capture; some make no record.
				if n["log_init "+a] != opened || n["log "+a] < 2300*opened {
					return false
				}
			}
			return true
		})
	}
	for i := range routers {
		open(i)
	}
	whole("sessions of three routers", 1)
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	until(t, "down", func() bool { return r.Status()[0].State == Down && r.Status()[0].Waiting == 3 })
	if err := d.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range routers {
		i := <-reset
		streams[i].Close()
		open(i)
	}
	whole("the sessions again", 2)
	for _, s := range streams {
		s.Close()
	}
	until(t, "the end of all", func() bool { return events(t, file)["log_close "+routers[2]] == 1 })
	for what := range events(t, file) {
		if bytes.Contains([]byte(what), []byte("127.0.0.1")) {
			t.Errorf("pmbmpd has seen us: %s", what)
		}
	}
}

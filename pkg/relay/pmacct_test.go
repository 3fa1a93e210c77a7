package relay

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/rig"
	"github.com/bmpha/bmpha/pkg/table"
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

// routesOf folds what pmbmpd has written of the last session of a router into the
// routes that are left.
func routesOf(t *testing.T, file string) map[string]string {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	routes := make(map[string]string)
	for line := range bytes.Lines(b) {
		var e map[string]any
		if json.Unmarshal(line, &e) != nil {
			continue
		}
		peer := fmt.Sprint(e["peer_ip"], e["rd"])
		key := fmt.Sprint(peer, e["is_post"], e["is_out"], e["is_loc"], e["afi"], e["safi"], e["ip_prefix"], e["as_path_id"])
		switch {
		case e["event_type"] == "log_init":
			clear(routes)
		case e["bmp_msg_type"] == "peer_down":
			maps.DeleteFunc(routes, func(k, _ string) bool { return len(k) > len(peer) && k[:len(peer)] == peer })
		case e["bmp_msg_type"] != "route_monitor" || e["ip_prefix"] == nil:
		case e["log_type"] == "withdraw":
			delete(routes, key)
		default:
			routes[key] = fmt.Sprint(e["as_path"], e["comms"], e["origin"], e["bgp_nexthop"], e["local_pref"], e["med"], e["label"], e["timestamp"])
		}
	}
	return routes
}

// A pmbmpd that is killed and comes back while the router goes on has in the end
// what one has that was never killed.
func TestPmbmpdReplay(t *testing.T) {
	rig.Require(t, rig.PmbmpdPart)
	var files []string
	var daemons []*rig.Pmbmpd
	var addresses []string
	for _, name := range []string{"stays", "dies"} {
		file := filepath.Join(t.TempDir(), name)
		d, err := rig.StartPmbmpd(t.Context(), rig.PmbmpdOptions{Config: []string{
			"bmp_daemon_parse_proxy_header: true", "bmp_daemon_msglog_file: " + file, "bmp_daemon_msglog_output: json"}})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		files, daemons, addresses = append(files, file), append(daemons, d), append(addresses, d.Addr())
	}
	stream, err := os.ReadFile(filepath.Join("..", "capture", "frr.bmp"))
	if err != nil {
		t.Fatal(err)
	}
	r := start(t, Options{Targets: addresses, Proxy: "v1", Resync: true, Replay: true})
	r.step = 10
	tab := table.NewTable(table.NewStore(), table.Options{})
	s := r.Open(1, netip.MustParseAddrPort("192.0.2.1:40000"), local4, func() { t.Error("reset") })
	s.Table(tab)
	defer s.Close()
	say := func(until int) {
		for len(stream) > until {
			n, err := bmp.Next(stream, 1<<20)
			if err != nil || n == 0 {
				t.Fatal(n, err)
			}
			s.Join(nil)
			s.Write(stream[:n])
			if err := s.Apply(stream[:n], 1, nil); err != nil {
				t.Fatal(err)
			}
			stream = stream[n:]
		}
	}
	half, all := len(stream)/2, len(stream)
	say(half)
	until(t, "both", func() bool { return r.Status()[1].Sessions == 1 && len(routesOf(t, files[1])) > 0 })
	if err := daemons[1].Kill(); err != nil {
		t.Fatal(err)
	}
	until(t, "down", func() bool { return r.Status()[1].State == Down })
	if err := daemons[1].Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The rest comes while it is found to be back, and replayed.
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for len(stream) > all/20 {
		say(max(len(stream)-all/1000, 0))
		<-tick.C
	}
	until(t, "the replay", func() bool { st := r.Status()[1]; return st.Replays == 1 && st.Replaying == 0 })
	say(0)
	until(t, "equal", func() bool {
		one, two := routesOf(t, files[0]), routesOf(t, files[1])
		return len(one) == tab.Routes() && maps.Equal(one, two)
	})
	t.Logf("%d routes in each, %+v", tab.Routes(), r.Status()[1])
}

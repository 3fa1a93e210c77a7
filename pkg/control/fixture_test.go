package control

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares got with testdata/name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (run the test with -update to write it)", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// at is the moment of all documents in tests.
var at = time.Date(2026, 11, 21, 3, 4, 5, 0, time.UTC)

func ago(d time.Duration) time.Time { return at.Add(-d) }

func micro(t time.Time) uint64 { return uint64(t.UnixMicro()) }

// active is a healthy active collector with a healthy standby and two routers.
func active() *Status {
	return &Status{
		Version: StatusVersion, At: at,
		Program: Program{Version: "0.1.0", Revision: "0123abcd", Go: "go1.26.0"},
		Process: "bmp-a", Instance: "00000000000000a1", Host: "mon1", PID: 4242, Started: ago(76 * time.Hour), Uptime: Seconds((76 * time.Hour).Seconds()),
		Cluster: Cluster{Name: "core", ID: 2},
		Role:    RoleActive, Reason: "oldest of 2 members", Since: ago(3*time.Hour + 12*time.Minute), Token: 1_763_694_245_000_007,
		RoleChanges: map[string]uint64{"active": 2, "standby": 1},
		Members: []Member{
			{
				Name: "bmp-b", Instance: "00000000000000b2", Kind: KindBMPHA, Role: RoleStandby, Reason: "bmp-a is older",
				Timestamp: micro(ago(time.Hour)), HeartbeatAge: 0.71, Since: ago(time.Hour), Token: 1_763_694_245_000_007, RoutersHeard: 2, Version: "0.1.0", Host: "mon2", PID: 99,
			},
			{
				Name: "bmp-a", Instance: "00000000000000a1", Kind: KindBMPHA, Self: true, Role: RoleActive, Reason: "oldest of 2 members",
				Timestamp: micro(ago(76 * time.Hour)), HeartbeatAge: 0.32, Since: ago(3*time.Hour + 12*time.Minute), Token: 1_763_694_245_000_007, RoutersHeard: 2, RoutersSent: 2, Version: "0.1.0", Host: "mon1", PID: 4242,
			},
		},
		Routers: []Router{
			{
				Identity: "192.0.2.1", Address: "192.0.2.1", SysName: "pe1.zrh", SysDescr: "Router OS 7.1", Source: SourceBMP, Heard: true,
				Session: &Session{ID: 1, Port: 34567, Since: ago(70 * time.Hour)}, Sessions: 3, Messages: 12_345_678, Bytes: 1_234_567_890,
				LastHeard: ago(200 * time.Millisecond), PeersUp: 48, HeardBy: []string{"bmp-a", "bmp-b"}, Sender: "bmp-a", Why: WhyLeads, Sending: true,
				Readings: readings(0.004, 0), LowWaterLag: 0.03, Skipped: 1_187, Doubtful: 17,
				Behind: Backlog{Messages: 812, Bytes: 98_000, OldestAge: 0.021}, Held: Backlog{Messages: 830, Bytes: 99_000, OldestAge: 0.024},
				LowWater: int64(micro(ago(30 * time.Millisecond))), Acknowledged: 12_344_866, Replayed: 17, Records: 40_000_000, DecodeErrors: 3,
				Freed: map[string]uint64{"mark": 5}, Dropped: map[string]uint64{"full": 0},
			},
			{
				Identity: "2001:db8::2", Address: "2001:db8::2", SysName: "pe2.bsl", Source: SourceBMP, Heard: true,
				Session: &Session{ID: 2, Port: 45678, Since: ago(70 * time.Hour)}, Sessions: 1, Messages: 4_321, Bytes: 567_890,
				LastHeard: ago(4 * time.Minute), PeersUp: 2, HeardBy: []string{"bmp-a", "bmp-b"}, Sender: "bmp-a", Why: WhyLeads, Sending: true,
				Readings: readings(0, 0), LowWaterLag: 0.02,
				LowWater: int64(micro(ago(20 * time.Millisecond))), Acknowledged: 4_321, Records: 9_000,
			},
		},
		Hold: Hold{
			Backlog: Backlog{Messages: 830, Bytes: 12 << 20, OldestAge: 0.024}, Limit: 1 << 30,
			LowWater: int64(micro(ago(30 * time.Millisecond))), LowWaterLag: 0.03, Dropped: map[string]uint64{"full": 0},
		},
		Sink: Sink{
			Kind: "kafka", Target: "kafka1:9092,kafka2:9092 topic bmp", Connected: true, InFlight: 812, Window: 5_000,
			Handed: 40_009_812, Acknowledged: 40_009_000, Bytes: 25_000_000_000,
		},
		Redis: Redis{
			Address: "redis:6379", State: RedisOK, LastOKAge: 0.32, RoundTrip: 0.0004, Heartbeat: 1, Expiry: 2,
			Rounds: 273_600, Failures: 0,
		},
		Sessions: Sessions{Now: 2, Max: 1000, Accepted: 4, Refused: map[string]uint64{"limit": 0, "not_allowed": 0}, Closed: map[string]uint64{"router": 2}},
		LastTakeover: &Takeover{
			At: ago(3*time.Hour + 12*time.Minute), From: "bmp-b", To: "bmp-a", Reason: "bmp-b no longer answers", Duration: 1.31, Replayed: 1_204, Token: 1_763_694_245_000_007,
		},
		Messages:     map[string]uint64{"route_monitoring": 12_349_000, "peer_up": 50, "statistics_report": 900},
		MessageBytes: 1_235_135_780,
		LeftOut:      map[string]uint64{"malformed": 3},
	}
}

// readings are those of bmp-a, which sends, and bmp-b.
func readings(a, b Seconds) []Reading {
	return []Reading{{Member: "bmp-a", Behind: a, Whole: true, Sends: true}, {Member: "bmp-b", Behind: b, Whole: true}}
}

// linked has direct connections, reads the topic back, and took over twice.
func linked(s *Status) *Status {
	for i := range s.Members {
		s.Members[i].Link = s.Members[i].Host + ":1791"
	}
	peer := "bmp-b"
	if s.Process == peer {
		peer = "bmp-a"
	}
	s.Link = &Link{Peers: []LinkPeer{{
		Name: peer, Instance: "00000000000000b2", Address: "mon2:1791", Connected: true, Since: ago(time.Hour), HeardAge: 0.1, RoundTrip: 0.0004,
	}}}
	s.ReadBack = &ReadBack{Topics: 1, Partitions: 12, Known: 12, History: 120}
	s.Sink.Fencing, s.Sink.FencedOthers = true, 1
	s.TakeoversTotal = map[string]uint64{HowHandedOver: 1, HowDead: 1, HowOverdue: 1}
	s.Takeovers = []TakenOver{
		{
			At: ago(3*time.Hour + 12*time.Minute), From: peer, How: HowDead, Token: 1_763_694_245_000_007, Routers: 40,
			Gap: 0.31, Took: 0.042, ReadBack: 9_120, Skipped: 1_187, Doubtful: 17,
		},
		// On the screen, those of the last day.
		{At: ago(5 * time.Hour), From: peer, How: HowHandedOver, Planned: true, Token: 1_763_694_245_000_005, Routers: 40, Gap: 0.009, Took: 0.003, ReadBack: 2_400, Skipped: 310},
		{At: ago(50 * time.Hour), From: peer, How: HowOverdue, Token: 1_763_694_245_000_003, Routers: 39, Gap: 4.1, Took: 0.02, ReadBack: 8_000},
	}
	return s
}

// standby is the other one.
func standby() *Status {
	s := active()
	s.Process, s.Instance, s.Host, s.PID = "bmp-b", "00000000000000b2", "mon2", 99
	s.Uptime, s.Started = Seconds(time.Hour.Seconds()), ago(time.Hour)
	s.Role, s.Reason, s.Since = RoleStandby, "bmp-a is older", ago(time.Hour)
	s.Members[0].Self, s.Members[1].Self = true, false
	s.LastTakeover = nil
	for i := range s.Routers {
		r := &s.Routers[i]
		r.Sending, r.Behind = false, Backlog{}
		r.Held = Backlog{Messages: 2_400, Bytes: 310_000, OldestAge: 1.2}
	}
	s.Hold.Messages, s.Hold.OldestAge, s.Hold.LowWaterLag = 4_800, 1.2, 0.21
	s.Sink.InFlight, s.Sink.Handed, s.Sink.Acknowledged = 0, 0, 0
	return s
}

// beside is an active collector with pmacct in the middle: the relay and the
// intake, and a disk for what memory has no room for. 192.0.2.1 comes back through
// pmacct, as does 192.0.2.7, which speaks to pmacct alone.
func beside() *Status {
	s := active()
	s.Relay = []RelayTarget{
		{
			Address: "127.0.0.1:1791", State: RelayUp, Since: ago(70 * time.Hour), Sessions: 2, Limit: 64 << 20,
			Bytes: 1_235_135_780, Resets: 5, Replays: 2, Replaying: 1,
		},
	}
	s.Intake = &Intake{
		Listen:    []string{"127.0.0.1:9093"},
		Producers: []Producer{{Address: "127.0.0.1:50123", ClientID: "rdkafka", Since: ago(70 * time.Hour), Records: 39_000_000}},
		Records:   40_009_812, Bytes: 25_000_000_000,
	}
	s.Spool = &Spool{Dir: "/var/lib/bmpha/spool", Used: 0, Limit: 10 << 30}
	s.Routers[0].Source = SourcePmacct
	s.Routers = append(s.Routers, Router{
		Identity: "192.0.2.7", Address: "192.0.2.7", Source: SourcePmacct, Heard: true, Messages: 777,
		LastHeard: ago(2 * time.Second), HeardBy: []string{"bmp-a", "bmp-b"}, Sender: "bmp-a", Sending: true, Acknowledged: 777, Records: 777,
	})
	s.Members[0].RoutersHeard, s.Members[1].RoutersHeard, s.Members[1].RoutersSent = 3, 3, 3
	return s
}

// files is an intake that follows files instead.
func files(s *Status) *Status {
	s.Intake.Listen, s.Intake.Producers = nil, nil
	s.Intake.Files = []IntakeFile{
		{Path: "/var/log/pmacct/bmp-1.json", Offset: 9_000_000, Behind: 0, Lines: 12_000, LastRead: ago(2 * time.Second)},
		{Path: "/var/log/pmacct/bmp-2.json", Offset: 1_000, Behind: 5 << 20, Lines: 3, LastRead: ago(time.Second)},
	}
	return s
}

// alone removes the other member.
func alone(s *Status) *Status {
	s.Members = s.Members[1:]
	s.Reason = "no other member"
	for i := range s.Routers {
		s.Routers[i].HeardBy = []string{"bmp-a"}
	}
	return s
}

type scenario struct {
	name   string
	status *Status
	codes  []string // of the problems, in order
	exit   int
}

// scenarios are what an operator may find at three in the morning.
func scenarios() []scenario {
	with := func(s *Status, change func(*Status)) *Status {
		change(s)
		return s
	}
	return []scenario{
		{"active", active(), nil, ExitActive},
		{"standby", standby(), nil, ExitStandby},
		{"alone", alone(active()), []string{"alone"}, ExitActive},
		{"alone-of-three", with(alone(active()), func(s *Status) { s.Cluster.Expected = 3 }), []string{"members_missing"}, ExitDegraded},
		{"two-of-three", with(active(), func(s *Status) { s.Cluster.Expected = 3 }), []string{"members_missing"}, ExitDegraded},
		{"alone-as-wanted", with(alone(active()), func(s *Status) { s.Cluster.Expected = 1 }), nil, ExitActive},
		{"partner-gone", with(active(), func(s *Status) {
			s.Members[0].Gone, s.Members[0].HeartbeatAge = true, 14
			s.Reason = "no other member"
			for i := range s.Routers {
				s.Routers[i].HeardBy = []string{"bmp-a"}
			}
		}), []string{"member_gone"}, ExitDegraded},
		{"starting", with(active(), func(s *Status) {
			s.Role, s.Reason, s.Since, s.Uptime, s.Started = RoleStarting, "", ago(400*time.Millisecond), 0.4, ago(400*time.Millisecond)
			s.Members, s.Routers, s.LastTakeover = nil, nil, nil
			s.Redis = Redis{Address: "redis:6379", State: RedisFailing, Failures: 1, LastError: "no answer in time", Heartbeat: 1, Expiry: 2}
			s.Hold, s.Sink.InFlight, s.Sink.Handed, s.Sink.Acknowledged = Hold{Limit: 1 << 30}, 0, 0, 0
		}), []string{"starting", "redis_failing"}, ExitDegraded},
		{"redis-unreachable", with(active(), func(s *Status) {
			s.Reason = "Redis unavailable: no answer in time"
			s.Redis.State, s.Redis.LastOKAge, s.Redis.Failures, s.Redis.LastError = RedisUnreachable, 34.2, 136, "no answer in time"
		}), []string{"redis_unreachable"}, ExitDegraded},
		{"kafka-down", with(active(), func(s *Status) {
			s.Sink.Connected, s.Sink.Stalled, s.Sink.InFlight = false, 34, 5_000
			s.Sink.LastError, s.Sink.LastErrorAt = "kafka1:9092/bootstrap: Connect to ipv4#10.0.0.9:9092 failed: Connection refused", ago(2*time.Second)
			s.Routers[0].Behind = Backlog{Messages: 68_000, Bytes: 9 << 20, OldestAge: 34.1}
			s.Hold.Messages, s.Hold.OldestAge, s.Hold.LowWaterLag = 68_000, 34.1, 34.2
		}), []string{"sink_stalled"}, ExitDegraded},
		{"kafka-rejects-some", with(active(), func(s *Status) {
			s.Sink.DeadLetters, s.Sink.DeadLetterFile = 3, "/var/lib/bmpha/dead-letters"
			s.Sink.LastError, s.Sink.LastErrorAt = "Broker: Message size too large", ago(90*time.Second)
		}), []string{"sink_error", "dead_letters"}, ExitActive},
		{"router-elsewhere", with(active(), func(s *Status) {
			r := &s.Routers[1]
			r.Session, r.Heard, r.Sending, r.Sender, r.HeardBy, r.PeersUp = nil, false, false, "bmp-b", []string{"bmp-b"}, 0
		}), []string{"router_elsewhere"}, ExitDegraded},
		{"router-never-heard", with(active(), func(s *Status) {
			s.Routers = append(s.Routers, Router{Identity: "pe9.gva", Address: "192.0.2.9"})
		}), []string{"router_never_heard"}, ExitDegraded},
		{"router-lost", with(active(), func(s *Status) {
			r := &s.Routers[0]
			r.Session, r.Heard, r.Sending, r.Sender, r.HeardBy, r.LastHeard = nil, false, false, "", nil, ago(7*time.Minute)
			s.Routers[1].Sending, s.Routers[1].Sender = false, ""
		}), []string{"router_lost", "router_unsent"}, ExitDegraded},
		{"hold-filling", with(standby(), func(s *Status) { s.Hold.Bytes = 900 << 20 }), []string{"hold_filling"}, ExitStandby},
		{"hold-full", with(active(), func(s *Status) {
			s.Hold.Bytes, s.Hold.Paused = 1020<<20, 1
			s.Routers[0].Paused = true
			s.Hold.Dropped, s.Hold.LastDropAt = map[string]uint64{"full": 1_234_567, "other": 3}, ago(time.Minute)
		}), []string{"hold_dropped", "hold_full", "routers_paused"}, ExitDegraded},
		{"name-taken", with(standby(), func(s *Status) {
			s.Process, s.Shadowed, s.Reason = "bmp-a", true, `another process is named "bmp-a"`
			s.Members[0].Name, s.Members[0].Instance = "bmp-a", "00000000000000b2"
			s.Members = s.Members[1:]
		}), []string{"name_taken"}, ExitDegraded},
		{"forced-active", with(active(), func(s *Status) {
			s.Forced, s.Reason = RoleActive, "forced active"
			s.Members[1].Forced, s.Members[1].Timestamp = RoleActive, 1_000_000_000_000_000
		}), []string{"forced"}, ExitActive},
		{"forced-standby", with(standby(), func(s *Status) {
			s.Forced, s.Reason = RoleStandby, "forced standby"
			s.Members[0].Forced, s.Members[0].Timestamp = RoleStandby, 1<<63-1
		}), []string{"forced"}, ExitStandby},
		{"all-forced-standby", with(standby(), func(s *Status) {
			s.Forced, s.Reason = RoleStandby, "forced standby"
			for i := range s.Members {
				s.Members[i].Forced, s.Members[i].Role, s.Members[i].Timestamp = RoleStandby, RoleStandby, 1<<63-1
			}
			for i := range s.Routers {
				s.Routers[i].Sender = ""
			}
		}), []string{"nobody_active", "router_unsent", "forced", "member_forced"}, ExitDegraded},
		{"two-forced-active", with(active(), func(s *Status) {
			s.Forced, s.Reason = RoleActive, "forced active"
			for i := range s.Members {
				s.Members[i].Forced, s.Members[i].Role, s.Members[i].Timestamp = RoleActive, RoleActive, 1_000_000_000_000_000
			}
		}), []string{"two_forced_active", "forced"}, ExitDegraded},
		{"native-member", with(standby(), func(s *Status) {
			s.Reason = "pmacct-1 is older"
			s.Members[1] = Member{Name: "pmacct-1", Kind: KindNative, Timestamp: micro(ago(90 * 24 * time.Hour))}
			s.Hold.LowWater, s.Hold.LowWaterLag = 0, 0
			for i := range s.Routers {
				s.Routers[i].Sender, s.Routers[i].HeardBy, s.Routers[i].LowWater = "pmacct-1", []string{"bmp-b"}, 0
			}
		}), nil, ExitStandby},
		{"stands-still", with(active(), func(s *Status) {
			s.Degraded = []string{"the main loop has not turned for 12 s"}
			s.Sessions.Now, s.Sessions.Max = 2, 2
		}), []string{"degraded", "sessions_full"}, ExitDegraded},
		{"many-routers", with(active(), func(s *Status) {
			for i := range 320 {
				s.Routers = append(s.Routers, Router{
					Identity: fmt.Sprintf("10.0.%d.%d", i/250, i%250), SysName: fmt.Sprintf("a-rather-long-name-%d.example.net", i),
					Source: SourceBMP, Heard: true, Session: &Session{ID: uint32(3 + i), Port: 1024 + i, Since: ago(time.Hour)}, Sessions: 1, Messages: uint64(i) * 1000,
					LastHeard: ago(time.Duration(i) * time.Second), PeersUp: i % 40, HeardBy: []string{"bmp-a", "bmp-b"}, Sender: "bmp-a", Sending: true,
				})
			}
			for _, i := range []int{17, 118, 219, 300} {
				r := &s.Routers[i]
				r.Session, r.Heard, r.Sending, r.Sender, r.HeardBy = nil, false, false, "bmp-b", []string{"bmp-b"}
			}
		}), []string{"router_elsewhere"}, ExitDegraded},
		{"beside-pmacct", beside(), nil, ExitActive},
		{"beside-pmacct-files", files(beside()), nil, ExitActive},
		{"pmacct-restarts", with(beside(), func(s *Status) {
			t := &s.Relay[0]
			t.Since, t.Sessions, t.Waiting, t.Lost, t.Cut = ago(2*time.Second), 12, 3, 2, 1
			t.Buffered, t.LastError = 52<<20, "write: connection reset by peer"
		}), []string{"relay_behind", "relay_waiting"}, ExitActive},
		{"pmacct-gone", with(beside(), func(s *Status) {
			s.Unfit = "pmacct's producer is gone"
			s.Reason = "oldest of 2 members; nobody is better off"
			s.Members[0].Unfit = "pmacct at 127.0.0.1:1791 is gone"
			t := &s.Relay[0]
			t.State, t.Since, t.Sessions, t.Waiting = RelayDown, ago(34*time.Second), 0, 2
			t.Lost, t.LastError = 9, "dial tcp 127.0.0.1:1791: connect: connection refused"
			s.Intake.Producers, s.Intake.Lost = nil, ago(34*time.Second)
			for _, i := range []int{0, 2} {
				r := &s.Routers[i]
				r.Heard, r.HeardBy, r.Sending, r.Sender = false, nil, false, ""
			}
			s.Routers[2].LastHeard = ago(34 * time.Second)
		}), []string{"relay_down", "intake_lost", "unfit", "member_unfit", "router_lost"}, ExitDegraded},
		{"pmacct-gone-standby", with(standby(), func(s *Status) {
			b := beside()
			s.Relay, s.Intake = b.Relay, b.Intake
			s.Unfit, s.Reason = "pmacct's producer is gone", "bmp-a is older; pmacct's producer is gone"
			s.Intake.Producers, s.Intake.Lost = nil, ago(34*time.Second)
			for i := range s.Routers {
				r := &s.Routers[i]
				r.Source, r.Heard, r.HeardBy = SourcePmacct, false, []string{"bmp-a"}
			}
		}), []string{"intake_lost", "unfit", "router_elsewhere"}, ExitDegraded},
		{"pmacct-never-came", with(beside(), func(s *Status) {
			s.Uptime, s.Started = 240, ago(240*time.Second)
			s.Relay, s.Spool, s.Unfit = nil, nil, "no producer of pmacct has connected"
			s.Intake.Producers, s.Intake.Records = nil, 0
			s.Routers = nil
		}), []string{"intake_none", "unfit"}, ExitDegraded},
		{"partner-unfit", with(beside(), func(s *Status) {
			s.Members[0].Unfit = "pmacct's producer is gone"
		}), []string{"member_unfit"}, ExitDegraded},
		{"one-of-three-unfit", with(beside(), func(s *Status) {
			s.Members[0].Unfit = "pmacct's producer is gone"
			third := s.Members[0]
			third.Name, third.Instance, third.Unfit = "bmp-c", "00000000000000c3", ""
			s.Members = append(s.Members, third)
		}), []string{"member_unfit"}, ExitActive},
		{"kafka-down-spooling", with(beside(), func(s *Status) {
			s.Sink.Connected, s.Sink.Stalled, s.Sink.InFlight = false, 240, 5_000
			s.Sink.LastError, s.Sink.LastErrorAt = "kafka1:9092/bootstrap: Connect to ipv4#10.0.0.9:9092 failed: Connection refused", ago(2*time.Second)
			s.Relay[0].Paused, s.Relay[0].Buffered = true, 300_000
			s.Routers[0].Behind = Backlog{Messages: 68_000, Bytes: 9 << 20, OldestAge: 34.1}
			s.Routers[0].Spooled = Backlog{Messages: 1_200_000, Bytes: 8800 << 20, OldestAge: 240}
			s.Spool.Backlog, s.Spool.Used = s.Routers[0].Spooled, 8900<<20
			s.Spool.Recovered, s.Spool.Cut = 4_000, 123_456
			s.Hold.Messages, s.Hold.OldestAge, s.Hold.LowWaterLag = 68_000, 34.1, 240
		}), []string{"sink_stalled", "relay_paused", "spool_filling"}, ExitDegraded},
		{"spool-full", with(beside(), func(s *Status) {
			s.Spool.Backlog = Backlog{Messages: 1_400_000, Bytes: 10_100 << 20, OldestAge: 900}
			s.Spool.Used, s.Spool.Error = 10_200<<20, "write 00000007.seg: no space left on device"
		}), []string{"spool_error", "spool_full"}, ExitDegraded},
		{"files-failing", with(files(beside()), func(s *Status) {
			s.Intake.Files[0].Error = "open /var/log/pmacct/bmp-1.json: permission denied"
		}), []string{"intake_file"}, ExitDegraded},
		{"tables-filling", with(tables(active()), func(s *Status) {
			s.Tables.Used = 3900 << 20
			s.Routers[1].Table = &RouterRoutes{GivenUp: "no room for more routes"}
		}), []string{"tables_filling", "table_given_up"}, ExitActive},
		{"dump-failing", with(active(), func(s *Status) {
			s.Dump = dumping()
			s.Dump.LastError, s.Dump.LastErrorAt = "write the dump /var/dumps/192_0_2_1.json: no space left on device", ago(time.Minute)
		}), []string{"dump_error"}, ExitActive},
		{"linked", linked(active()), nil, ExitActive},
		{"linked-standby", linked(standby()), nil, ExitStandby},
		{"router-kept", with(linked(active()), func(s *Status) {
			r := &s.Routers[1]
			r.Sending, r.Sender, r.Why = false, "bmp-b", WhyLeaderDumps
			r.Readings[0].Whole, r.Readings[0].Sends, r.Readings[1].Sends = false, false, true
		}), nil, ExitActive},
		{"many-reasons", with(linked(standby()), func(s *Status) {
			for i, why := range []string{WhyOnly, WhyLeaderDeaf, WhyLeaderLate, WhyKept, WhyHandingOver, WhyTakingOver, WhyReadingBack, WhyLeaderDeaf, "x"} {
				r := s.Routers[0]
				r.Identity, r.Sender, r.Why = fmt.Sprintf("10.0.0.%d", i), "bmp-b", why
				r.Readings = readings(Seconds(i), 0)
				s.Routers = append(s.Routers, r)
			}
		}), nil, ExitStandby},
		{"taking-over", with(linked(active()), func(s *Status) {
			s.Since, s.Token, s.Reason = ago(300*time.Millisecond), 1_763_694_245_000_008, "no other member"
			s.LastTakeover = &Takeover{At: s.Since, From: "bmp-b", To: "bmp-a", Reason: s.Reason, Token: 1_763_694_245_000_008}
			s.Members[0].Gone = true
			s.Link.Peers[0].Connected, s.Link.Peers[0].Since, s.Link.Peers[0].Error = false, ago(320*time.Millisecond), "connection refused"
			for i := range s.Routers {
				s.Routers[i].HeardBy, s.Routers[i].Why = []string{"bmp-a"}, WhyReadingBack
				s.Routers[i].Readings = s.Routers[i].Readings[:1]
			}
			s.ReadBack.Reading = true
			s.Takeovers = append([]TakenOver{{At: s.Since, From: "bmp-b", How: HowDead, Token: 1_763_694_245_000_008, Routers: 2, Waiting: 2}}, s.Takeovers...)
		}), []string{"member_gone"}, ExitDegraded},
		{"router-late", with(linked(active()), func(s *Status) {
			s.Routers[0].Readings = []Reading{{Member: "bmp-a", Behind: 7.3, Whole: true, Late: true}, {Member: "bmp-b", Whole: true, Sends: true}}
			s.Routers[0].Sending, s.Routers[0].Sender, s.Routers[0].Why = false, "bmp-b", WhyLeaderLate
		}), []string{"router_late"}, ExitActive},
		{"link-down", with(linked(standby()), func(s *Status) {
			p := &s.Link.Peers[0]
			p.Connected, p.Since, p.Error = false, ago(40*time.Second), "nothing was heard for twice the expiry"
		}), []string{"link_down"}, ExitStandby},
		{"link-down-holding", with(linked(standby()), func(s *Status) {
			s.Link.Holds = true
			s.Link.Peers = []LinkPeer{{Name: "bmp-a", Address: "mon1:1791", Error: "dial tcp 10.0.0.1:1791: i/o timeout"}}
		}), []string{"link_down"}, ExitDegraded},
		{"link-missing", with(linked(standby()), func(s *Status) {
			s.Link.Peers, s.Members[1].Link = nil, ""
		}), []string{"link_missing"}, ExitStandby},
		{"ends-not-known", with(linked(standby()), func(s *Status) {
			s.ReadBack.Known, s.ReadBack.Unknown = 9, 14
			s.ReadBack.LastError, s.ReadBack.LastErrorAt = "list the ends of bmp: Local: Timed out", ago(time.Second)
		}), []string{"read_back"}, ExitDegraded},
		{"ends-not-known-active", with(linked(active()), func(s *Status) { s.ReadBack.Unknown = 14 }), []string{"read_back"}, ExitActive},
		{"ends-not-known-kafka-down", with(linked(active()), func(s *Status) {
			s.ReadBack.Unknown = 14
			s.Sink.Connected, s.Sink.LastError = false, "all brokers are down"
		}), []string{"sink_disconnected"}, ExitDegraded},
		{"took-over-blind", with(linked(active()), func(s *Status) {
			s.Sink.FencedOthers, s.Sink.FenceError, s.Sink.FenceErrorAt = 0, "fence bmpha.core.2.+bmp-b: context deadline exceeded", ago(41*time.Second)
			s.LastTakeover.At = ago(42 * time.Second)
			s.Takeovers = append([]TakenOver{{
				At: ago(40 * time.Second), From: "bmp-b", How: HowExpired, Token: 1_763_694_245_000_008, Routers: 3, Gap: 2.2, Took: 1.0,
				Blind: 2, BlindMessages: 4_800, Error: "context deadline exceeded",
			}}, s.Takeovers...)
		}), []string{"fence_failed", "takeover_blind"}, ExitActive},
		{"hostile-names", with(active(), func(s *Status) {
			s.Routers[0].SysName = "\x1b]0;owned\a\x1b[2J\u202e"
			s.Routers[1].SysName = "\xff\xfe very long name that goes on and on for columns"
			s.Members[0].Name = "bmp\x1b[31mb"
			s.Sink.LastError, s.Sink.LastErrorAt = "broken\r\n\x00pipe", ago(time.Second)
			s.LastTakeover.Reason = "a\nb"
			b := beside()
			s.Relay, s.Intake, s.Spool = b.Relay, files(b).Intake, b.Spool
			s.Relay[0].Address = "\x1b[2J"
			s.Intake.Listen = []string{"\u202e"}
			s.Intake.Files[0].Path, s.Intake.Files[0].Error = "\x1b[1m", "\x00"
			s.Spool.Error = "\a"
			s.Members[0].Unfit = "\x1b[0m"
			s.Routers[1].Identity, s.Routers[1].Sender, s.Routers[1].Why = "\x1b[3m", "\x1b[4m", WhyOnly
			s.Routers[1].Readings = []Reading{{Member: "\x1b[5m", Behind: 3}}
			s.Link = &Link{Peers: []LinkPeer{{Name: s.Members[0].Name, Connected: true}, {Name: "\x1b[7m"}}}
			s.Takeovers = []TakenOver{{At: at, From: "\x1b[8m", How: "\x1b[9m"}}
		}), []string{"intake_none", "intake_file", "member_unfit", "spool_error", "sink_error"}, ExitDegraded},
	}
}

// tables keeps the routes of all routers.
func tables(s *Status) *Status {
	s.Tables = &Tables{Kept: TablesFull, Routes: 11_300_000, AttributeSets: 1_700_000, Used: 1070 << 20, Limit: 4 << 30}
	s.Routers[0].Table = &RouterRoutes{Routes: 11_300_000, Stale: 12, Bytes: 640 << 20, Repeated: 940_000}
	return s
}

// dumping has dumps of tables every quarter of an hour.
func dumping() *Dump {
	return &Dump{
		Period: 900, Slots: 3, Targets: []string{"topic", "file"}, Running: "192.0.2.2",
		Whole: 120, Interrupted: 2, Failed: 1, Unsettled: 3, Missed: 4,
		Last: &DumpDone{
			Router: "192.0.2.1", Target: "topic", Slot: ago(10 * time.Minute), At: ago(9 * time.Minute), Took: 4.5,
			Routes: 950_000, Records: 950_212,
		},
		LastError: "all brokers are down", LastErrorAt: ago(time.Hour),
	}
}

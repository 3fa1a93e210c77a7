package control

import (
	"errors"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func screen(t testing.TB, s *Status, opts RenderOptions) string {
	t.Helper()
	var b strings.Builder
	if err := Render(&b, s, opts); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestScreens(t *testing.T) {
	for _, sc := range scenarios() {
		t.Run(sc.name, func(t *testing.T) {
			got := screen(t, sc.status, RenderOptions{Now: at})
			golden(t, "screen/"+sc.name+".txt", got)
			lines := strings.Split(strings.TrimSuffix(got, "\n"), "\n")
			if len(lines) > 24 {
				t.Errorf("%d lines, want at most 24", len(lines))
			}
			for i, l := range lines {
				if n := utf8.RuneCountInString(l); n > 80 {
					t.Errorf("line %d has %d columns, want at most 80: %s", i+1, n, l)
				}
			}
		})
	}
}

func TestProblemsAndExitCodes(t *testing.T) {
	for _, sc := range scenarios() {
		t.Run(sc.name, func(t *testing.T) {
			var codes []string
			for _, p := range Problems(sc.status, at) {
				codes = append(codes, p.Code)
			}
			if diff := cmp.Diff(sc.codes, codes); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
			if got := ExitCode(sc.status, at); got != sc.exit {
				t.Errorf("exit code %d, want %d", got, sc.exit)
			}
		})
	}
}

// Who hears a router through pmacct has no session with it, or one that says
// nothing about that.
func TestHeardHere(t *testing.T) {
	session := &Session{ID: 1}
	for _, tt := range []struct {
		name   string
		router Router
		code   string // of the problem
		heard  string // on the screen
	}{
		{"by its session", Router{Source: SourceBMP, Heard: true, Session: session, Sessions: 1, LastHeard: ago(time.Second)}, "", "1.0 s ago"},
		{"by a collector that does not tell", Router{Session: session, Sessions: 1, LastHeard: ago(time.Second)}, "", "1.0 s ago"},
		{"through pmacct", Router{Source: SourcePmacct, Heard: true, LastHeard: ago(time.Second)}, "", "pmacct 1.0 s ago"},
		{"passed on and through pmacct", Router{Source: SourcePmacct, Heard: true, Session: session, Sessions: 1, LastHeard: ago(time.Second)}, "", "pmacct 1.0 s ago"},
		{"passed on only", Router{Source: SourcePmacct, Session: session, Sessions: 1, LastHeard: ago(time.Second)}, "router_lost", "not by pmacct"},
		{"passed on, through pmacct elsewhere", Router{Source: SourcePmacct, Session: session, Sessions: 1, HeardBy: []string{"bmp-b"}}, "router_elsewhere", "only by bmp-b"},
		{"through pmacct until lately", Router{Source: SourcePmacct, LastHeard: ago(time.Minute)}, "router_lost", "gone 60 s"},
		{"never", Router{Source: SourcePmacct}, "router_never_heard", "never"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := active()
			r := tt.router
			r.Identity, r.Sender = "192.0.2.9", "bmp-a"
			s.Routers = append(s.Routers, r)
			code := ""
			for _, p := range Problems(s, at) {
				code += p.Code
			}
			if code != tt.code {
				t.Errorf("problem %q, want %q", code, tt.code)
			}
			if got := r.heard(at); got != tt.heard {
				t.Errorf("heard %q, want %q", got, tt.heard)
			}
		})
	}
}

// What happens instead is said with the reason why this collector cannot do its
// job, once.
func TestWhoSendsInstead(t *testing.T) {
	const gone = "pmacct's producer is gone"
	for _, tt := range []struct {
		name   string
		status *Status
		change func(s *Status)
		want   string
	}{
		{"active, another can", active(), func(*Status) {}, "; bmp-b will take over"},
		{"active, the other cannot", active(), func(s *Status) { s.Members[0].Unfit = gone }, "; no other collector could send instead"},
		{"active, the other may not", active(), func(s *Status) { s.Members[0].Forced = RoleStandby }, "; no other collector could send instead"},
		{"active, the other is gone", active(), func(s *Status) { s.Members[0].Gone = true }, "; no other collector could send instead"},
		{"active, alone", alone(active()), func(*Status) {}, "; no other collector could send instead"},
		{"forced active", active(), func(s *Status) { s.Forced = RoleActive }, "; forced active, so that bmp-b will not take over"},
		{"standby", standby(), func(*Status) {}, "; bmp-a sends"},
		{"standby, the active one is no better", standby(), func(s *Status) { s.Members[1].Unfit = gone }, "; bmp-a is active and no better off"},
		{"standby of a native one", standby(), func(s *Status) {
			s.Members[1] = Member{Name: "pmacct-1", Kind: KindNative}
		}, "; another collector sends"},
		{"Redis is away", active(), func(s *Status) { s.Redis.State = RedisUnreachable }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := tt.status
			s.Unfit, s.Intake = gone, &Intake{Lost: ago(34 * time.Second)}
			tt.change(s)
			said := make(map[string]string)
			for _, p := range Problems(s, at) {
				said[p.Code] = p.Text
			}
			if got, want := said["intake_lost"], gone+" for 34 s"+tt.want; got != want {
				t.Errorf("intake_lost: %q, want %q", got, want)
			}
			if got, want := said["unfit"], "this collector cannot do its job: "+gone; got != want {
				t.Errorf("unfit beside intake_lost: %q, want %q", got, want)
			}
			s.Intake = nil
			for _, p := range Problems(s, at) {
				if want := "this collector cannot do its job: " + gone + tt.want; p.Code == "unfit" && p.Text != want {
					t.Errorf("unfit: %q, want %q", p.Text, want)
				}
			}
		})
	}
}

func TestPmacctMayTakeAWhileToConnect(t *testing.T) {
	s := beside()
	s.Intake.Producers, s.Uptime = nil, 20
	if p := Problems(s, at); len(p) != 0 {
		t.Errorf("20 s after the start: %+v, want nothing", p)
	}
}

func TestRelayProblems(t *testing.T) {
	for _, tt := range []struct {
		name   string
		target RelayTarget
		want   []Problem
	}{
		{"idle", RelayTarget{State: RelayIdle}, nil},
		{"up", RelayTarget{State: RelayUp, Sessions: 2, Buffered: 51 << 20}, nil},
		{"filling", RelayTarget{State: RelayUp, Buffered: 52 << 20}, []Problem{
			{"relay_behind", Notice, "127.0.0.1:1791 does not keep up, its buffer has 52.0 of 64.0 MiB (81 %)"},
		}},
		{"full", RelayTarget{State: RelayUp, Buffered: 64 << 20}, []Problem{
			{"relay_behind", Degraded, "127.0.0.1:1791 does not keep up, its buffer has 64.0 of 64.0 MiB (100 %)"},
		}},
		{"held back", RelayTarget{State: RelayUp, Buffered: 52 << 20, Paused: true}, []Problem{
			{"relay_behind", Notice, "127.0.0.1:1791 is held back, its buffer has 52.0 of 64.0 MiB (81 %)"},
			{"relay_paused", Notice, "nothing is passed on to 127.0.0.1:1791 until there is room for what it makes"},
		}},
		{"start over", RelayTarget{State: RelayUp, Waiting: 1}, []Problem{{"relay_waiting", Notice, "1 session to start over for 127.0.0.1:1791"}}},
		{"down", RelayTarget{State: RelayDown, Since: ago(time.Hour), Waiting: 3, LastError: "dial tcp 127.0.0.1:1791: connect: connection refused"}, []Problem{
			{"relay_down", Degraded, "the relay to 127.0.0.1:1791 is down for 1 h 0 min: connect: connection refused"},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := active()
			tt.target.Address, tt.target.Limit = "127.0.0.1:1791", 64<<20
			s.Relay = []RelayTarget{tt.target}
			if diff := cmp.Diff(tt.want, Problems(s, at)); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

// A member that is not reached directly is a problem, but for those that have just
// come and those that cannot be.
func TestLinkProblems(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(s *Status, m *Member, p *LinkPeer)
		code   string
	}{
		{"connected", func(*Status, *Member, *LinkPeer) {}, ""},
		{"parted for a moment", func(_ *Status, _ *Member, p *LinkPeer) { p.Connected, p.Since = false, ago(time.Second) }, ""},
		{"parted", func(_ *Status, _ *Member, p *LinkPeer) { p.Connected, p.Since = false, ago(6*time.Second) }, "link_down"},
		{"never connected", func(_ *Status, _ *Member, p *LinkPeer) { p.Connected, p.Since = false, time.Time{} }, "link_down"},
		{"not known to the link", func(s *Status, _ *Member, _ *LinkPeer) { s.Link.Peers = nil }, "link_down"},
		{"it has just come", func(s *Status, m *Member, _ *LinkPeer) { s.Link.Peers, m.Since = nil, ago(time.Second) }, ""},
		{"this one has just started", func(s *Status, _ *Member, _ *LinkPeer) { s.Link.Peers, s.Uptime = nil, 3 }, ""},
		{"gone", func(s *Status, m *Member, _ *LinkPeer) { s.Link.Peers, m.Gone = nil, true }, "member_gone"},
		{"native", func(s *Status, m *Member, _ *LinkPeer) { s.Link.Peers, m.Kind, m.Link = nil, KindNative, "" }, ""},
		{"it has none", func(s *Status, m *Member, _ *LinkPeer) { s.Link.Peers, m.Link = nil, "" }, "link_missing"},
		{"this one has none", func(s *Status, _ *Member, _ *LinkPeer) { s.Link = nil }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := linked(active())
			tt.change(s, &s.Members[0], &s.Link.Peers[0])
			code := ""
			for _, p := range Problems(s, at) {
				code += p.Code
			}
			if code != tt.code {
				t.Errorf("problem %q, want %q", code, tt.code)
			}
		})
	}
}

func TestTakeoversInWords(t *testing.T) {
	for how, want := range map[string]string{
		HowHandedOver: "5 min ago handed over by bmp-b: 2 routers, 9.0 ms without a sender",
		HowStopped:    "5 min ago from bmp-b, which had left: 2 routers, 9.0 ms without a sender",
		HowDead:       "5 min ago from bmp-b, whose process had died: 2 routers, 9.0 ms without a sender",
		HowExpired:    "5 min ago from bmp-b, which had fallen silent: 2 routers, 9.0 ms without a sender",
		HowOverdue:    "5 min ago from bmp-b, which did not stop in time: 2 routers, 9.0 ms without a sender",
		HowRedisAway:  "5 min ago beside bmp-b, without Redis: 2 routers, 9.0 ms without a sender",
		"new":         "5 min ago from bmp-b: 2 routers, 9.0 ms without a sender",
	} {
		got := (&TakenOver{At: ago(5 * time.Minute), From: "bmp-b", How: how, Routers: 2, Gap: 0.009}).words(at)
		if got != want {
			t.Errorf("%s: %q, want %q", how, got, want)
		}
	}
	got := (&TakenOver{At: at, Routers: 3, Waiting: 1, Skipped: 1_200, Doubtful: 4, Blind: 1, BlindMessages: 17}).words(at)
	if want := "0 s ago from another: 3 routers, 1 WAITING, 1,200 in Kafka left out, 4 in doubt, 17 messages perhaps repeated"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestAnOldDocumentIsAProblem(t *testing.T) {
	s := active()
	if got := ExitCode(s, at.Add(12*time.Second)); got != ExitDegraded {
		t.Errorf("exit code of a document 12 s old: %d, want %d", got, ExitDegraded)
	}
	if p := Problems(s, at.Add(12*time.Second)); len(p) != 1 || p[0].Code != "stale" {
		t.Errorf("problems of a document 12 s old: %v", p)
	}
}

func TestMissingRoutersAreOnlyANoticeRightAfterTheStart(t *testing.T) {
	s := active()
	s.Uptime = 20
	s.Routers = append(s.Routers, Router{Identity: "192.0.2.9"})
	p := Problems(s, at)
	if len(p) != 1 || p[0].Code != "router_never_heard" || p[0].Severity != Notice {
		t.Errorf("20 s after the start: %+v, want a notice", p)
	}
}

// Colours change nothing but colours, and are there only when asked for.
func TestColours(t *testing.T) {
	for _, sc := range scenarios() {
		plain, painted := screen(t, sc.status, RenderOptions{Now: at}), screen(t, sc.status, RenderOptions{Now: at, Color: true})
		if strings.Contains(plain, "\x1b") {
			t.Errorf("%s: escape sequences without colours", sc.name)
		}
		if !strings.Contains(painted, "\x1b[1;3") {
			t.Errorf("%s: no colours", sc.name)
		}
		if got := stripColors(painted); got != plain {
			t.Errorf("%s: text differs with colours (-without +with):\n%s", sc.name, cmp.Diff(plain, got))
		}
	}
}

func stripColors(s string) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(s, "\x1b[")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		_, s, _ = strings.Cut(rest, "m")
	}
}

func TestHeight(t *testing.T) {
	var many *Status
	for _, sc := range scenarios() {
		if sc.name == "many-routers" {
			many = sc.status
		}
	}
	for _, tt := range []struct{ height, lines int }{{24, 24}, {40, 40}, {60, 60}} {
		if n := strings.Count(screen(t, many, RenderOptions{Now: at, Height: tt.height}), "\n"); n != tt.lines {
			t.Errorf("height %d: %d lines, want %d", tt.height, n, tt.lines)
		}
	}
	all := screen(t, many, RenderOptions{Now: at, Height: -1})
	for _, r := range many.Routers {
		if !strings.Contains(all, r.Identity) {
			t.Errorf("router %s is not shown when all are asked for", r.Identity)
		}
	}
	low := screen(t, many, RenderOptions{Now: at, Height: 5})
	for _, want := range []string{"10.0.0.15", "10.0.0.116", "10.0.0.217", "… and 319 more"} {
		if !strings.Contains(low, want) {
			t.Errorf("on a very low screen the worst routers are not shown: no %q in\n%s", want, low)
		}
	}
}

func TestNarrowAndWide(t *testing.T) {
	for _, width := range []int{1, 60, 72, 80, 100, 200} {
		for _, sc := range scenarios() {
			for _, l := range strings.Split(screen(t, sc.status, RenderOptions{Now: at, Width: width}), "\n") {
				// A word that is too long stands alone and sticks out.
				if n := utf8.RuneCountInString(l); n > max(width, minWidth) && len(strings.Fields(l)) > 2 {
					t.Errorf("%s, width %d: %d columns: %s", sc.name, width, n, l)
				}
			}
		}
	}
}

func TestLine(t *testing.T) {
	var b strings.Builder
	for _, sc := range scenarios() {
		l := Line(sc.status, at)
		if strings.ContainsFunc(l, unicode.IsControl) {
			t.Errorf("%s: control characters in %q", sc.name, l)
		}
		b.WriteString(l + "\n")
	}
	golden(t, "lines.txt", b.String())
}

func TestClusterScreens(t *testing.T) {
	view := func(m ...Member) *ClusterView {
		return &ClusterView{Version: StatusVersion, At: at, Redis: "redis:6379", Cluster: Cluster{Name: "core", ID: 2}, Members: m}
	}
	a, b := active().Members[1], active().Members[0]
	a.Self = false
	native := Member{Name: "pmacct-1", Kind: KindNative, Timestamp: micro(ago(90 * 24 * time.Hour))}
	idle, second, gone := a, b, a
	idle.Role = RoleStandby
	second.Role = RoleActive
	gone.Gone = true
	unfit := b
	unfit.Unfit = "pmacct's producer is gone"
	for _, tt := range []struct {
		name string
		view *ClusterView
		exit int
	}{
		{"one-active", view(a, b), ExitActive},
		{"two-active", view(a, second), ExitDegraded},
		{"nobody-active", view(idle, b), ExitDegraded},
		{"active-gone", view(gone, b), ExitDegraded},
		{"native", view(native, b), ExitActive},
		{"unfit", view(a, unfit), ExitActive},
		{"empty", view(), ExitDegraded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			if err := RenderCluster(&out, tt.view, RenderOptions{}); err != nil {
				t.Fatal(err)
			}
			golden(t, "cluster/"+tt.name+".txt", out.String())
			if got := ClusterExitCode(tt.view); got != tt.exit {
				t.Errorf("exit code %d, want %d", got, tt.exit)
			}
		})
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestRenderReturnsTheWritersError(t *testing.T) {
	if err := Render(brokenWriter{}, active(), RenderOptions{}); err == nil {
		t.Error("Render: no error from a broken writer")
	}
	if err := RenderCluster(brokenWriter{}, &ClusterView{}, RenderOptions{}); err == nil {
		t.Error("RenderCluster: no error from a broken writer")
	}
}

func TestHumanNumbers(t *testing.T) {
	for _, tt := range []struct {
		in   Seconds
		want string
	}{
		{-1, "0 s"}, {0, "0 s"}, {0.0004, "0.4 ms"}, {0.0099, "9.9 ms"}, {0.024, "24 ms"}, {0.0994, "99 ms"}, {0.1, "0.1 s"}, {3.21, "3.2 s"}, {9.94, "9.9 s"}, {9.96, "10 s"},
		{34, "34 s"}, {119, "119 s"}, {240, "4 min"}, {3599, "59 min"}, {3600, "1 h 0 min"}, {11520, "3 h 12 min"}, {273600, "3 d 4 h"}, {1e300, "1491308 d 2 h"},
	} {
		if got := span(tt.in); got != tt.want {
			t.Errorf("span(%v) = %q, want %q", float64(tt.in), got, tt.want)
		}
	}
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", 1<<64 - 1: "18,446,744,073,709,551,615"} {
		if got := count(n); got != want {
			t.Errorf("count(%d) = %q, want %q", n, got, want)
		}
	}
	if got := count(-1234); got != "-1,234" {
		t.Errorf("count(-1234) = %q", got)
	}
	for n, want := range map[uint64]string{0: "0 MiB", 1: "<0.1 MiB", 1 << 19: "0.5 MiB", 12 << 20: "12.0 MiB", 1 << 30: "1,024 MiB"} {
		if got := mebibytes(n); got != want {
			t.Errorf("mebibytes(%d) = %q, want %q", n, got, want)
		}
	}
}

// FuzzRender: whatever a document says, the screen is drawn and holds no control
// characters.
func FuzzRender(f *testing.F) {
	f.Add("pe1", "bmp-b", "bmp-a is older", "redis:6379", 3.5, uint64(7), 80, 24)
	f.Add("\x1b[2J", "\u202e", "\r\n", "\xff", -1e300, uint64(1<<64-1), -5, 1)
	f.Fuzz(func(t *testing.T, router, member, reason, address string, age float64, n uint64, width, height int) {
		s := active()
		s.Reason, s.Degraded, s.Process, s.Host = reason, []string{reason}, member, address
		s.Routers[0].Identity, s.Routers[0].SysName, s.Routers[0].Sender, s.Routers[0].Sending = router, router, member, false
		s.Routers[0].Held = Backlog{n, n, Seconds(age)}
		s.Routers[1].Session, s.Routers[1].HeardBy = nil, []string{member, router}
		s.Members[0].Name, s.Members[0].Role, s.Members[0].Timestamp = member, reason, n
		s.Redis.Address, s.Redis.State, s.Redis.LastError = address, reason, reason
		s.Sink.Target, s.Sink.LastError, s.Sink.Stalled = address, reason, Seconds(age)
		s.Hold.Bytes, s.Hold.Dropped = n, map[string]uint64{reason: n}
		s.LastTakeover.From, s.LastTakeover.Reason = member, reason
		s.Unfit, s.Members[1].Unfit = reason, address
		s.Routers[1].Source, s.Routers[1].Spooled = router, Backlog{n, n, Seconds(age)}
		s.Relay = []RelayTarget{{Address: address, State: reason, Buffered: n, Limit: n / 2, LastError: reason, Waiting: int(n)}, {State: RelayDown, Address: address, LastError: reason}}
		s.Intake = &Intake{
			Listen: []string{address}, Producers: []Producer{{Address: address, ClientID: reason}}, Records: n,
			Files: []IntakeFile{{Path: router, Behind: int64(n), Error: reason}, {Path: member, Behind: -1, Error: reason}},
		}
		s.Spool = &Spool{Backlog: Backlog{n, n, Seconds(age)}, Dir: router, Used: n, Limit: n, Cut: n, Recovered: n, Error: reason}
		s.Routers[1].Why, s.Routers[0].Why = WhyLeaderDeaf, router
		s.Routers[0].Readings = []Reading{{Member: member, Behind: Seconds(age), Late: n%2 == 0, Whole: n%3 == 0}}
		s.Link = &Link{Holds: n%2 == 0, Peers: []LinkPeer{{Name: member, Connected: n%2 == 1, Error: reason, HeardAge: Seconds(age)}, {Name: router, Connected: true}}}
		s.ReadBack = &ReadBack{Unknown: Seconds(age), LastError: reason, LastErrorAt: at}
		s.Sink.Fenced, s.Sink.Unsure, s.Sink.FenceError, s.Sink.FenceErrorAt = n, n, reason, at
		s.Takeovers = []TakenOver{{At: at, From: member, How: reason, Gap: Seconds(age), Skipped: n, Blind: 1, BlindMessages: n, Error: reason}, {At: at, How: HowDead, From: router}}
		got := screen(t, s, RenderOptions{Now: at, Width: width % 300, Height: height % 300})
		if i := strings.IndexFunc(got, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("character %q at %d of\n%s", got[i:min(i+4, len(got))], i, got)
		}
		if !utf8.ValidString(got) {
			t.Error("not UTF-8")
		}
	})
}

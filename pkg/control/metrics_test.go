package control

import (
	"net/http/httptest"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// exposition is what a scrape of s would show.
func exposition(t *testing.T, s *Status) string {
	t.Helper()
	m := NewMetrics(func() Status { return *s })
	m.now = func() time.Time { return at }
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(m); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	h := promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError})
	h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("scrape: %d %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// The full set of metrics. A change of this file is a change of what dashboards
// and alarms rely on.
func TestMetricSet(t *testing.T) {
	s := linked(beside())
	s.Intake.Files = files(beside()).Intake.Files
	s.Dump = dumping()
	s.Redis.State = RedisFailing // so that there is a problem
	golden(t, "metrics.txt", exposition(t, s))
}

func TestMetricNamesFollowTheRules(t *testing.T) {
	problems, err := testutil.CollectAndLint(NewMetrics(func() Status { return *beside() }))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		// The timestamps in Redis are in microseconds for everyone.
		if p.Metric == "bmpha_member_timestamp_microseconds" && strings.Contains(p.Text, "base unit") {
			continue
		}
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// Every number in the document is a metric: each gets a value that no other has,
// and all of them must be seen.
func TestEveryNumberIsAMetric(t *testing.T) {
	// Not metrics: what has another form, or is the document's own.
	exempt := map[string]string{
		"Version":      "of the document",
		"Cluster.ID":   "a label",
		"Session.ID":   "a label",
		"Session.Port": "a label",
	}
	s := Status{}
	next := 1_000
	paths := make(map[int]string)
	var fill func(v reflect.Value, path string)
	fill = func(v reflect.Value, path string) {
		switch v.Kind() {
		case reflect.Struct:
			if v.Type() == reflect.TypeFor[time.Time]() {
				next++
				paths[next] = path
				v.Set(reflect.ValueOf(time.Unix(int64(next), 0)))
				return
			}
			for i := range v.NumField() {
				f := v.Type().Field(i)
				if why := exempt[strings.TrimPrefix(path+"."+f.Name, ".")]; why != "" {
					continue
				}
				name := path + "." + f.Name
				if v.Type() == reflect.TypeFor[Session]() {
					name = "Session." + f.Name
					if exempt[name] != "" {
						continue
					}
				}
				fill(v.Field(i), strings.TrimPrefix(name, "."))
			}
		case reflect.Pointer:
			v.Set(reflect.New(v.Type().Elem()))
			fill(v.Elem(), path)
		case reflect.Slice:
			if v.Type().Elem().Kind() == reflect.Struct && v.Type().Elem() != reflect.TypeFor[Problem]() {
				v.Set(reflect.MakeSlice(v.Type(), 1, 1))
				fill(v.Index(0), path)
			}
		case reflect.Map:
			next++
			paths[next] = path
			v.Set(reflect.ValueOf(map[string]uint64{"reason": uint64(next)}))
		case reflect.Int, reflect.Int64:
			next++
			paths[next] = path
			n := int64(next)
			if strings.HasSuffix(path, "LowWater") { // µs, shown in seconds
				n *= 1e6
			}
			v.SetInt(n)
		case reflect.Uint32, reflect.Uint64:
			next++
			paths[next] = path
			v.SetUint(uint64(next))
		case reflect.Float64:
			next++
			paths[next] = path
			v.SetFloat(float64(next))
		case reflect.String:
			if path == "Members.Role" {
				v.SetString(RoleActive)
				return
			}
			v.SetString("x")
		}
	}
	fill(reflect.ValueOf(&s).Elem(), "")
	s.Members[0].Kind = KindBMPHA

	seen := make(map[float64]bool)
	for _, l := range strings.Split(exposition(t, &s), "\n") {
		if i := strings.LastIndexByte(l, ' '); i >= 0 && !strings.HasPrefix(l, "#") {
			v, err := strconv.ParseFloat(l[i+1:], 64)
			if err != nil {
				t.Fatalf("sample %q: %v", l, err)
			}
			seen[v] = true
		}
	}
	if len(paths) < 70 {
		t.Fatalf("only %d numbers found in the document", len(paths))
	}
	for n, path := range paths {
		if !seen[float64(n)] {
			t.Errorf("Status.%s is not a metric", path)
		}
	}
}

// A name that two routers or members share after cleaning must not fail the
// scrape.
func TestMetricsSurviveStrangeNames(t *testing.T) {
	s := active()
	s.Routers[0].Identity, s.Routers[1].Identity = "a\x00", "a\x01"
	s.Members[0].Name, s.Members[1].Name = "\xff", "\xfe"
	s.Members[0].Instance, s.Members[1].Instance = "", ""
	s.LeftOut = map[string]uint64{"\xff": 1, "\xfe": 2}
	if got := exposition(t, s); !strings.Contains(got, `bmpha_router_messages_total{router="a?",source="bmp"}`) {
		t.Errorf("no metric for the router with a strange name in\n%s", got)
	}
}

// A router that is decoded here and comes through pmacct too is two.
func TestARouterWithTwoSourcesIsTwo(t *testing.T) {
	s := active()
	s.Routers[1] = Router{Identity: s.Routers[0].Identity, Source: SourcePmacct, Heard: true, Messages: 5}
	got := exposition(t, s)
	for _, want := range []string{
		`bmpha_router_messages_total{router="192.0.2.1",source="bmp"} 1.2345678e+07`,
		`bmpha_router_messages_total{router="192.0.2.1",source="pmacct"} 5`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
}

// pmacct connects a producer for every dump: those with one client id are one.
func TestProducersOfOneClientAreSummedUp(t *testing.T) {
	s := beside()
	s.Intake.Producers = append(s.Intake.Producers,
		Producer{Address: "127.0.0.1:50124", ClientID: "rdkafka", Since: ago(time.Minute), Records: 7},
		Producer{Address: "127.0.0.1:50125", ClientID: "\xff", Since: ago(time.Second), Records: 1})
	got := exposition(t, s)
	for _, want := range []string{
		`bmpha_intake_producers 3`,
		`bmpha_intake_producer_records{client_id="rdkafka"} 3.9000007e+07`,
		`bmpha_intake_producer_records{client_id="?"} 1`,
		`bmpha_intake_producer_since_timestamp_seconds{client_id="rdkafka"} 1.794978245e+09`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
}

func TestWhatIsNotConfiguredIsNoMetric(t *testing.T) {
	got := exposition(t, active())
	for _, not := range []string{"bmpha_relay_", "bmpha_intake_", "bmpha_spool_", "bmpha_link_", "bmpha_read_back_", "bmpha_routers_takeover_"} {
		if strings.Contains(got, not) {
			t.Errorf("%s is there although there is none", not)
		}
	}
}

func TestWhatIsNotKnownIsNoMetric(t *testing.T) {
	s := active()
	s.Members[0] = Member{Name: "pmacct-1", Kind: KindNative, Timestamp: 5}
	s.Hold.LowWater = 0
	s.Routers[0].LowWater = 0
	s.Routers[0].Session = nil
	got := exposition(t, s)
	for _, not := range []string{
		`bmpha_member_heartbeat_age_seconds{instance="",member="pmacct-1"}`,
		`bmpha_member_active{instance="",member="pmacct-1"}`,
		`bmpha_hold_low_water_lag_seconds `,
		`bmpha_router_low_water_timestamp_seconds{router="192.0.2.1",source="bmp"}`,
		`bmpha_router_session_since_timestamp_seconds{port="34567"`,
	} {
		if strings.Contains(got, not) {
			t.Errorf("%s is there although it is not known", not)
		}
	}
}

func BenchmarkScrape(b *testing.B) {
	s := active()
	for range 500 {
		s.Routers = append(s.Routers, s.Routers[0])
		s.Routers[len(s.Routers)-1].Identity = "r" + strconv.Itoa(len(s.Routers))
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(NewMetrics(func() Status { return *s }))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := registry.Gather(); err != nil {
			b.Fatal(err)
		}
	}
}

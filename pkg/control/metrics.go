package control

import (
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics is a Prometheus collector that derives every metric from one Status per
// scrape, so that /metrics, the API and the screen never disagree.
type Metrics struct {
	status func() Status
	now    func() time.Time
}

// NewMetrics returns a collector over status, which is called once per scrape and
// must be safe for concurrent use.
func NewMetrics(status func() Status) *Metrics { return &Metrics{status: status, now: time.Now} }

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for i := range metrics {
		ch <- metrics[i].desc
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	s := m.status()
	s.Problems = Problems(&s, m.now())
	for i := range metrics {
		d := &metrics[i]
		seen := make(map[string]bool)
		d.each(&s, func(value float64, labels ...string) {
			// Two names may be one after cleaning; a sample given twice would
			// fail the whole scrape.
			key := strings.Join(labels, "\x00")
			if seen[key] {
				return
			}
			seen[key] = true
			metric, err := prometheus.NewConstMetric(d.desc, d.kind, value, labels...)
			if err != nil {
				metric = prometheus.NewInvalidMetric(d.desc, err)
			}
			ch <- metric
		})
	}
}

// emit writes one sample with the values of the labels.
type emit func(value float64, labels ...string)

type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	each func(*Status, emit)
}

func newMetric(kind prometheus.ValueType, name, help string, labels []string, each func(*Status, emit)) metric {
	return metric{prometheus.NewDesc("bmpha_"+name, help, labels, nil), kind, each}
}

func gauge(name, help string, value func(*Status) float64) metric {
	return newMetric(prometheus.GaugeValue, name, help, nil, func(s *Status, e emit) { e(value(s)) })
}

func counter(name, help string, value func(*Status) uint64) metric {
	return newMetric(prometheus.CounterValue, name, help, nil, func(s *Status, e emit) { e(float64(value(s))) })
}

// counters is one counter for each key of a map.
func counters(name, help, label string, values func(*Status) map[string]uint64) metric {
	return newMetric(prometheus.CounterValue, name, help, []string{label}, func(s *Status, e emit) {
		m := values(s)
		for _, k := range sortedKeys(m) {
			e(float64(m[k]), text(k))
		}
	})
}

// The metrics of a router have its source as a label: it is there twice when its
// own session is decoded here and pmacct makes records of it too.
func routerGauge(name, help string, value func(*Router) float64) metric {
	return newMetric(prometheus.GaugeValue, "router_"+name, help, []string{"router", "source"}, func(s *Status, e emit) {
		for i := range s.Routers {
			e(value(&s.Routers[i]), text(s.Routers[i].Identity), text(s.Routers[i].Source))
		}
	})
}

func routerCounter(name, help string, value func(*Router) uint64) metric {
	return newMetric(prometheus.CounterValue, "router_"+name, help, []string{"router", "source"}, func(s *Status, e emit) {
		for i := range s.Routers {
			e(float64(value(&s.Routers[i])), text(s.Routers[i].Identity), text(s.Routers[i].Source))
		}
	})
}

func routerCounters(name, help, label string, values func(*Router) map[string]uint64) metric {
	return newMetric(prometheus.CounterValue, "router_"+name, help, []string{"router", "source", label}, func(s *Status, e emit) {
		for i := range s.Routers {
			m := values(&s.Routers[i])
			for _, k := range sortedKeys(m) {
				e(float64(m[k]), text(s.Routers[i].Identity), text(s.Routers[i].Source), text(k))
			}
		}
	})
}

// memberGauge leaves out members for which value says so: what is not known is
// not 0.
func memberGauge(name, help string, value func(*Member) (float64, bool)) metric {
	return newMetric(prometheus.GaugeValue, "member_"+name, help, []string{"member", "instance"}, func(s *Status, e emit) {
		for i := range s.Members {
			m := &s.Members[i]
			if v, known := value(m); known {
				e(v, text(m.Name), text(m.Instance))
			}
		}
	})
}

func relayMetric(kind prometheus.ValueType, name, help string, value func(*RelayTarget) float64) metric {
	return newMetric(kind, "relay_"+name, help, []string{"target"}, func(s *Status, e emit) {
		for i := range s.Relay {
			e(value(&s.Relay[i]), text(s.Relay[i].Address))
		}
	})
}

func relayGauge(name, help string, value func(*RelayTarget) float64) metric {
	return relayMetric(prometheus.GaugeValue, name, help, value)
}

func relayCounter(name, help string, value func(*RelayTarget) uint64) metric {
	return relayMetric(prometheus.CounterValue, name, help, func(t *RelayTarget) float64 { return float64(value(t)) })
}

func intakeMetric(kind prometheus.ValueType, name, help string, value func(*Intake) float64) metric {
	return newMetric(kind, "intake_"+name, help, nil, func(s *Status, e emit) {
		if s.Intake != nil {
			e(value(s.Intake))
		}
	})
}

func intakeGauge(name, help string, value func(*Intake) float64) metric {
	return intakeMetric(prometheus.GaugeValue, name, help, value)
}

func intakeCounter(name, help string, value func(*Intake) uint64) metric {
	return intakeMetric(prometheus.CounterValue, name, help, func(n *Intake) float64 { return float64(value(n)) })
}

// eachClient sums the producers up by their client ids. n may be nil.
func (n *Intake) eachClient(each func(id string, since time.Time, records uint64)) {
	if n == nil {
		return
	}
	type sum struct {
		since   time.Time
		records uint64
	}
	clients := make(map[string]sum)
	for i := range n.Producers {
		p := &n.Producers[i]
		c, known := clients[text(p.ClientID)]
		if !known || p.Since.Before(c.since) {
			c.since = p.Since
		}
		c.records += p.Records
		clients[text(p.ClientID)] = c
	}
	for id, c := range clients {
		each(id, c.since, c.records)
	}
}

func fileMetric(kind prometheus.ValueType, name, help string, value func(*IntakeFile) float64) metric {
	return newMetric(kind, "intake_file_"+name, help, []string{"path"}, func(s *Status, e emit) {
		if s.Intake == nil {
			return
		}
		for i := range s.Intake.Files {
			e(value(&s.Intake.Files[i]), text(s.Intake.Files[i].Path))
		}
	})
}

func spoolMetric(kind prometheus.ValueType, name, help string, value func(*Spool) float64) metric {
	return newMetric(kind, "spool_"+name, help, nil, func(s *Status, e emit) {
		if s.Spool != nil {
			e(value(s.Spool))
		}
	})
}

func tablesGauge(name, help string, value func(*Tables) uint64) metric {
	return newMetric(prometheus.GaugeValue, "tables_"+name, help, nil, func(s *Status, e emit) {
		if s.Tables != nil {
			e(float64(value(s.Tables)))
		}
	})
}

func tableMetric(kind prometheus.ValueType, name, help string, value func(*RouterRoutes) float64) metric {
	return newMetric(kind, "router_table_"+name, help, []string{"router"}, func(s *Status, e emit) {
		for i := range s.Routers {
			if t := s.Routers[i].Table; t != nil {
				e(value(t), text(s.Routers[i].Identity))
			}
		}
	})
}

func dumpMetric(kind prometheus.ValueType, name, help string, value func(*Dump) float64) metric {
	return newMetric(kind, "dump_"+name, help, nil, func(s *Status, e emit) {
		if s.Dump != nil {
			e(value(s.Dump))
		}
	})
}

func dumpCounter(name, help string, value func(*Dump) uint64) metric {
	return dumpMetric(prometheus.CounterValue, name, help, func(d *Dump) float64 { return float64(value(d)) })
}

// lastDump leaves out what is not known before the first whole dump.
func lastDump(name, help string, value func(*DumpDone) float64) metric {
	return newMetric(prometheus.GaugeValue, "dump_last_"+name, help, nil, func(s *Status, e emit) {
		if s.Dump != nil && s.Dump.Last != nil {
			e(value(s.Dump.Last))
		}
	})
}

// readingGauge has the members that hear a router as labels.
func readingGauge(name, help string, value func(*Reading) float64) metric {
	return newMetric(prometheus.GaugeValue, "router_reading_"+name, help, []string{"router", "source", "member"}, func(s *Status, e emit) {
		for i := range s.Routers {
			r := &s.Routers[i]
			for j := range r.Readings {
				e(value(&r.Readings[j]), text(r.Identity), text(r.Source), text(r.Readings[j].Member))
			}
		}
	})
}

func linkGauge(name, help string, value func(*LinkPeer) (float64, bool)) metric {
	return newMetric(prometheus.GaugeValue, "link_"+name, help, []string{"member"}, func(s *Status, e emit) {
		if s.Link == nil {
			return
		}
		for i := range s.Link.Peers {
			if v, known := value(&s.Link.Peers[i]); known {
				e(v, text(s.Link.Peers[i].Name))
			}
		}
	})
}

func readBackGauge(name, help string, value func(*ReadBack) float64) metric {
	return newMetric(prometheus.GaugeValue, "read_back_"+name, help, nil, func(s *Status, e emit) {
		if s.ReadBack != nil {
			e(value(s.ReadBack))
		}
	})
}

// takenOver is of the last time that routers went on here, if there was one.
func takenOver(name, help string, value func(*TakenOver) float64) metric {
	return newMetric(prometheus.GaugeValue, "routers_takeover_"+name, help, nil, func(s *Status, e emit) {
		if len(s.Takeovers) > 0 {
			e(value(&s.Takeovers[0]))
		}
	})
}

func spoolGauge(name, help string, value func(*Spool) float64) metric {
	return spoolMetric(prometheus.GaugeValue, name, help, value)
}

func spoolCounter(name, help string, value func(*Spool) uint64) metric {
	return spoolMetric(prometheus.CounterValue, name, help, func(p *Spool) float64 { return float64(value(p)) })
}

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// epoch is t in seconds since the epoch, 0 for the zero time.
func epoch(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMicro()) / 1e6
}

func micros(us int64) float64 { return float64(us) / 1e6 }

// text makes a string from outside a valid label.
func text(s string) string { return clean(s) }

func (t *Takeover) orNone() *Takeover {
	if t == nil {
		return &Takeover{}
	}
	return t
}

// metrics is every metric, in the order of Status.
var metrics = []metric{
	newMetric(prometheus.GaugeValue, "info", "1, with what is running as labels.",
		[]string{"version", "revision", "process", "instance", "host", "cluster", "cluster_id"}, func(s *Status, e emit) {
			e(1, text(s.Program.Version), text(s.Program.Revision), text(s.Process), text(s.Instance), text(s.Host), text(s.Cluster.Name), strconv.Itoa(s.Cluster.ID))
		}),
	gauge("status_timestamp_seconds", "When the collector made the document that these metrics come from.", func(s *Status) float64 { return epoch(s.At) }),
	gauge("start_timestamp_seconds", "When the process was started.", func(s *Status) float64 { return epoch(s.Started) }),
	gauge("uptime_seconds", "Time since the start.", func(s *Status) float64 { return float64(s.Uptime) }),
	gauge("pid", "Process id.", func(s *Status) float64 { return float64(s.PID) }),
	newMetric(prometheus.GaugeValue, "role", "1 for the role that the collector has, 0 for the others.", []string{"role"}, func(s *Status, e emit) {
		for _, r := range []string{RoleActive, RoleStandby, RoleStarting} {
			e(bit(s.Role == r), r)
		}
	}),
	newMetric(prometheus.GaugeValue, "forced", "1 for the role that an operator has forced.", []string{"role"}, func(s *Status, e emit) {
		for _, r := range []string{RoleActive, RoleStandby} {
			e(bit(s.Forced == r), r)
		}
	}),
	gauge("role_since_timestamp_seconds", "When the role was taken.", func(s *Status) float64 { return epoch(s.Since) }),
	gauge("takeover_token", "Rises with every takeover in the cluster.", func(s *Status) float64 { return float64(s.Token) }),
	counters("role_changes_total", "Changes of the role, by the new one.", "role", func(s *Status) map[string]uint64 { return s.RoleChanges }),
	gauge("shadowed", "1 while another process uses the same name.", func(s *Status) float64 { return bit(s.Shadowed) }),
	gauge("unfit", "1 while the collector cannot do its job and another member that can is to be active.", func(s *Status) float64 { return bit(s.Unfit != "") }),
	gauge("degraded", "1 when there is a problem that is more than a notice.", func(s *Status) float64 { return bit(degraded(s.Problems)) }),
	newMetric(prometheus.GaugeValue, "problems", "Problems found now, by code and severity.", []string{"code", "severity"}, func(s *Status, e emit) {
		type kind struct {
			code     string
			severity Severity
		}
		n := make(map[kind]int)
		for _, p := range s.Problems {
			n[kind{p.Code, p.Severity}]++
		}
		for k, v := range n {
			e(float64(v), k.code, string(k.severity))
		}
	}),
	gauge("members", "Members of the cluster that are alive, this one included.", func(s *Status) float64 {
		n := 0
		for i := range s.Members {
			if !s.Members[i].Gone {
				n++
			}
		}
		return float64(n)
	}),
	gauge("members_expected", "Members that there should be, 0 when nobody has said.", func(s *Status) float64 { return float64(s.Cluster.Expected) }),
	memberGauge("alive", "1 while the member's timestamp has not expired.", func(m *Member) (float64, bool) { return bit(!m.Gone), true }),
	memberGauge("active", "1 when the member says that it is active.", func(m *Member) (float64, bool) { return bit(m.Role == RoleActive), m.Role != "" }),
	memberGauge("forced", "1 when the member is forced into its role.", func(m *Member) (float64, bool) { return bit(m.Forced != ""), m.Role != "" }),
	memberGauge("unfit", "1 when the member says that it cannot do its job.", func(m *Member) (float64, bool) { return bit(m.Unfit != ""), m.Kind != KindNative }),
	memberGauge("timestamp_microseconds", "The member's timestamp in Redis; the smallest is active.", func(m *Member) (float64, bool) { return float64(m.Timestamp), true }),
	memberGauge("heartbeat_age_seconds", "Time since the member last spoke.", func(m *Member) (float64, bool) { return float64(m.HeartbeatAge), m.Kind != KindNative }),
	memberGauge("role_since_timestamp_seconds", "When the member took its role.", func(m *Member) (float64, bool) { return epoch(m.Since), !m.Since.IsZero() }),
	memberGauge("takeover_token", "The last takeover that the member knows.", func(m *Member) (float64, bool) { return float64(m.Token), m.Kind != KindNative }),
	memberGauge("routers_heard", "Routers that the member hears.", func(m *Member) (float64, bool) { return float64(m.RoutersHeard), m.Kind != KindNative }),
	memberGauge("routers_sent", "Routers that the member sends.", func(m *Member) (float64, bool) { return float64(m.RoutersSent), m.Kind != KindNative }),
	memberGauge("ready", "1 when the member is about to take routers over and has read what their sender wrote.", func(m *Member) (float64, bool) { return bit(m.Ready), m.Kind != KindNative }),
	memberGauge("pid", "Process id of the member on its host.", func(m *Member) (float64, bool) { return float64(m.PID), m.PID != 0 }),

	gauge("routers", "Routers known to this collector.", func(s *Status) float64 { return float64(len(s.Routers)) }),
	newMetric(prometheus.GaugeValue, "router_info", "1, with who the router is, where its records come from and who sends them as labels.",
		[]string{"router", "address", "sysname", "source", "sender"}, func(s *Status, e emit) {
			for i := range s.Routers {
				r := &s.Routers[i]
				e(1, text(r.Identity), text(r.Address), text(r.SysName), text(r.Source), text(r.Sender))
			}
		}),
	newMetric(prometheus.GaugeValue, "router_sender", "1, with who is to send what the router says, and why, as labels.",
		[]string{"router", "source", "sender", "why"}, func(s *Status, e emit) {
			for i := range s.Routers {
				if r := &s.Routers[i]; r.Sender != "" {
					e(1, text(r.Identity), text(r.Source), text(r.Sender), text(r.Why))
				}
			}
		}),
	readingGauge("behind_seconds", "By how much the member's reading of the router is behind.", func(r *Reading) float64 { return float64(r.Behind) }),
	readingGauge("whole", "1 when the member has read the table dump of the router's session.", func(r *Reading) float64 { return bit(r.Whole) }),
	readingGauge("late", "1 while the member is so far behind that another is to send.", func(r *Reading) float64 { return bit(r.Late) }),
	routerGauge("connected", "1 while the router has a session here.", func(r *Router) float64 { return bit(r.Session != nil) }),
	routerGauge("heard", "1 while the router is heard here, by its session or through pmacct.", func(r *Router) float64 { return bit(r.here()) }),
	newMetric(prometheus.GaugeValue, "router_session_since_timestamp_seconds", "When the open session began.", []string{"router", "source", "session", "port"}, func(s *Status, e emit) {
		for i := range s.Routers {
			if v := s.Routers[i].Session; v != nil {
				e(epoch(v.Since), text(s.Routers[i].Identity), text(s.Routers[i].Source), strconv.FormatUint(uint64(v.ID), 10), strconv.Itoa(v.Port))
			}
		}
	}),
	routerGauge("heard_by_members", "Members that hear the router.", func(r *Router) float64 { return float64(len(r.HeardBy)) }),
	routerGauge("sending", "1 while this collector sends what the router says.", func(r *Router) float64 { return bit(r.Sending) }),
	routerGauge("paused", "1 while the router is not read from because the hold is full.", func(r *Router) float64 { return bit(r.Paused) }),
	routerGauge("opaque", "1 while the session is passed on and cannot be decoded.", func(r *Router) float64 { return bit(r.Opaque) }),
	routerGauge("peers_up", "BGP peers of the router that are up.", func(r *Router) float64 { return float64(r.PeersUp) }),
	routerGauge("last_heard_timestamp_seconds", "When the last byte came, 0 for never.", func(r *Router) float64 { return epoch(r.LastHeard) }),
	routerCounter("sessions_total", "Sessions that the router has opened here.", func(r *Router) uint64 { return r.Sessions }),
	routerCounter("messages_total", "BMP messages received from the router.", func(r *Router) uint64 { return r.Messages }),
	routerCounter("bytes_total", "Bytes of BMP received from the router.", func(r *Router) uint64 { return r.Bytes }),
	routerGauge("behind_messages", "Messages that this collector is to send and Kafka has not acknowledged.", func(r *Router) float64 { return float64(r.Behind.Messages) }),
	routerGauge("behind_bytes", "Bytes of these messages.", func(r *Router) float64 { return float64(r.Behind.Bytes) }),
	routerGauge("behind_age_seconds", "Age of the oldest of these messages.", func(r *Router) float64 { return float64(r.Behind.OldestAge) }),
	routerGauge("held_messages", "Messages of the router in memory.", func(r *Router) float64 { return float64(r.Held.Messages) }),
	routerGauge("held_bytes", "Bytes of these messages.", func(r *Router) float64 { return float64(r.Held.Bytes) }),
	routerGauge("held_age_seconds", "Age of the oldest of these messages.", func(r *Router) float64 { return float64(r.Held.OldestAge) }),
	routerGauge("spooled_messages", "Messages of the router on disk.", func(r *Router) float64 { return float64(r.Spooled.Messages) }),
	routerGauge("spooled_bytes", "Bytes of these messages.", func(r *Router) float64 { return float64(r.Spooled.Bytes) }),
	routerGauge("spooled_age_seconds", "Age of the oldest of these messages.", func(r *Router) float64 { return float64(r.Spooled.OldestAge) }),
	newMetric(prometheus.GaugeValue, "router_low_water_timestamp_seconds", "Everything that the sender received before is in Kafka.", []string{"router", "source"}, func(s *Status, e emit) {
		for i := range s.Routers {
			if v := s.Routers[i].LowWater; v > 0 {
				e(micros(v), text(s.Routers[i].Identity), text(s.Routers[i].Source))
			}
		}
	}),
	newMetric(prometheus.GaugeValue, "router_low_water_lag_seconds", "How far the router's low-water mark is behind.", []string{"router", "source"}, func(s *Status, e emit) {
		for i := range s.Routers {
			if r := &s.Routers[i]; r.LowWater > 0 {
				e(float64(r.LowWaterLag), text(r.Identity), text(r.Source))
			}
		}
	}),
	routerCounter("acknowledged_messages_total", "Messages whose records are all in Kafka.", func(r *Router) uint64 { return r.Acknowledged }),
	routerCounters("freed_messages_total", "Messages forgotten because another collector has sent them, by how that is known.", "reason", func(r *Router) map[string]uint64 { return r.Freed }),
	routerCounters("dropped_messages_total", "Messages that were neither sent nor known to be, by reason.", "reason", func(r *Router) map[string]uint64 { return r.Dropped }),
	routerCounter("replayed_messages_total", "Messages sent that may have been in Kafka already.", func(r *Router) uint64 { return r.Replayed }),
	routerCounter("skipped_records_total", "Records not sent because those of another sender are in Kafka.", func(r *Router) uint64 { return r.Skipped }),
	routerCounter("doubtful_records_total", "Records sent although those of another sender may be in Kafka.", func(r *Router) uint64 { return r.Doubtful }),
	routerCounter("records_total", "Records encoded.", func(r *Router) uint64 { return r.Records }),
	routerCounter("rollbacks_total", "Times that sending went back to the first record not acknowledged.", func(r *Router) uint64 { return r.Rollbacks }),
	routerCounter("decode_errors_total", "Messages that could not be fully decoded.", func(r *Router) uint64 { return r.DecodeErrors }),

	gauge("hold_messages", "Messages in memory.", func(s *Status) float64 { return float64(s.Hold.Messages) }),
	gauge("hold_bytes", "Memory in use by them.", func(s *Status) float64 { return float64(s.Hold.Bytes) }),
	gauge("hold_limit_bytes", "Most memory that may be used.", func(s *Status) float64 { return float64(s.Hold.Limit) }),
	gauge("hold_age_seconds", "Age of the oldest message.", func(s *Status) float64 { return float64(s.Hold.OldestAge) }),
	newMetric(prometheus.GaugeValue, "hold_low_water_timestamp_seconds", "Least low-water mark of all routers.", nil, func(s *Status, e emit) {
		if s.Hold.LowWater > 0 {
			e(micros(s.Hold.LowWater))
		}
	}),
	newMetric(prometheus.GaugeValue, "hold_low_water_lag_seconds", "How far the least low-water mark is behind.", nil, func(s *Status, e emit) {
		if s.Hold.LowWater > 0 {
			e(float64(s.Hold.LowWaterLag))
		}
	}),
	counters("hold_dropped_messages_total", "Messages that were neither sent nor known to be, by reason.", "reason", func(s *Status) map[string]uint64 { return s.Hold.Dropped }),
	gauge("hold_last_drop_timestamp_seconds", "When the last message was dropped, 0 for never.", func(s *Status) float64 { return epoch(s.Hold.LastDropAt) }),
	gauge("hold_paused_routers", "Routers not read from because the hold is full.", func(s *Status) float64 { return float64(s.Hold.Paused) }),

	newMetric(prometheus.GaugeValue, "sink_connected", "1 while records can be delivered, as far as is known.", []string{"kind", "target"}, func(s *Status, e emit) {
		e(bit(s.Sink.Connected), text(s.Sink.Kind), text(s.Sink.Target))
	}),
	gauge("sink_in_flight_records", "Records handed over and not yet reported.", func(s *Status) float64 { return float64(s.Sink.InFlight) }),
	gauge("sink_window_records", "Most records that may be in flight.", func(s *Status) float64 { return float64(s.Sink.Window) }),
	gauge("sink_stalled_seconds", "Time since the last progress while records wait.", func(s *Status) float64 { return float64(s.Sink.Stalled) }),
	counter("sink_handed_records_total", "Records handed over.", func(s *Status) uint64 { return s.Sink.Handed }),
	counter("sink_acknowledged_records_total", "Records acknowledged.", func(s *Status) uint64 { return s.Sink.Acknowledged }),
	counter("sink_failed_records_total", "Records reported as failed, to be sent again.", func(s *Status) uint64 { return s.Sink.Failed }),
	counter("sink_dead_letter_records_total", "Records that can never be taken, set aside.", func(s *Status) uint64 { return s.Sink.DeadLetters }),
	counter("sink_rebuilt_total", "Times that the producer was made anew.", func(s *Status) uint64 { return s.Sink.Rebuilt }),
	gauge("sink_fencing", "1 when Kafka refuses what a sender still has that was replaced without having stopped.", func(s *Status) float64 { return bit(s.Sink.Fencing) }),
	counter("sink_fenced_total", "Times that Kafka refused this collector because another one had replaced it.", func(s *Status) uint64 { return s.Sink.Fenced }),
	counter("sink_fenced_others_total", "Times that this collector had Kafka refuse another one.", func(s *Status) uint64 { return s.Sink.FencedOthers }),
	gauge("sink_fence_error_timestamp_seconds", "When another one could not be shut out, 0 if that has worked since or was never wanted.", func(s *Status) float64 { return epoch(s.Sink.FenceErrorAt) }),
	counter("sink_unsure_records_total", "Records of commits whose outcome is not known.", func(s *Status) uint64 { return s.Sink.Unsure }),
	counter("sink_bytes_total", "Bytes of keys, headers and values handed over.", func(s *Status) uint64 { return s.Sink.Bytes }),
	gauge("sink_last_error_timestamp_seconds", "When the last error was reported, 0 for never.", func(s *Status) float64 { return epoch(s.Sink.LastErrorAt) }),

	newMetric(prometheus.GaugeValue, "relay_state", "1 for the state of the target, 0 for the others.", []string{"target", "state"}, func(s *Status, e emit) {
		for i := range s.Relay {
			for _, state := range []string{RelayIdle, RelayUp, RelayDown} {
				e(bit(s.Relay[i].State == state), text(s.Relay[i].Address), state)
			}
		}
	}),
	relayGauge("since_timestamp_seconds", "Since when the target is in its state, 0 for not known.", func(t *RelayTarget) float64 { return epoch(t.Since) }),
	relayGauge("sessions", "Sessions passed on to the target now.", func(t *RelayTarget) float64 { return float64(t.Sessions) }),
	relayGauge("waiting_sessions", "Open sessions that the target lacks and that have to start over for it.", func(t *RelayTarget) float64 { return float64(t.Waiting) }),
	relayGauge("buffered_bytes", "Bytes not yet taken by the target.", func(t *RelayTarget) float64 { return float64(t.Buffered) }),
	relayGauge("limit_bytes", "Most bytes that may be buffered for the target.", func(t *RelayTarget) float64 { return float64(t.Limit) }),
	relayGauge("paused", "1 while the target is held back, because what it makes would find no room.", func(t *RelayTarget) float64 { return bit(t.Paused) }),
	relayCounter("bytes_total", "Bytes passed on to the target.", func(t *RelayTarget) uint64 { return t.Bytes }),
	relayCounter("cut_sessions_total", "Sessions cut because the target's buffer was full.", func(t *RelayTarget) uint64 { return t.Cut }),
	relayCounter("lost_connections_total", "Connections that the target ended or refused.", func(t *RelayTarget) uint64 { return t.Lost }),
	relayCounter("reset_sessions_total", "Router sessions closed so that they start over for the target.", func(t *RelayTarget) uint64 { return t.Resets }),
	relayCounter("replayed_sessions_total", "Router sessions replayed for the target from their table, or begun to be.", func(t *RelayTarget) uint64 { return t.Replays }),
	relayGauge("replaying_sessions", "Router sessions that are being replayed for the target.", func(t *RelayTarget) float64 { return float64(t.Replaying) }),

	intakeGauge("producers", "Producers that are connected.", func(n *Intake) float64 { return float64(len(n.Producers)) }),
	// A producer's port is no label: pmacct makes a producer for every table dump.
	newMetric(prometheus.GaugeValue, "intake_producer_since_timestamp_seconds", "When the oldest open connection of the producers with this client id was made.", []string{"client_id"}, func(s *Status, e emit) {
		s.Intake.eachClient(func(id string, since time.Time, _ uint64) { e(epoch(since), id) })
	}),
	newMetric(prometheus.GaugeValue, "intake_producer_records", "Records that came over the open connections of the producers with this client id.", []string{"client_id"}, func(s *Status, e emit) {
		s.Intake.eachClient(func(id string, _ time.Time, records uint64) { e(float64(records), id) })
	}),
	intakeCounter("records_total", "Records taken in from producers and files.", func(n *Intake) uint64 { return n.Records }),
	intakeCounter("bytes_total", "Bytes of these records.", func(n *Intake) uint64 { return n.Bytes }),
	intakeCounter("refused_total", "Connections and requests refused.", func(n *Intake) uint64 { return n.Refused }),
	intakeGauge("lost_timestamp_seconds", "When the last producer disconnected, 0 while there is one and before the first.", func(n *Intake) float64 { return epoch(n.Lost) }),
	fileMetric(prometheus.GaugeValue, "offset_bytes", "How far the file has been read.", func(f *IntakeFile) float64 { return float64(f.Offset) }),
	fileMetric(prometheus.GaugeValue, "behind_bytes", "What is written to the file and not yet read.", func(f *IntakeFile) float64 { return float64(f.Behind) }),
	fileMetric(prometheus.CounterValue, "lines_total", "Lines read from the file.", func(f *IntakeFile) float64 { return float64(f.Lines) }),
	fileMetric(prometheus.GaugeValue, "last_read_timestamp_seconds", "When something was last read from the file, 0 for never.", func(f *IntakeFile) float64 { return epoch(f.LastRead) }),
	fileMetric(prometheus.GaugeValue, "failing", "1 while the file cannot be read.", func(f *IntakeFile) float64 { return bit(f.Error != "") }),

	spoolGauge("messages", "Messages on disk.", func(p *Spool) float64 { return float64(p.Messages) }),
	spoolGauge("bytes", "Bytes of these messages.", func(p *Spool) float64 { return float64(p.Bytes) }),
	spoolGauge("age_seconds", "Age of the oldest message on disk.", func(p *Spool) float64 { return float64(p.OldestAge) }),
	spoolGauge("used_bytes", "Disk space in use.", func(p *Spool) float64 { return float64(p.Used) }),
	spoolGauge("limit_bytes", "Most disk space that may be used.", func(p *Spool) float64 { return float64(p.Limit) }),
	spoolGauge("failing", "1 while the disk cannot be used.", func(p *Spool) float64 { return bit(p.Error != "") }),
	spoolCounter("recovered_messages_total", "Messages that an earlier process left and that were found at the start.", func(p *Spool) uint64 { return p.Recovered }),
	spoolCounter("cut_bytes_total", "Bytes that a crash had left unreadable.", func(p *Spool) uint64 { return p.Cut }),

	tablesGauge("routes", "Routes of all routers that are kept.", func(t *Tables) uint64 { return t.Routes }),
	tablesGauge("attribute_sets", "Distinct sets of path attributes among them.", func(t *Tables) uint64 { return t.AttributeSets }),
	tablesGauge("used_bytes", "Memory taken for them.", func(t *Tables) uint64 { return t.Used }),
	tablesGauge("limit_bytes", "Most memory that they may take, 0 for no limit.", func(t *Tables) uint64 { return t.Limit }),
	tableMetric(prometheus.GaugeValue, "routes", "Routes of the router that are kept.", func(t *RouterRoutes) float64 { return float64(t.Routes) }),
	tableMetric(prometheus.GaugeValue, "stale_routes", "Those of its session before that it has not said again yet.", func(t *RouterRoutes) float64 { return float64(t.Stale) }),
	tableMetric(prometheus.GaugeValue, "bytes", "Memory that they take, without attributes, which all routers share.", func(t *RouterRoutes) float64 { return float64(t.Bytes) }),
	tableMetric(prometheus.CounterValue, "repeated_total", "Routes that it has said again and that were not sent again.", func(t *RouterRoutes) float64 { return float64(t.Repeated) }),
	tableMetric(prometheus.GaugeValue, "given_up", "1 while its table is given up, for want of memory.", func(t *RouterRoutes) float64 { return bit(t.GivenUp != "") }),
	dumpCounter("whole_total", "Dumps of routers' tables written, for each of topic and file.", func(d *Dump) uint64 { return d.Whole }),
	dumpCounter("interrupted_total", "Dumps begun and not ended: another collector took over, or the session ended.", func(d *Dump) uint64 { return d.Interrupted }),
	dumpCounter("failed_total", "Dumps that failed.", func(d *Dump) uint64 { return d.Failed }),
	dumpCounter("unsettled_total", "Dumps begun although the router was still telling its table.", func(d *Dump) uint64 { return d.Unsettled }),
	dumpCounter("missed_total", "Slots of routers that passed without a whole dump.", func(d *Dump) uint64 { return d.Missed }),
	dumpMetric(prometheus.GaugeValue, "failing", "1 while the last dump has failed.", func(d *Dump) float64 { return bit(d.LastError != "") }),
	dumpMetric(prometheus.GaugeValue, "period_seconds", "Time from one dump of a router to the next.", func(d *Dump) float64 { return float64(d.Period) }),
	dumpMetric(prometheus.GaugeValue, "slots", "Slots of a period, over which routers are spread.", func(d *Dump) float64 { return float64(d.Slots) }),
	newMetric(prometheus.GaugeValue, "dump_last_error_timestamp_seconds", "When the last dump has failed, Unix time.", nil, func(s *Status, e emit) {
		if s.Dump != nil && !s.Dump.LastErrorAt.IsZero() {
			e(epoch(s.Dump.LastErrorAt))
		}
	}),
	lastDump("timestamp_seconds", "When the last whole dump was done, Unix time.", func(d *DumpDone) float64 { return epoch(d.At) }),
	lastDump("slot_timestamp_seconds", "The timestamp that it has in its records, Unix time.", func(d *DumpDone) float64 { return epoch(d.Slot) }),
	lastDump("duration_seconds", "How long it took.", func(d *DumpDone) float64 { return float64(d.Took) }),
	lastDump("routes", "Routes in it.", func(d *DumpDone) float64 { return float64(d.Routes) }),
	lastDump("records", "Records in it.", func(d *DumpDone) float64 { return float64(d.Records) }),

	newMetric(prometheus.GaugeValue, "redis_state", "1 for the state of Redis, 0 for the others.", []string{"state"}, func(s *Status, e emit) {
		for _, state := range []string{RedisOff, RedisOK, RedisFailing, RedisUnreachable} {
			e(bit(s.Redis.State == state), state)
		}
	}),
	gauge("redis_last_ok_age_seconds", "Time since the last round that succeeded.", func(s *Status) float64 { return float64(s.Redis.LastOKAge) }),
	gauge("redis_round_trip_seconds", "Time that the last good round took.", func(s *Status) float64 { return float64(s.Redis.RoundTrip) }),
	gauge("redis_heartbeat_seconds", "Time from round to round, as configured.", func(s *Status) float64 { return float64(s.Redis.Heartbeat) }),
	gauge("redis_expiry_seconds", "Life of what a round writes, as configured.", func(s *Status) float64 { return float64(s.Redis.Expiry) }),
	counter("redis_rounds_total", "Rounds that succeeded.", func(s *Status) uint64 { return s.Redis.Rounds }),
	counter("redis_failures_total", "Rounds that failed.", func(s *Status) uint64 { return s.Redis.Failures }),
	counter("redis_skipped_total", "Values read from Redis that were not sound.", func(s *Status) uint64 { return s.Redis.Skipped }),

	newMetric(prometheus.GaugeValue, "link_holds_roles", "1 when the roles stay without Redis while the members hear each other directly.", nil, func(s *Status, e emit) {
		if s.Link != nil {
			e(bit(s.Link.Holds))
		}
	}),
	linkGauge("connected", "1 while there is a direct connection to the member.", func(p *LinkPeer) (float64, bool) { return bit(p.Connected), true }),
	linkGauge("since_timestamp_seconds", "When the connection was made, or ended.", func(p *LinkPeer) (float64, bool) { return epoch(p.Since), !p.Since.IsZero() }),
	linkGauge("heard_age_seconds", "Time since the member was last heard directly.", func(p *LinkPeer) (float64, bool) { return float64(p.HeardAge), p.HeardAge > 0 }),
	linkGauge("round_trip_seconds", "The last that was measured.", func(p *LinkPeer) (float64, bool) { return float64(p.RoundTrip), p.RoundTrip > 0 }),
	readBackGauge("topics", "Topics whose ends are followed.", func(b *ReadBack) float64 { return float64(b.Topics) }),
	readBackGauge("partitions", "Partitions of these topics.", func(b *ReadBack) float64 { return float64(b.Partitions) }),
	readBackGauge("known_partitions", "Partitions whose end is known.", func(b *ReadBack) float64 { return float64(b.Known) }),
	readBackGauge("reading", "1 while the topics are read because a takeover is under way or expected.", func(b *ReadBack) float64 { return bit(b.Reading) }),
	readBackGauge("ready", "1 while all is read that the present sender writes.", func(b *ReadBack) float64 { return bit(b.Ready) }),
	readBackGauge("unknown_seconds", "For how long the end of some partition was not known, 0 while all are.", func(b *ReadBack) float64 { return float64(b.Unknown) }),
	readBackGauge("history_seconds", "How far back the ends are remembered.", func(b *ReadBack) float64 { return float64(b.History) }),
	readBackGauge("last_error_timestamp_seconds", "When the last error was reported, 0 for never.", func(b *ReadBack) float64 { return epoch(b.LastErrorAt) }),

	gauge("sessions", "Sessions open now.", func(s *Status) float64 { return float64(s.Sessions.Now) }),
	gauge("sessions_max", "Most sessions that may be open.", func(s *Status) float64 { return float64(s.Sessions.Max) }),
	counter("sessions_accepted_total", "Sessions accepted.", func(s *Status) uint64 { return s.Sessions.Accepted }),
	counters("sessions_refused_total", "Connections refused, by reason.", "reason", func(s *Status) map[string]uint64 { return s.Sessions.Refused }),
	counters("sessions_closed_total", "Sessions that have ended, by reason.", "reason", func(s *Status) map[string]uint64 { return s.Sessions.Closed }),

	gauge("last_takeover_timestamp_seconds", "When this collector last became active, 0 for never.", func(s *Status) float64 { return epoch(s.LastTakeover.orNone().At) }),
	gauge("last_takeover_seconds", "How long the last takeover took.", func(s *Status) float64 { return float64(s.LastTakeover.orNone().Duration) }),
	gauge("last_takeover_replayed_records", "Messages sent since the last takeover that may have been in Kafka already.", func(s *Status) float64 { return float64(s.LastTakeover.orNone().Replayed) }),
	gauge("last_takeover_token", "Token of the last takeover by this collector.", func(s *Status) float64 { return float64(s.LastTakeover.orNone().Token) }),

	counters("takeovers_total", "Times that routers went on here behind another sender, by what had become of that one.", "how", func(s *Status) map[string]uint64 { return s.TakeoversTotal }),
	takenOver("timestamp_seconds", "When routers last went on here behind another sender.", func(t *TakenOver) float64 { return epoch(t.At) }),
	takenOver("planned", "1 if the other sender had stopped for that, or left in good order.", func(t *TakenOver) float64 { return bit(t.Planned) }),
	takenOver("token", "Token of that time.", func(t *TakenOver) float64 { return float64(t.Token) }),
	takenOver("routers", "Routers that went on.", func(t *TakenOver) float64 { return float64(t.Routers) }),
	takenOver("waiting_routers", "Of these, that wait until it is known what Kafka has.", func(t *TakenOver) float64 { return float64(t.Waiting) }),
	takenOver("gap_seconds", "Time without a sender, 0 if it is not known.", func(t *TakenOver) float64 { return float64(t.Gap) }),
	takenOver("wait_seconds", "The longest time that a router waited until what Kafka has was known.", func(t *TakenOver) float64 { return float64(t.Took) }),
	takenOver("read_back_records", "Records read from the ends of the topics.", func(t *TakenOver) float64 { return float64(t.ReadBack) }),
	takenOver("skipped_records", "Records not sent because Kafka has them.", func(t *TakenOver) float64 { return float64(t.Skipped) }),
	takenOver("doubtful_records", "Records sent although Kafka may have them.", func(t *TakenOver) float64 { return float64(t.Doubtful) }),
	takenOver("blind_routers", "Routers that went on without knowing what Kafka has.", func(t *TakenOver) float64 { return float64(t.Blind) }),
	takenOver("blind_messages", "What was held of them, all of which Kafka may have.", func(t *TakenOver) float64 { return float64(t.BlindMessages) }),

	counters("messages_total", "BMP messages received, by type.", "type", func(s *Status) map[string]uint64 { return s.Messages }),
	counter("message_bytes_total", "Bytes of BMP messages received.", func(s *Status) uint64 { return s.MessageBytes }),
	counters("left_out_total", "What decoding left out or could not use, by reason.", "reason", func(s *Status) map[string]uint64 { return s.LeftOut }),
}

package control

import (
	"strings"
	"time"
)

// StatusVersion is the version of the status document that this package writes.
// Readers accept later ones.
const StatusVersion = 1

// Seconds is a span of time in seconds. Make it with Seconds(d.Seconds()).
type Seconds float64

// Duration returns s as a time.Duration.
func (s Seconds) Duration() time.Duration { return time.Duration(float64(s) * float64(time.Second)) }

// Roles of a collector.
const (
	RoleStarting = "starting" // no election round yet; sends nothing
	RoleStandby  = "standby"
	RoleActive   = "active"
)

// Kinds of members.
const (
	KindBMPHA  = "bmpha"
	KindNative = "native" // a pmacct with its own HA: tells nothing but its timestamp
)

// States of Redis.
const (
	RedisOff         = "off"         // none is configured
	RedisOK          = "ok"          // the last round succeeded
	RedisFailing     = "failing"     // rounds fail, the role is kept for now
	RedisUnreachable = "unreachable" // counts as gone: every collector is active, unless Redis.Held
)

// A Status is everything that a collector tells about itself at one moment.
//
// Points in time are wall-clock times (RFC 3339); ages and spans are seconds as
// of At. A field that is not known is left out. Counters count since the start
// of the process unless they say otherwise, and never go down.
type Status struct {
	Version int       `json:"v"`  // StatusVersion
	At      time.Time `json:"at"` // when the document was made

	Program  Program   `json:"program"`
	Process  string    `json:"process"`  // name in the cluster
	Instance string    `json:"instance"` // random per start, 16 hex digits
	Host     string    `json:"host,omitempty"`
	PID      int       `json:"pid"`
	Started  time.Time `json:"started"`
	Uptime   Seconds   `json:"uptime_seconds"`
	Cluster  Cluster   `json:"cluster"`

	Role   string    `json:"role"`             // active, standby, starting
	Forced string    `json:"forced,omitempty"` // active, standby; absent when automatic
	Reason string    `json:"reason"`           // of the role, in words
	Since  time.Time `json:"since"`            // of the role
	Token  uint64    `json:"token"`            // rises with every takeover in the cluster

	// RoleChanges counts changes of the own role, by the new role.
	RoleChanges map[string]uint64 `json:"role_changes"`
	// Shadowed is set while another live process uses the same process name and
	// keeps this one from taking part.
	Shadowed bool `json:"shadowed"`
	// Unfit is why the collector cannot do its job, so that another member that can
	// is to be active; absent when it can.
	Unfit string `json:"unfit,omitempty"`
	// Degraded are the reasons, in words, why the collector itself thinks that it
	// cannot do its job. Empty means healthy as far as it knows.
	Degraded []string `json:"degraded"`
	// Problems is what Problems found when the document was served. The collector
	// leaves it empty.
	Problems []Problem `json:"problems"`

	Members []Member `json:"members"` // self included, in no order
	Routers []Router `json:"routers"` // known to this collector, in no order
	Hold    Hold     `json:"hold"`
	Sink    Sink     `json:"sink"`
	// Relay are the stations that every session is passed on to; absent when there
	// are none.
	Relay []RelayTarget `json:"relay,omitempty"`
	// Intake is where pmacct's records come in; absent when there is none.
	Intake *Intake `json:"intake,omitempty"`
	// Spool is the disk space for what memory has no room for; absent when there
	// is none.
	Spool *Spool `json:"spool,omitempty"`
	// Tables is what is kept of the routers' routes; absent when nothing is.
	Tables *Tables `json:"tables,omitempty"`
	// Dump is how the dumps of tables go; absent when there are none.
	Dump  *Dump `json:"dump,omitempty"`
	Redis Redis `json:"redis"`
	// Link is how things stand with the direct connections to the other members;
	// absent when there are none.
	Link *Link `json:"link,omitempty"`
	// ReadBack is what is known of the ends of the topics; absent when they are not
	// read back.
	ReadBack     *ReadBack `json:"read_back,omitempty"`
	Sessions     Sessions  `json:"sessions"`
	LastTakeover *Takeover `json:"last_takeover,omitempty"`
	// Takeovers are the last times that routers went on here behind another sender,
	// the newest first: a few of them.
	Takeovers []TakenOver `json:"takeovers,omitempty"`
	// TakeoversTotal counts all of them, by what had become of the other one.
	TakeoversTotal map[string]uint64 `json:"takeovers_total"`

	// Messages counts BMP messages received from all routers, by type:
	// route_monitoring, statistics_report, peer_down, peer_up, initiation,
	// termination, route_mirroring, unknown.
	Messages map[string]uint64 `json:"messages"`
	// MessageBytes counts the bytes of these messages.
	MessageBytes uint64 `json:"message_bytes"`
	// LeftOut counts what decoding left out or could not use, by reason, such as
	// malformed or unknown_attributes.
	LeftOut map[string]uint64 `json:"left_out"`
}

// Program says what is running.
type Program struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"` // of the source
	Go       string `json:"go,omitempty"`
}

// Cluster names the collectors that belong together.
type Cluster struct {
	Name string `json:"name"`
	ID   int    `json:"id"`
	// Expected is the number of members that there should be; 0 when nobody has
	// said. Fewer live ones are a problem.
	Expected int `json:"expected_members,omitempty"`
}

// A Member is a collector of the cluster as its own words in Redis have it.
type Member struct {
	Name     string `json:"name"`
	Instance string `json:"instance,omitempty"` // hex; absent for native members
	Kind     string `json:"kind"`               // bmpha, native
	Self     bool   `json:"self"`
	// Gone is set when its timestamp has expired. It is shown for a while.
	Gone   bool   `json:"gone"`
	Role   string `json:"role,omitempty"`   // absent for native members
	Forced string `json:"forced,omitempty"` // active, standby
	Reason string `json:"reason,omitempty"`
	// Timestamp is the value in Redis, in µs since the Unix epoch: the smallest
	// is active. Forced members write values with a meaning of their own.
	Timestamp uint64 `json:"timestamp_us"`
	// HeartbeatAge is the time since it last spoke, by Redis' clock; absent for
	// native members.
	HeartbeatAge Seconds   `json:"heartbeat_age_seconds,omitempty"`
	Since        time.Time `json:"since,omitzero"` // of its role
	Token        uint64    `json:"token,omitempty"`
	// Unfit is why it says that it cannot do its job; absent when it can.
	Unfit        string `json:"unfit,omitempty"`
	RoutersHeard int    `json:"routers_heard"`
	RoutersSent  int    `json:"routers_sent"`
	// Ready is set when it is about to take routers over and has read all that their
	// sender has written.
	Ready bool `json:"ready"`
	// Link is the host:port where it is reached directly; absent if it is not.
	Link    string `json:"link,omitempty"`
	Version string `json:"version,omitempty"`
	Host    string `json:"host,omitempty"`
	PID     int    `json:"pid,omitempty"`
}

// A Router is a BMP speaker as this collector knows it: one that has or had a
// session here, one that another member hears, or one that the configuration
// names.
type Router struct {
	Identity string `json:"identity"` // the same on all collectors
	Address  string `json:"address,omitempty"`
	SysName  string `json:"sysname,omitempty"`
	SysDescr string `json:"sysdescr,omitempty"`
	// Source is where its records come from: bmp (its own session, decoded here)
	// or pmacct (the intake).
	Source string `json:"source,omitempty"`
	// Heard is set while it is heard here: by its session, or through pmacct.
	Heard bool `json:"heard"`
	// Session is the open session; absent when there is none here.
	Session  *Session `json:"session,omitempty"`
	Sessions uint64   `json:"sessions_total"` // opened here
	Messages uint64   `json:"messages"`       // BMP messages received here; of pmacct, records
	Bytes    uint64   `json:"bytes"`
	// LastHeard is when the last byte came; absent when none ever came.
	LastHeard time.Time `json:"last_heard,omitzero"`
	PeersUp   int       `json:"peers_up"`
	// HeardBy are the members that hear it, self included.
	HeardBy []string `json:"heard_by"`
	// Sender is the member that sends what the router says; "" when none is known.
	Sender string `json:"sender"`
	// Why says why that one is the sender, or what it waits for: leads, …; absent
	// when there is none.
	Why     string `json:"why,omitempty"`
	Sending bool   `json:"sending"` // this collector hands its records over
	// Readings are how the members that hear it get on with reading it, by their
	// names, self included. Members that do not say so, native ones and those of
	// earlier versions, are left out, and all others while Redis is away.
	Readings []Reading `json:"readings,omitempty"`
	// Paused is set while it is not read from, because the hold is full.
	Paused bool `json:"paused"`
	// Opaque is set when the session is passed on but can no longer be decoded.
	Opaque bool `json:"opaque"`
	// Behind is what is to be sent by this collector and not yet acknowledged.
	Behind Backlog `json:"behind"`
	// Held is all that is in memory, whoever sends.
	Held Backlog `json:"held"`
	// Spooled is what waits on disk to be read back; part of neither.
	Spooled Backlog `json:"spooled,omitzero"`
	// LowWater is the time on Redis' clock, in µs since the Unix epoch, before
	// which everything received is acknowledged, as told by the sender; absent
	// when nobody tells.
	LowWater int64 `json:"low_water_us,omitempty"`
	// LowWaterLag is how far LowWater is behind Redis' clock.
	LowWaterLag  Seconds           `json:"low_water_lag_seconds,omitempty"`
	Acknowledged uint64            `json:"acknowledged"` // messages whose records are all in Kafka
	Freed        map[string]uint64 `json:"freed"`        // messages that another has sent, by reason: mark, window
	Dropped      map[string]uint64 `json:"dropped"`      // messages, by reason
	Replayed     uint64            `json:"replayed"`     // messages sent that may be in Kafka already
	// Skipped counts records that were left out because another sender's are in
	// Kafka, Doubtful those that were sent although it may have them.
	Skipped      uint64 `json:"skipped_records"`
	Doubtful     uint64 `json:"doubtful_records"`
	Records      uint64 `json:"records"`   // encoded
	Rollbacks    uint64 `json:"rollbacks"` // times the send cursor went back
	DecodeErrors uint64 `json:"decode_errors"`
	// Table is what is kept of its routes; absent when nothing is.
	Table *RouterRoutes `json:"table,omitempty"`
}

// Values of Router.Why. L is the member that leads: the active one.
const (
	WhyLeads       = "leads"
	WhyNative      = "native"       // a native member comes first and is taken to hear everything
	WhyRedisAway   = "redis_away"   // without Redis everybody sends
	WhyOnly        = "only"         // no other member hears it
	WhyLeaderDeaf  = "leader_deaf"  // L does not hear it
	WhyLeaderDumps = "leader_dumps" // L is not through with the table dump yet
	WhyLeaderLate  = "leader_late"  // L is behind with reading it
	WhyKept        = "kept"         // it has taken the router over, and has not given it back to L yet
	WhyLast        = "last"         // nobody hears it any more, it has sent it last
	WhyHandingOver = "handing_over" // this collector sends until that one is ready
	WhyTakingOver  = "taking_over"  // it is to send; another has not stopped yet
	WhyReadingBack = "reading_back" // it is this collector, which waits until it is known what Kafka has
)

// A Reading is how a member gets on with reading a router.
type Reading struct {
	Member string `json:"member"`
	// Behind is by how much: what came that long ago may wait in the socket; 0
	// when all that has come was read.
	Behind Seconds `json:"behind_seconds"`
	// Whole is set when the table dump with which the session began is through.
	Whole bool `json:"whole"`
	// Late is set when it is, and has been, so far behind that another is to send.
	Late  bool `json:"late"`
	Sends bool `json:"sends"` // its records may be handed over or under way there
}

// RouterRoutes is what is kept of a router's routes.
type RouterRoutes struct {
	Routes uint64 `json:"routes"`
	// Stale are those of the session before that the router has not said again yet.
	Stale uint64 `json:"stale"`
	// Settled is set when it is known to have said all that it had to say when its
	// session opened.
	Settled bool   `json:"settled"`
	Bytes   uint64 `json:"bytes"` // without attributes, which all routers share
	// Repeated counts routes that it has said again and that were not sent again.
	Repeated uint64 `json:"repeated"`
	// GivenUp is why there is no table of it any more; absent when there is one.
	GivenUp string `json:"given_up,omitempty"`
}

// Tables is what is kept of the routes of all routers.
type Tables struct {
	Kept          string `json:"kept"` // state (no attributes), full
	Routes        uint64 `json:"routes"`
	AttributeSets uint64 `json:"attribute_sets"`
	Used          uint64 `json:"used_bytes"` // with what was released and is kept for use
	Limit         uint64 `json:"limit_bytes,omitempty"`
}

// What is kept of routes.
const (
	TablesState = "state"
	TablesFull  = "full"
)

// A Session is an open TCP connection from a router.
type Session struct {
	ID    uint32    `json:"id"` // per instance, from 1
	Port  int       `json:"port"`
	Since time.Time `json:"since"`
}

// A Backlog is a run of messages in memory.
type Backlog struct {
	Messages  uint64  `json:"messages"`
	Bytes     uint64  `json:"bytes"`
	OldestAge Seconds `json:"oldest_age_seconds"` // 0 when empty
}

// Hold is the memory of all routers together.
type Hold struct {
	Backlog
	Limit uint64 `json:"limit_bytes"`
	// LowWater is the least of the routers' low-water marks in µs since the Unix
	// epoch, and LowWaterLag how far it is behind Redis' clock; absent when
	// nobody tells.
	LowWater    int64             `json:"low_water_us,omitempty"`
	LowWaterLag Seconds           `json:"low_water_lag_seconds,omitempty"`
	Dropped     map[string]uint64 `json:"dropped"` // messages, by reason
	LastDropAt  time.Time         `json:"last_drop_at,omitzero"`
	Paused      int               `json:"paused_routers"` // not read from, because of the limit
}

// Values of Router.Source.
const (
	SourceBMP    = "bmp"
	SourcePmacct = "pmacct"
)

// States of a RelayTarget.
const (
	RelayIdle = "idle" // no session to pass on yet
	RelayUp   = "up"
	RelayDown = "down"
)

// A RelayTarget is a station that every session is passed on to.
type RelayTarget struct {
	Address  string    `json:"address"`
	State    string    `json:"state"` // idle, up, down
	Since    time.Time `json:"since,omitzero"`
	Sessions int       `json:"sessions"` // passed on now
	// Waiting are the open sessions that the target lacks and that have to start
	// over for it.
	Waiting   int    `json:"waiting"`
	Buffered  uint64 `json:"buffered_bytes"` // not yet taken by the target
	Limit     uint64 `json:"limit_bytes"`
	Bytes     uint64 `json:"bytes"`     // passed on
	Cut       uint64 `json:"cut"`       // sessions cut because the buffer was full
	Lost      uint64 `json:"lost"`      // connections that the target ended or refused
	Resets    uint64 `json:"resets"`    // router sessions closed so that they start over
	Replays   uint64 `json:"replays"`   // sessions replayed from the router's table, or begun to be
	Replaying int    `json:"replaying"` // that are being replayed now
	LastError string `json:"last_error,omitempty"`
	Paused    bool   `json:"paused"` // held back, because what it makes would find no room
}

// Intake is where pmacct's records come in.
type Intake struct {
	Listen    []string   `json:"listen,omitempty"`
	Producers []Producer `json:"producers"`
	Records   uint64     `json:"records"`
	Bytes     uint64     `json:"bytes"`
	Refused   uint64     `json:"refused"` // connections and requests
	// Lost is when the last producer of live records disconnected; absent while
	// there is one, or when there never was any.
	Lost  time.Time    `json:"lost,omitzero"`
	Files []IntakeFile `json:"files,omitempty"`
}

// A Producer is a connection of pmacct's.
type Producer struct {
	Address  string    `json:"address"`
	ClientID string    `json:"client_id,omitempty"`
	Since    time.Time `json:"since"`
	Records  uint64    `json:"records"`
}

// An IntakeFile is a file that is followed.
type IntakeFile struct {
	Path     string    `json:"path"`
	Offset   int64     `json:"offset"`
	Behind   int64     `json:"behind_bytes"` // written and not yet read
	Lines    uint64    `json:"lines"`
	LastRead time.Time `json:"last_read,omitzero"`
	Error    string    `json:"error,omitempty"`
}

// Spool is disk space for what memory has no room for.
type Spool struct {
	Backlog
	Dir       string `json:"dir"`
	Used      uint64 `json:"used_bytes"` // on disk
	Limit     uint64 `json:"limit_bytes"`
	Recovered uint64 `json:"recovered"` // messages that an earlier process left
	Cut       uint64 `json:"cut_bytes"` // that a crash had left unreadable
	Error     string `json:"error,omitempty"`
}

// Dump is how the dumps of the routers' tables go. Each is counted for the topic
// and for the files, if there are both.
type Dump struct {
	Period      Seconds  `json:"period_seconds"`
	Slots       int      `json:"slots"`
	Targets     []string `json:"targets"`           // topic, file
	Running     string   `json:"running,omitempty"` // router whose table is being dumped
	Whole       uint64   `json:"whole"`             // dumps that were written
	Interrupted uint64   `json:"interrupted"`       // begun and not ended, because another collector took over or the session ended
	Failed      uint64   `json:"failed"`
	Unsettled   uint64   `json:"unsettled"` // begun although the router was still telling its table
	Missed      uint64   `json:"missed"`    // slots of routers that passed without a whole dump while this collector was the sender
	// Last is the last whole dump; absent before.
	Last *DumpDone `json:"last,omitempty"`
	// LastError is why the last dump to a target failed; absent if one was written
	// there since.
	LastError   string    `json:"last_error,omitempty"`
	LastErrorAt time.Time `json:"last_error_at,omitzero"`
}

// A DumpDone is one whole dump.
type DumpDone struct {
	Router  string    `json:"router"`
	Target  string    `json:"target"`
	Slot    time.Time `json:"slot"`
	At      time.Time `json:"at"` // when it was done
	Took    Seconds   `json:"took_seconds"`
	Routes  uint64    `json:"routes"`
	Records uint64    `json:"records"`
}

// Sink is where records go.
type Sink struct {
	Kind      string `json:"kind"`   // kafka, file, stdout
	Target    string `json:"target"` // brokers or path
	Connected bool   `json:"connected"`
	InFlight  uint64 `json:"in_flight"` // records handed over and not yet reported
	Window    uint64 `json:"window"`    // most records in flight
	// Stalled is the time since the last progress while records wait; 0 when
	// none waits.
	Stalled        Seconds `json:"stalled_seconds"`
	Handed         uint64  `json:"handed"`       // records
	Acknowledged   uint64  `json:"acknowledged"` // records
	Failed         uint64  `json:"failed"`       // records reported as failed, to be sent again
	DeadLetters    uint64  `json:"dead_letters"` // records that can never be taken, set aside
	DeadLetterFile string  `json:"dead_letter_file,omitempty"`
	Rebuilt        uint64  `json:"rebuilt"` // times the producer was made anew
	// Fencing is set when Kafka refuses what a sender still has that was replaced
	// without having stopped. Fenced counts the times that this collector was
	// refused, FencedOthers those that it had another one refused, and Unsure the
	// records of commits whose outcome is not known: in Kafka twice, perhaps.
	Fencing      bool   `json:"fencing"`
	Fenced       uint64 `json:"fenced"`
	FencedOthers uint64 `json:"fenced_others"`
	Unsure       uint64 `json:"unsure"`
	// FenceError is why another one could not be shut out when this collector last
	// wanted that; absent if it could.
	FenceError   string    `json:"fence_error,omitempty"`
	FenceErrorAt time.Time `json:"fence_error_at,omitzero"`
	Bytes        uint64    `json:"bytes"` // handed over
	LastError    string    `json:"last_error,omitempty"`
	LastErrorAt  time.Time `json:"last_error_at,omitzero"`
}

// Redis is the state of the election's meeting place.
type Redis struct {
	Address string `json:"address"`
	State   string `json:"state"` // off, ok, failing, unreachable
	// Held is set while Redis is unreachable and the roles stay, because the members
	// hear each other directly.
	Held bool `json:"roles_held,omitempty"`
	// LastOKAge is the time since the last round that succeeded; absent when none
	// has.
	LastOKAge Seconds `json:"last_ok_age_seconds,omitempty"`
	RoundTrip Seconds `json:"round_trip_seconds,omitempty"` // of the last good round
	Heartbeat Seconds `json:"heartbeat_seconds"`            // from round to round, configured
	Expiry    Seconds `json:"expiry_seconds"`               // of what a round writes, configured
	Rounds    uint64  `json:"rounds"`                       // that succeeded
	Failures  uint64  `json:"failures"`                     // rounds that failed
	Skipped   uint64  `json:"skipped"`                      // values read that were not sound
	LastError string  `json:"last_error,omitempty"`
}

// Sessions counts TCP connections from routers.
type Sessions struct {
	Now      int               `json:"now"`
	Max      int               `json:"max"`
	Accepted uint64            `json:"accepted"`
	Refused  map[string]uint64 `json:"refused"` // by reason: not_allowed, limit, …
	Closed   map[string]uint64 `json:"closed"`  // by reason: router, bad_input, …
}

// A Takeover is the last time that this collector became active. What that meant
// for the routers is in Status.Takeovers.
type Takeover struct {
	At     time.Time `json:"at"`
	From   string    `json:"from,omitempty"` // the member that was active; absent at the first start
	To     string    `json:"to"`
	Reason string    `json:"reason"`
	// Duration is from noticing until the first record was acknowledged, or, if
	// nothing was there to send, until handing over was allowed.
	Duration Seconds `json:"duration_seconds"`
	Replayed uint64  `json:"replayed_records"` // messages since then that may have been in Kafka already
	Token    uint64  `json:"token"`
}

// Values of TakenOver.How: what had become of the one that sent before.
const (
	HowHandedOver = "handed_over" // it lives and has stopped for this one
	HowStopped    = "stopped"     // it has left in good order
	HowDead       = "dead"        // its process has ended, as its host says
	HowExpired    = "expired"     // its timestamp has expired
	HowOverdue    = "overdue"     // it lives and did not stop in its time
	HowRedisAway  = "redis_away"  // it may go on: without Redis everybody sends
)

// Hows are all values of TakenOver.How.
var Hows = []string{HowHandedOver, HowStopped, HowDead, HowExpired, HowOverdue, HowRedisAway}

// A TakenOver is one time that routers went on here behind another sender, whether
// the role changed or not. Those that do so together, or within two seconds for the
// same reason, are one.
type TakenOver struct {
	At      time.Time `json:"at"`   // when the last of them was let go on; before, when it was told to
	From    string    `json:"from"` // the member that sent before
	How     string    `json:"how"`  // what had become of it: handed_over, …
	Planned bool      `json:"planned"`
	Token   uint64    `json:"token"`
	Routers int       `json:"routers"`
	Waiting int       `json:"waiting"` // of these, that are not let go on yet
	// Gap is the time without a sender, as far as it can be known here: from the last
	// word of the one before (in Redis or over the link, by Redis' clock) that had
	// come when the first router was told to go on here, to the first record of
	// theirs that Kafka acknowledged; or to the end of the waiting if nothing was
	// there to be sent by then. One that dies sends on after its last word, for a
	// quarter of a heartbeat at most, so that the true gap is shorter by as much.
	// Absent before it is over, and when the one before says nothing, as native
	// members.
	Gap Seconds `json:"gap_seconds,omitempty"`
	// Took is the longest time that a router waited for, from being told to go on
	// until what Kafka has was known.
	Took     Seconds `json:"took_seconds"`
	ReadBack uint64  `json:"read_back_records"` // read from the ends of the topics
	Skipped  uint64  `json:"skipped_records"`   // held here, and not sent because Kafka has them
	Doubtful uint64  `json:"doubtful_records"`  // sent although Kafka may have them
	// Blind are the routers that went on without knowing what Kafka has, and
	// BlindMessages what was held of them, all of which Kafka may have. Error is
	// why; absent if nothing is ever read back.
	Blind         int    `json:"blind_routers"`
	BlindMessages uint64 `json:"blind_messages"`
	Error         string `json:"error,omitempty"`
}

// Link is how things stand with the direct connections to the other members.
type Link struct {
	// Holds is set when the roles stay while Redis is away, as long as the members
	// hear each other directly.
	Holds bool       `json:"holds_roles"`
	Peers []LinkPeer `json:"peers"` // in no order
}

// A LinkPeer is another member, reached directly or to be.
type LinkPeer struct {
	Name      string `json:"name"`
	Instance  string `json:"instance,omitempty"` // hex
	Address   string `json:"address,omitempty"`
	Connected bool   `json:"connected"`
	// Since is when the connection was made, or ended; absent when there was none.
	Since     time.Time `json:"since,omitzero"`
	HeardAge  Seconds   `json:"heard_age_seconds,omitempty"` // absent for never
	RoundTrip Seconds   `json:"round_trip_seconds,omitempty"`
	// Error is why there is no connection, or why the last one has ended; while there is
	// one, why the member's death would be noticed late.
	Error string `json:"error,omitempty"`
}

// ReadBack is what is known of the ends of the topics, where this collector would
// begin to read if it had to go on behind another sender.
type ReadBack struct {
	Topics     int  `json:"topics"`
	Partitions int  `json:"partitions"`
	Known      int  `json:"known"`   // partitions whose end the last look has told
	Reading    bool `json:"reading"` // a takeover is under way, or expected
	Ready      bool `json:"ready"`   // all that the present sender writes is read at once
	// Unknown is for how long, as far as somebody has looked, the end of some
	// partition was not known; 0 while all are.
	Unknown     Seconds   `json:"unknown_seconds"`
	History     Seconds   `json:"history_seconds"` // how far back the ends are remembered
	LastError   string    `json:"last_error,omitempty"`
	LastErrorAt time.Time `json:"last_error_at,omitzero"`
}

// A ClusterView is a cluster as Redis alone shows it, without a collector.
type ClusterView struct {
	Version int       `json:"v"`
	At      time.Time `json:"at"`    // by Redis' clock
	Redis   string    `json:"redis"` // address
	Cluster Cluster   `json:"cluster"`
	Members []Member  `json:"members"`
}

// others counts the live members besides this one.
func (s *Status) others() (n int) {
	for i := range s.Members {
		if m := &s.Members[i]; !m.Self && !m.Gone && m.Name != s.Process {
			n++
		}
	}
	return n
}

// sinkName is what people call the sink.
func (s *Status) sinkName() string {
	if s.Sink.Kind == "kafka" || s.Sink.Kind == "" {
		return "Kafka"
	}
	return strings.ToUpper(s.Sink.Kind[:1]) + s.Sink.Kind[1:]
}

func total(m map[string]uint64) (n uint64) {
	for _, v := range m {
		n += v
	}
	return n
}

package sink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Defaults of Options.
const (
	DefaultWindow = 5000
	DefaultLinger = 5 * time.Millisecond

	DefaultCommitInterval = 100 * time.Millisecond

	// DefaultTransactionTimeout is the default of the property
	// transaction.timeout.ms.
	DefaultTransactionTimeout = 10 * time.Second
)

// Options say how to reach Kafka. They are the same for both Kafka sinks.
type Options struct {
	// Brokers are host:port pairs to begin with; at least one.
	Brokers []string

	// Properties are any other properties of librdkafka, except those that
	// CheckProperties refuses.
	Properties map[string]string

	TLS  TLS
	SASL SASL

	// DeadLetter is the file to which records are appended, one JSON object a
	// line, that Kafka will never take: too large, invalid, or for a partition
	// that the brokers have denied for two seconds. A record that is sent again
	// may be there again. When it is empty such a record stops its
	// stream instead, every time it is sent.
	DeadLetter string

	// Window is the greatest number of unacknowledged records; 0 means
	// DefaultWindow. One stream gets at most half of it.
	Window int

	// Linger is how long a record may wait for others to share a request with
	// it; 0 means DefaultLinger, a negative value not to wait.
	Linger time.Duration

	// TransactionalID makes the sink send in transactions, of producers whose ids
	// begin with it, so that it can be fenced: the package comment says what that
	// costs and what consumers and brokers need for it. No other sink may have the
	// same id, and a collector that starts again has to have the one it had, so
	// that nobody waits for what it left. Empty means no transactions. NewReference
	// knows none.
	TransactionalID string

	// CommitInterval is how long a transaction takes records before it is
	// committed; it is committed sooner when half of the window is in it. 0 means
	// DefaultCommitInterval; the least is 1 ms.
	CommitInterval time.Duration

	// Confirm is asked whether this sink may still send, once after each
	// initialisation of its ids, before the first commit: who initialises an id
	// last owns it, also who was just fenced for good reason. While it returns an
	// error, transactions are aborted, each after a pause of at most a second.
	// It is called from another goroutine, by no more than three at a time, with a
	// context that ends after 3 s or with the sink. nil means always.
	Confirm func(ctx context.Context) error

	// Log takes librdkafka's log lines, at most a few a second. nil discards
	// them.
	Log *slog.Logger
}

// TLS encrypts the connections to the brokers. All files are PEM.
type TLS struct {
	Enable      bool
	CAFile      string // certificates to trust; empty means the system's
	CertFile    string // own certificate
	KeyFile     string // of the own certificate
	KeyPassword string
	SkipVerify  bool // accept any certificate
}

// SASL authenticates to the brokers. The zero value means none.
type SASL struct {
	Mechanism string // PLAIN, SCRAM-SHA-256, SCRAM-SHA-512
	Username  string
	Password  string
}

// only is a rule for a property that may be given but only with these values.
type only struct {
	values []string // none: not at all
	reason string
}

const (
	reasonAcks     = "a record counts as arrived only when every in-sync replica has it"
	reasonIdem     = "without it a retried record can be stored twice or out of order"
	reasonTimeout  = "a record must never be given up, however long Kafka is away"
	reasonOptions  = "set by bmpha's own configuration"
	reasonCallback = "set by bmpha itself"
)

var promised = map[string]only{
	"acks":                                  {[]string{"all", "-1"}, reasonAcks},
	"request.required.acks":                 {[]string{"all", "-1"}, reasonAcks},
	"enable.idempotence":                    {[]string{"true"}, reasonIdem},
	"message.timeout.ms":                    {[]string{"0"}, reasonTimeout},
	"delivery.timeout.ms":                   {[]string{"0"}, reasonTimeout},
	"retries":                               {[]string{"2147483647"}, reasonTimeout},
	"message.send.max.retries":              {[]string{"2147483647"}, reasonTimeout},
	"max.in.flight":                         {[]string{"1", "2", "3", "4", "5"}, reasonIdem},
	"max.in.flight.requests.per.connection": {[]string{"1", "2", "3", "4", "5"}, reasonIdem},
	"queuing.strategy":                      {[]string{"fifo"}, "records of a router would change their order"},
	"delivery.report.only.error":            {[]string{"false"}, "without reports of success nothing would ever count as arrived"},
	"enable.gapless.guarantee":              {[]string{"false"}, "one rejected record would stop every router; bmpha keeps the order by itself"},
	"transactional.id":                      {nil, "transactions are bmpha's own, and its id is set where fencing is configured"},
	"bootstrap.servers":                     {nil, reasonOptions},
	"metadata.broker.list":                  {nil, reasonOptions},
	"test.mock.num.brokers":                 {nil, "records would go to a broker that does not exist"},
	"log.queue":                             {[]string{"true"}, reasonCallback},
	"opaque":                                {nil, reasonCallback},
	"default_topic_conf":                    {nil, reasonCallback},
	"interceptors":                          {nil, reasonCallback},
	"enabled_events":                        {nil, reasonCallback},
}

// CheckProperties tells whether the producer would take these properties: it
// returns an error that names the first one, in the order of names, that
// librdkafka does not know, whose value it does not take, or that would break a
// promise of this package, and the reason. It does no I/O, except that
// librdkafka may look for files that a property names.
func CheckProperties(properties map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		if err := checkPromise(name, properties[name]); err != nil {
			return err
		}
	}
	return checkWithLibrary(properties)
}

func checkPromise(name, value string) error {
	if strings.HasSuffix(name, "_cb") {
		return fmt.Errorf("property %s is refused: %s", name, reasonCallback)
	}
	if strings.HasPrefix(name, "go.") {
		return fmt.Errorf("property %s is refused: it belongs to a Go client, not to librdkafka", name)
	}
	rule, ok := promised[name]
	if !ok || slices.Contains(rule.values, value) {
		return nil
	}
	if len(rule.values) == 0 {
		return fmt.Errorf("property %s is refused: %s", name, rule.reason)
	}
	return fmt.Errorf("property %s must be %s: %s", name, strings.Join(rule.values, " or "), rule.reason)
}

// properties returns everything that librdkafka is told, and the check of it.
func (o *Options) properties() (map[string]string, error) {
	if len(o.Brokers) == 0 {
		return nil, errors.New("no Kafka broker given")
	}
	if o.Window < 0 {
		return nil, fmt.Errorf("window of %d records", o.Window)
	}
	if err := CheckProperties(o.Properties); err != nil {
		return nil, err
	}
	all := map[string]string{
		"client.id":               "bmpha",
		"linger.ms":               "5",
		"socket.keepalive.enable": "true",
		// A broker that is back is to be found soon: the default is 10 s.
		"reconnect.backoff.max.ms": "1000",
	}
	maps.Copy(all, o.Properties)

	var twice error
	set := func(name, value string) {
		if twice == nil {
			twice = o.once(name)
		}
		all[name] = value
	}
	if o.Linger != 0 {
		set("linger.ms", strconv.FormatFloat(max(0, o.Linger.Seconds()*1000), 'f', -1, 64))
	}
	if o.window() > 100000 {
		set("queue.buffering.max.messages", strconv.Itoa(o.window()))
	}
	connection, err := o.Connection()
	if twice == nil {
		twice = err
	}
	maps.Copy(all, connection)
	if o.CommitInterval < 0 {
		return nil, fmt.Errorf("commit interval of %v", o.CommitInterval)
	}
	if o.TransactionalID != "" {
		timeout := DefaultTransactionTimeout
		if ms, err := strconv.Atoi(all["transaction.timeout.ms"]); err == nil {
			timeout = time.Duration(ms) * time.Millisecond
		}
		if o.commitInterval() > timeout/2 {
			return nil, fmt.Errorf("commit interval of %v: transaction.timeout.ms has to be at least twice that", o.commitInterval())
		}
		all["transaction.timeout.ms"] = strconv.FormatInt(timeout.Milliseconds(), 10)
	}
	all["acks"] = "all"
	all["enable.idempotence"] = "true"
	all["message.timeout.ms"] = "0"
	delete(all, "request.required.acks")
	delete(all, "delivery.timeout.ms")
	return all, twice
}

// aliases are other names of what is set from Options. When librdkafka is told both,
// the one that it is told last counts.
var aliases = map[string]string{
	"bootstrap.servers": "metadata.broker.list",
	"linger.ms":         "queue.buffering.max.ms",
	"sasl.mechanisms":   "sasl.mechanism",
}

// once returns an error if what is set from other fields is in Properties as well.
func (o *Options) once(name string) error {
	for _, n := range []string{name, aliases[name]} {
		if _, ok := o.Properties[n]; ok && n != "" {
			return fmt.Errorf("property %s is given twice: %s", n, reasonOptions)
		}
	}
	return nil
}

// Connection returns what librdkafka is told of Brokers, TLS and SASL: the properties
// of any client of the same brokers. Secrets are among them. It is an error if
// Properties say any of it, too; it names the first in the order of names.
func (o *Options) Connection() (map[string]string, error) {
	all := map[string]string{"bootstrap.servers": strings.Join(o.Brokers, ",")}
	switch {
	case o.TLS.Enable && o.SASL.Mechanism != "":
		all["security.protocol"] = "sasl_ssl"
	case o.TLS.Enable:
		all["security.protocol"] = "ssl"
	case o.SASL.Mechanism != "":
		all["security.protocol"] = "sasl_plaintext"
	}
	if o.TLS.Enable {
		for name, value := range map[string]string{
			"ssl.ca.location": o.TLS.CAFile, "ssl.certificate.location": o.TLS.CertFile,
			"ssl.key.location": o.TLS.KeyFile, "ssl.key.password": o.TLS.KeyPassword,
		} {
			if value != "" {
				all[name] = value
			}
		}
		if o.TLS.SkipVerify {
			all["enable.ssl.certificate.verification"] = "false"
		}
	}
	if o.SASL.Mechanism != "" {
		all["sasl.mechanisms"] = o.SASL.Mechanism
		all["sasl.username"] = o.SASL.Username
		all["sasl.password"] = o.SASL.Password
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if err := o.once(name); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func (o *Options) window() int {
	if o.Window == 0 {
		return DefaultWindow
	}
	return o.Window
}

func (o *Options) commitInterval() time.Duration {
	if o.CommitInterval == 0 {
		return DefaultCommitInterval
	}
	return o.CommitInterval
}

// Redactor returns a function that takes the secrets of o out of a text.
func (o *Options) Redactor() func(string) string {
	secrets := []string{o.TLS.KeyPassword, o.SASL.Password}
	for name, value := range o.Properties {
		if strings.Contains(name, "password") || strings.Contains(name, "secret") || strings.HasSuffix(name, ".pem") ||
			name == "sasl.oauthbearer.config" {
			secrets = append(secrets, value)
		}
	}
	var pairs []string
	for _, s := range secrets {
		if s != "" {
			pairs = append(pairs, s, "[redacted]")
		}
	}
	return strings.NewReplacer(pairs...).Replace
}

// A journal passes librdkafka's log lines on, slowly, and remembers the last
// error. It is safe for concurrent use.
type journal struct {
	log    *slog.Logger
	redact func(string) string
	limit  *rate.Limiter

	mu         sync.Mutex
	suppressed int
	lastError  string
	lastAt     time.Time
}

func newJournal(o *Options) *journal {
	j := &journal{log: o.Log, redact: o.Redactor(), limit: rate.NewLimiter(2, 20)}
	if j.log == nil {
		j.log = slog.New(slog.DiscardHandler)
	}
	return j
}

// line logs a line with a severity of syslog.
func (j *journal) line(severity int, facility, text string) {
	level := slog.LevelDebug
	switch {
	case severity <= 3:
		level = slog.LevelError
	case severity == 4:
		level = slog.LevelWarn
	case severity <= 6:
		level = slog.LevelInfo
	}
	if !j.log.Enabled(context.Background(), level) {
		return
	}
	j.mu.Lock()
	if !j.limit.Allow() {
		j.suppressed++
		j.mu.Unlock()
		return
	}
	suppressed := j.suppressed
	j.suppressed = 0
	j.mu.Unlock()
	attrs := []slog.Attr{slog.String("facility", facility), slog.String("text", j.redact(text))}
	if suppressed > 0 {
		attrs = append(attrs, slog.Int("suppressed", suppressed))
	}
	j.log.LogAttrs(context.Background(), level, "kafka client", attrs...)
}

func (j *journal) fault(text string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lastError, j.lastAt = j.redact(text), time.Now()
}

// allBrokersDown is RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN. It comes behind whatever
// made the connections fail, and again with every attempt.
const allBrokersDown = -187

// symptom is fault for an error that only says that something is wrong. It does
// not cover one that says what.
func (j *journal) symptom(text string) {
	j.mu.Lock()
	told := j.lastError != "" && time.Since(j.lastAt) < time.Minute
	if told {
		j.lastAt = time.Now()
	}
	j.mu.Unlock()
	if !told {
		j.fault(text)
	}
}

func (j *journal) last() (string, time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.lastError, j.lastAt
}

// A deadRecord is a line of the dead-letter file. The byte slices are base64,
// null if they are.
type deadRecord struct {
	Time      time.Time    `json:"time"`
	Topic     string       `json:"topic"`
	Partition *int32       `json:"partition,omitempty"` // nil if it had none yet
	Timestamp int64        `json:"timestamp,omitempty"` // ms since 1970, if it brought one
	Key       []byte       `json:"key"`
	Headers   []deadHeader `json:"headers,omitempty"` // that it brought
	Header    []byte       `json:"header,omitempty"`  // bmpha's
	Value     []byte       `json:"value"`
	Error     string       `json:"error"`
}

type deadHeader struct {
	Name  string `json:"name"`
	Value []byte `json:"value"`
}

// appendDeadLetter sets a record aside, for good when it returns nil. Records
// for it are rare, so the file is opened for each.
func appendDeadLetter(path string, r *deadRecord) (err error) {
	if path == "" {
		return errors.New("no dead-letter file is configured")
	}
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode a dead letter: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return fmt.Errorf("dead-letter file: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("dead-letter file: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("dead-letter file: %w", err)
	}
	return nil
}

// checkTopic tells whether Kafka allows a name.
func checkTopic(name string) error {
	ok := name != "" && len(name) <= 249 && name != "." && name != ".."
	for i := 0; ok && i < len(name); i++ {
		c := name[i]
		ok = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-'
	}
	if !ok {
		return fmt.Errorf("topic %q: a name has 1 to 249 letters, digits, '.', '_' and '-'", name)
	}
	return nil
}

// backoff is how long to wait before the n-th rebuild in a row, from 0.
func backoff(n int) time.Duration {
	return min(100*time.Millisecond<<min(n, 10), 10*time.Second)
}

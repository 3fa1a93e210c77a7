package sink

import (
	"strings"
	"testing"
	"time"
)

func TestCheckProperties(t *testing.T) {
	for _, c := range []struct {
		name, value string
		want        string // in the error; empty: taken
	}{
		{"acks", "all", ""},
		{"acks", "-1", ""},
		{"acks", "1", "acks must be all or -1: a record counts as arrived"},
		{"request.required.acks", "0", "in-sync replica"},
		{"enable.idempotence", "true", ""},
		{"enable.idempotence", "false", "twice or out of order"},
		{"message.timeout.ms", "0", ""},
		{"message.timeout.ms", "300000", "never be given up"},
		{"delivery.timeout.ms", "120000", "never be given up"},
		{"retries", "3", "never be given up"},
		{"message.send.max.retries", "0", "never be given up"},
		{"max.in.flight", "5", ""},
		{"max.in.flight", "6", "max.in.flight"},
		{"max.in.flight.requests.per.connection", "1000000", "max.in.flight.requests.per.connection"},
		{"queuing.strategy", "lifo", "order"},
		{"delivery.report.only.error", "true", "arrived"},
		{"enable.gapless.guarantee", "true", "every router"},
		{"transactional.id", "x", "transactions"},
		{"bootstrap.servers", "x:1", "own configuration"},
		{"test.mock.num.brokers", "3", "does not exist"},
		{"dr_msg_cb", "x", "bmpha itself"},
		{"go.batch.producer", "true", "Go client"},
		{"compression.type", "lz4", ""},
		{"compression.type", "nonsense", "compression.type"},
		{"partitioner", "murmur2_random", ""},
		{"linger.ms", "50", ""},
		{"no.such.property", "1", "no.such.property"},
		{"socket.timeout.ms", "soon", "socket.timeout.ms"},
		{"message.max.bytes", "2000000", ""},
	} {
		err := CheckProperties(map[string]string{"client.id": "me", c.name: c.value})
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s=%s: %v", c.name, c.value, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.name)):
			t.Errorf("%s=%s: %v, want something on %q", c.name, c.value, err, c.want)
		}
		if c.want != "" {
			if _, err := NewKafka(Options{Brokers: []string{"127.0.0.1:1"}, Properties: map[string]string{c.name: c.value}}); err == nil {
				t.Errorf("%s=%s: a sink was made", c.name, c.value)
			}
		}
	}
}

func TestProperties(t *testing.T) {
	o := Options{
		Brokers: []string{"a:1", "b:2"}, Linger: 20 * time.Millisecond,
		TLS:        TLS{Enable: true, CAFile: "/ca", CertFile: "/cert", KeyFile: "/key", KeyPassword: "s1", SkipVerify: true},
		SASL:       SASL{Mechanism: "SCRAM-SHA-512", Username: "u", Password: "s2"},
		Properties: map[string]string{"compression.type": "zstd", "acks": "-1", "client.id": "me"},
	}
	got, err := o.properties()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"bootstrap.servers": "a:1,b:2", "linger.ms": "20", "security.protocol": "sasl_ssl", "client.id": "me",
		"ssl.ca.location": "/ca", "ssl.certificate.location": "/cert", "ssl.key.location": "/key", "ssl.key.password": "s1",
		"enable.ssl.certificate.verification": "false", "sasl.mechanisms": "SCRAM-SHA-512", "sasl.username": "u",
		"sasl.password": "s2", "compression.type": "zstd", "acks": "all", "enable.idempotence": "true", "message.timeout.ms": "0",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	for _, o := range []Options{
		{Brokers: []string{"a:1"}, CommitInterval: -1},
		{Brokers: []string{"a:1"}, TransactionalID: "x", CommitInterval: 6 * time.Second},
		{Brokers: []string{"a:1"}, TransactionalID: "x", Properties: map[string]string{"transaction.timeout.ms": "100"}},
		{},
		{Brokers: []string{"a"}, Window: -1},
		{Brokers: []string{"a"}, Linger: time.Second, Properties: map[string]string{"linger.ms": "1"}},
		{Brokers: []string{"a"}, TLS: TLS{Enable: true}, Properties: map[string]string{"security.protocol": "plaintext"}},
	} {
		if _, err := o.properties(); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
}

// What has a place of its own in Options is not in Properties as well, under none of
// its names. Of several the error names the same one each time.
func TestGivenTwice(t *testing.T) {
	tls, sasl := TLS{Enable: true, CAFile: "/ca"}, SASL{Mechanism: "PLAIN", Username: "u", Password: "s2"}
	for _, c := range []struct {
		o          Options
		properties map[string]string
		want       string // named in the error; empty: taken
	}{
		{Options{Linger: time.Second}, map[string]string{"linger.ms": "1"}, "linger.ms"},
		{Options{Linger: time.Second}, map[string]string{"queue.buffering.max.ms": "1"}, "queue.buffering.max.ms"},
		{Options{}, map[string]string{"queue.buffering.max.ms": "1"}, ""},
		{Options{SASL: sasl}, map[string]string{"sasl.mechanisms": "PLAIN"}, "sasl.mechanisms"},
		{Options{SASL: sasl}, map[string]string{"sasl.mechanism": "PLAIN"}, "sasl.mechanism"},
		{Options{TLS: tls}, map[string]string{"sasl.mechanism": "PLAIN"}, ""},
		{Options{TLS: tls, SASL: sasl}, map[string]string{
			"sasl.password": "x", "security.protocol": "ssl", "ssl.ca.location": "/x", "sasl.username": "x",
		}, "sasl.password"},
		{Options{Linger: time.Second, SASL: sasl}, map[string]string{"linger.ms": "1", "sasl.mechanism": "PLAIN"}, "linger.ms"},
	} {
		for range 20 {
			c.o.Brokers, c.o.Properties = []string{"a:1"}, c.properties
			switch _, err := c.o.properties(); {
			case c.want == "" && err != nil, c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), "property "+c.want+" is given twice")):
				t.Fatalf("%v: %v, want %q", c.properties, err, c.want)
			}
		}
	}
}

// What librdkafka says of a property does not show a secret one.
func TestSecretsInErrors(t *testing.T) {
	for _, m := range makers {
		_, err := m.make(Options{
			Brokers: []string{"127.0.0.1:1"},
			TLS:     TLS{Enable: true, KeyFile: "/does/not/exist/hunter2", KeyPassword: "hunter2"},
		})
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", m.name, err)
		}
	}
	err := CheckProperties(map[string]string{"ssl.keystore.password": "hunter2", "ssl.key.pem": "hunter2", "acks": "hunter2"})
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Error(err)
	}
}

// TestSymptomCoversNothing: that all brokers are down is known soon enough; why is
// what an operator needs.
func TestSymptomCoversNothing(t *testing.T) {
	j := newJournal(&Options{})
	last := func(want string) {
		t.Helper()
		if got, at := j.last(); got != want || time.Since(at) > time.Minute {
			t.Errorf("last error %q at %s, want %q", got, at, want)
		}
	}
	j.symptom("all brokers are down")
	last("all brokers are down")
	j.fault("authentication failed")
	j.symptom("all brokers are down")
	last("authentication failed")
	j.fault("connection refused")
	last("connection refused")
	j.lastAt = time.Now().Add(-2 * time.Minute)
	j.symptom("all brokers are down")
	last("all brokers are down")
}

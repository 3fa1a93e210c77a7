package topic

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
	"golang.org/x/time/rate"
)

// concerns are the beginnings of the names of properties that say how to reach
// brokers; those of a producer's own would only be complained about.
var concerns = []string{
	"ssl.", "sasl.", "security.", "enable.ssl.", "enable.sasl.", "https.", "socket.", "broker.", "client.",
	"connections.", "reconnect.", "retry.backoff", "metadata.", "topic.metadata.", "api.version.", "debug",
}

// settings returns what librdkafka is told for looks, and for reading.
func settings(o *Options) (reach, read kafka.ConfigMap, err error) {
	k := &o.Kafka
	if len(k.Brokers) == 0 {
		return nil, nil, errors.New("topic reader: no Kafka broker given")
	}
	all := kafka.ConfigMap{
		"client.id":                "bmpha",
		"socket.keepalive.enable":  "true",
		"socket.nagle.disable":     "true",
		"reconnect.backoff.ms":     "50",
		"reconnect.backoff.max.ms": "1000",
	}
	for name, value := range k.Properties {
		for _, prefix := range concerns {
			if strings.HasPrefix(name, prefix) {
				all[name] = value
			}
		}
	}
	connection, err := k.Connection()
	if err != nil {
		return nil, nil, fmt.Errorf("topic reader: %w", err)
	}
	for name, value := range connection {
		all[name] = value
	}
	all["go.logs.channel.enable"] = true
	// To ask for a topic must not make it, by a producer either.
	all["allow.auto.create.topics"] = "false"
	reach = maps.Clone(all)
	isolation := "read_uncommitted"
	if o.Committed {
		isolation = "read_committed"
	}
	for name, value := range map[string]string{
		// The library wants one; it is never joined and nothing is committed to it.
		"group.id":                 "bmpha",
		"enable.auto.commit":       "false",
		"enable.auto.offset.store": "false",
		"isolation.level":          isolation,
		// What retention has removed is skipped.
		"auto.offset.reset": "earliest",
		// Where the last offsets are no records only this tells that they are passed.
		"enable.partition.eof": "true",
		// A request that waits at the end for records delays the looks behind it on
		// the same connection, and the news that the end is reached.
		"fetch.wait.max.ms":          "5",
		"fetch.min.bytes":            "1",
		"fetch.error.backoff.ms":     "20",
		"fetch.queue.backoff.ms":     "2",
		"fetch.message.max.bytes":    "4194304",
		"fetch.max.bytes":            "16777216",
		"queued.max.messages.kbytes": "16384",
		"queued.min.messages":        "100000",
	} {
		all[name] = value
	}
	return reach, all, nil
}

// passLogs passes librdkafka's log lines on, slowly. The sink tells of the same
// brokers louder.
func (r *Reader) passLogs(lines <-chan kafka.LogEvent) {
	limit := rate.NewLimiter(1, 5)
	for l := range lines {
		level := slog.LevelDebug
		if l.Level <= 4 {
			level = slog.LevelInfo
		}
		if r.o.Log.Enabled(context.Background(), level) && limit.Allow() {
			r.o.Log.LogAttrs(context.Background(), level, "kafka reader",
				slog.String("facility", l.Tag), slog.String("text", r.redact(l.Message)))
		}
	}
}

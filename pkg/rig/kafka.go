package rig

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"
)

// KafkaOptions are what a Kafka may be started with. The zero value is an open
// broker that makes no topic by itself.
type KafkaOptions struct {
	Dir string // where it keeps log and data; "" is a temporary folder

	// Topics are made before it counts as ready: name and partitions.
	Topics map[string]int
	// AutoCreate makes topics of one partition when they are first used.
	AutoCreate bool
	// Config is further broker configuration, such as message.max.bytes.
	Config map[string]string
	// User and Password make the broker ask for SASL/PLAIN.
	User, Password string

	// Paths is the number of proxied ways to the broker that Via gives, so that
	// one client can be cut off from Kafka and others not. Real broker only:
	// the embedded one can tell clients only one address.
	Paths int
	// Heap is the Java heap of the real broker in MiB, 384 by default.
	Heap int
}

// A Kafka is a running cluster of one broker, real or embedded. It keeps its
// records over Restart and Away.
type Kafka interface {
	Server
	// Brokers is the bootstrap address, host:port.
	Brokers() string
	// CreateTopic makes a topic; config is key=value. Making one that is there
	// is no error.
	CreateTopic(ctx context.Context, name string, partitions int, config ...string) error
	// Away makes the broker unreachable, with its records kept: connections are
	// dropped and refused. Away(false) returns when it answers again.
	Away(ctx context.Context, away bool) error
	// Client returns options for a kgo client that may do everything.
	Client() []kgo.Opt
	// Embedded says whether it runs inside this process.
	Embedded() bool
}

// StartKafka starts the real broker when it is installed and the embedded one
// otherwise.
func StartKafka(ctx context.Context, o KafkaOptions) (Kafka, error) {
	if installed(KafkaPart) {
		return StartKafkaServer(ctx, o)
	}
	return StartEmbeddedKafka(ctx, o)
}

// createTopic is CreateTopic over a client with the given options.
func createTopic(ctx context.Context, client []kgo.Opt, name string, partitions int, config []string) error {
	cl, err := kgo.NewClient(client...)
	if err != nil {
		return fmt.Errorf("create topic %s: %w", name, err)
	}
	defer cl.Close()
	cfg := make(map[string]*string)
	for _, kv := range config {
		k, v, ok := strings.Cut(kv, "=")
		if !ok {
			return fmt.Errorf("create topic %s: %q is not key=value", name, kv)
		}
		cfg[k] = kadm.StringPtr(v)
	}
	adm := kadm.NewClient(cl)
	if _, err := adm.CreateTopic(ctx, int32(partitions), 1, cfg, name); err != nil && !isExists(err) {
		return fmt.Errorf("create topic %s: %w", name, err)
	}
	// The controller has it; producers ask the broker, which hears of it later.
	return WaitFor(ctx, func() error {
		ts, err := adm.ListTopics(ctx, name)
		if err == nil {
			err = ts.Error()
		}
		if err == nil && len(ts[name].Partitions) != partitions {
			err = fmt.Errorf("topic %s has %d partitions, not %d", name, len(ts[name].Partitions), partitions)
		}
		return err
	})
}

func createTopics(ctx context.Context, k Kafka, topics map[string]int) error {
	for _, name := range slices.Sorted(maps.Keys(topics)) {
		if err := k.CreateTopic(ctx, name, topics[name]); err != nil {
			return err
		}
	}
	return nil
}

// A KafkaServer is a real Apache Kafka broker: one node that is its own
// controller (KRaft).
type KafkaServer struct {
	*Process
	o       KafkaOptions
	dir     folder
	brokers string
	admin   string // a second listener without SASL, for rig itself
	paths   []*Proxy
}

var _ Kafka = (*KafkaServer)(nil)

// StartKafkaServer formats a storage folder and starts the broker in a small
// Java machine. It takes a few seconds.
func StartKafkaServer(ctx context.Context, o KafkaOptions) (*KafkaServer, error) {
	jars, err := KafkaDir()
	if err != nil {
		return nil, fmt.Errorf("start kafka: %w", err)
	}
	if o.Heap == 0 {
		o.Heap = 384
	}
	k := &KafkaServer{o: o}
	if k.dir, err = makeFolder(o.Dir, "kafka"); err != nil {
		return nil, fmt.Errorf("start kafka: %w", err)
	}
	if err := k.start(ctx, jars); err != nil {
		for _, p := range k.paths {
			p.Close()
		}
		k.dir.remove()
		return nil, err
	}
	if err := createTopics(ctx, k, o.Topics); err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

func (k *KafkaServer) start(ctx context.Context, jars string) error {
	properties, err := k.properties()
	if err != nil {
		return fmt.Errorf("start kafka: %w", err)
	}
	file := filepath.Join(k.dir.path, "server.properties")
	if err := os.WriteFile(file, []byte(properties), 0o600); err != nil {
		return fmt.Errorf("start kafka: %w", err)
	}
	java := []string{
		fmt.Sprintf("-Xms%dm", k.o.Heap), fmt.Sprintf("-Xmx%dm", k.o.Heap),
		"-XX:+UseSerialGC", "-Xshare:auto", "-XX:-UsePerfData", "-Djava.awt.headless=true",
		"-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true",
		"-cp", filepath.Join(jars, "*"),
	}
	var id [16]byte
	rand.Read(id[:])
	id[0] &= 0x7f // a leading '-' would read as an option
	format := append(slices.Clone(java), "kafka.tools.StorageTool", "format",
		"--ignore-formatted", "-t", base64.RawURLEncoding.EncodeToString(id[:]), "-c", file)
	format = append([]string{"-XX:TieredStopAtLevel=1"}, format...)
	if out, err := exec.CommandContext(ctx, "java", format...).CombinedOutput(); err != nil {
		return fmt.Errorf("format kafka's storage in %s: %w\n%s", k.dir.path, err, out)
	}
	k.Process, err = Start(ctx, Command{
		Name: "kafka", Path: "java", Args: append(java, "kafka.Kafka", file),
		Log: filepath.Join(k.dir.path, "kafka.log"), Dir: k.dir.path,
		Ready: k.answers, ReadyWithin: 3 * time.Minute, Grace: 20 * time.Second,
	})
	return err
}

// properties writes the broker's configuration and opens the proxied paths,
// which it has to name.
func (k *KafkaServer) properties() (string, error) {
	var addrs []string
	for range 3 + k.o.Paths {
		a, err := freeAddr()
		if err != nil {
			return "", err
		}
		addrs = append(addrs, a)
	}
	controller := addrs[0]
	k.admin, k.brokers = addrs[1], addrs[2]

	protocol := "PLAINTEXT"
	if k.o.User != "" {
		protocol = "SASL_PLAINTEXT"
	}
	listeners := []string{"CONTROLLER://" + controller, "ADMIN://" + k.admin, "CLIENT://" + k.brokers}
	advertised := []string{"ADMIN://" + k.admin, "CLIENT://" + k.brokers}
	protocols := []string{"CONTROLLER:PLAINTEXT", "ADMIN:PLAINTEXT", "CLIENT:" + protocol}
	names := []string{"client"}
	for i, addr := range addrs[3:] {
		p, err := NewProxy(addr)
		if err != nil {
			return "", err
		}
		k.paths = append(k.paths, p)
		listeners = append(listeners, fmt.Sprintf("PATH%d://%s", i, addr))
		advertised = append(advertised, fmt.Sprintf("PATH%d://%s", i, p.Addr()))
		protocols = append(protocols, fmt.Sprintf("PATH%d:%s", i, protocol))
		names = append(names, fmt.Sprintf("path%d", i))
	}
	props := map[string]string{
		"process.roles":                            "broker,controller",
		"node.id":                                  "1",
		"controller.quorum.voters":                 "1@" + controller,
		"controller.listener.names":                "CONTROLLER",
		"inter.broker.listener.name":               "ADMIN",
		"listeners":                                strings.Join(listeners, ","),
		"advertised.listeners":                     strings.Join(advertised, ","),
		"listener.security.protocol.map":           strings.Join(protocols, ","),
		"log.dirs":                                 filepath.Join(k.dir.path, "data"),
		"auto.create.topics.enable":                strconv.FormatBool(k.o.AutoCreate),
		"num.partitions":                           "1",
		"offsets.topic.num.partitions":             "1",
		"offsets.topic.replication.factor":         "1",
		"transaction.state.log.num.partitions":     "1",
		"transaction.state.log.replication.factor": "1",
		"transaction.state.log.min.isr":            "1",
		"group.initial.rebalance.delay.ms":         "0",
		"num.network.threads":                      "2",
		"num.io.threads":                           "2",
		"background.threads":                       "2",
		"log.cleaner.enable":                       "false", // its buffer alone is 128 MiB
		"broker.heartbeat.interval.ms":             "200",
		"broker.session.timeout.ms":                "1500", // a killed broker may not come back sooner
	}
	if k.o.User != "" {
		props["sasl.enabled.mechanisms"] = "PLAIN"
		for _, n := range names {
			props["listener.name."+n+".plain.sasl.jaas.config"] = fmt.Sprintf(
				`org.apache.kafka.common.security.plain.PlainLoginModule required user_%s="%s";`, k.o.User, k.o.Password)
		}
	}
	maps.Copy(props, k.o.Config)
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(props)) {
		fmt.Fprintf(&b, "%s=%s\n", key, props[key])
	}
	return b.String(), nil
}

// answers is a condition for WaitFor: the broker is registered and serves.
func (k *KafkaServer) answers() error {
	c, err := net.DialTimeout("tcp", k.admin, time.Second) // cheaper than a client
	if err != nil {
		return err
	}
	c.Close()
	cl, err := kgo.NewClient(append(k.Client(), kgo.RetryTimeout(time.Second))...)
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	m, err := kadm.NewClient(cl).BrokerMetadata(ctx)
	if err != nil {
		return err
	}
	if len(m.Brokers) == 0 {
		return errors.New("no broker is registered")
	}
	return nil
}

// Embedded is false.
func (k *KafkaServer) Embedded() bool { return false }

// Brokers is the bootstrap address.
func (k *KafkaServer) Brokers() string { return k.brokers }

// Via returns the bootstrap address of the path i and the proxy that all its
// connections go through.
func (k *KafkaServer) Via(i int) (brokers string, p *Proxy) {
	return k.paths[i].Addr(), k.paths[i]
}

// Client returns options for a client on a listener of its own, without SASL.
func (k *KafkaServer) Client() []kgo.Opt { return []kgo.Opt{kgo.SeedBrokers(k.admin)} }

// CreateTopic makes a topic.
func (k *KafkaServer) CreateTopic(ctx context.Context, name string, partitions int, config ...string) error {
	return createTopic(ctx, k.Client(), name, partitions, config)
}

// Away stops the broker, or starts it again; either takes a second or two.
func (k *KafkaServer) Away(ctx context.Context, away bool) error {
	if away {
		return k.Stop()
	}
	if k.Alive() {
		return nil
	}
	return k.Restart(ctx)
}

// Close ends the broker and removes its temporary folder.
func (k *KafkaServer) Close() error {
	// Nobody needs its records any more, so a clean end would only take time.
	err := k.Kill()
	for _, p := range k.paths {
		p.Close()
	}
	return errors.Join(err, k.dir.remove())
}

// An EmbeddedKafka is kfake, an in-process broker with its records in memory.
type EmbeddedKafka struct {
	o       KafkaOptions
	door    *door
	cluster *kfake.Cluster
}

var _ Kafka = (*EmbeddedKafka)(nil)

// StartEmbeddedKafka starts a Kafka inside this process.
func StartEmbeddedKafka(ctx context.Context, o KafkaOptions) (*EmbeddedKafka, error) {
	if o.Paths > 0 {
		return nil, errors.New("start embedded kafka: it has one address and so no proxied paths")
	}
	d, err := openDoor(loopback + ":0")
	if err != nil {
		return nil, fmt.Errorf("start embedded kafka: %w", err)
	}
	k := &EmbeddedKafka{o: o, door: d}
	opts := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.DefaultNumPartitions(1),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return d, nil }),
	}
	if o.AutoCreate {
		opts = append(opts, kfake.AllowAutoTopicCreation())
	}
	if len(o.Config) > 0 {
		opts = append(opts, kfake.BrokerConfigs(o.Config))
	}
	if o.User != "" {
		opts = append(opts, kfake.EnableSASL(), kfake.Superuser("PLAIN", o.User, o.Password))
	}
	if k.cluster, err = kfake.NewCluster(opts...); err != nil {
		d.Close()
		return nil, fmt.Errorf("start embedded kafka: %w", err)
	}
	if err := createTopics(ctx, k, o.Topics); err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

// Embedded is true.
func (k *EmbeddedKafka) Embedded() bool { return true }

// Brokers is the bootstrap address.
func (k *EmbeddedKafka) Brokers() string { return k.door.addr.String() }

// Cluster gives the fake itself, for tests that inject single faults.
func (k *EmbeddedKafka) Cluster() *kfake.Cluster { return k.cluster }

// Client returns options for a client with the broker's credentials.
func (k *EmbeddedKafka) Client() []kgo.Opt {
	opts := []kgo.Opt{kgo.SeedBrokers(k.Brokers())}
	if k.o.User != "" {
		opts = append(opts, kgo.SASL(plain.Auth{User: k.o.User, Pass: k.o.Password}.AsMechanism()))
	}
	return opts
}

// CreateTopic makes a topic.
func (k *EmbeddedKafka) CreateTopic(ctx context.Context, name string, partitions int, config ...string) error {
	return createTopic(ctx, k.Client(), name, partitions, config)
}

// Away drops all connections and refuses new ones, or ends that.
func (k *EmbeddedKafka) Away(_ context.Context, away bool) error {
	if away {
		k.door.shut()
		return nil
	}
	return k.door.open()
}

// Stop is Away(true).
func (k *EmbeddedKafka) Stop() error { k.door.shut(); return nil }

// Kill is Stop: from outside, an embedded server ends the same way always.
func (k *EmbeddedKafka) Kill() error { return k.Stop() }

// Pause lets connections hang.
func (k *EmbeddedKafka) Pause() error { k.door.freeze(); return nil }

// Resume ends a Pause.
func (k *EmbeddedKafka) Resume() error { k.door.thaw(); return nil }

// Restart drops all connections and takes new ones.
func (k *EmbeddedKafka) Restart(context.Context) error {
	k.door.shut()
	return k.door.open()
}

// Close ends the broker; its records are gone.
func (k *EmbeddedKafka) Close() error {
	k.door.Close()
	k.cluster.Close()
	return nil
}

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/bmpha/bmpha/pkg/cluster"
	"github.com/bmpha/bmpha/pkg/collector"
	"github.com/bmpha/bmpha/pkg/config"
	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/dump"
	"github.com/bmpha/bmpha/pkg/election"
	"github.com/bmpha/bmpha/pkg/intake"
	"github.com/bmpha/bmpha/pkg/link"
	"github.com/bmpha/bmpha/pkg/pmacct"
	"github.com/bmpha/bmpha/pkg/relay"
	"github.com/bmpha/bmpha/pkg/signal"
	"github.com/bmpha/bmpha/pkg/sink"
	"github.com/bmpha/bmpha/pkg/spool"
	"github.com/bmpha/bmpha/pkg/systemd"
	"github.com/bmpha/bmpha/pkg/tail"
	"github.com/bmpha/bmpha/pkg/topic"
)

func runCommand() *cli.Command {
	return &cli.Command{
		Name:  "run",
		Usage: "run a collector",
		Description: "Runs until SIGTERM or SIGINT, then hands over to another member, or sends what\n" +
			"it holds if there is none, and leaves.\n\n" +
			"Signals, as with pmacct: 34 new timestamp (another member takes over),\n" +
			"35 forced active, 36 forced standby, 37 back to the election.\n\n" +
			"Example:\n" +
			"  bmpha run -c /etc/bmpha/bmpha.yaml",
		Flags: []cli.Flag{configFlag()},
		Action: func(c *cli.Context) error {
			cfg, err := loadConfig(c.String("config"))
			if err != nil {
				return err
			}
			return runCollector(c.Context, cfg, c.App.ErrWriter)
		},
	}
}

func runCollector(ctx context.Context, cfg *config.Config, stderr io.Writer) error {
	log := newLogger(cfg.Log, stderr)
	if os.Getenv("GOMEMLIMIT") == "" {
		// A full hold must not make the heap twice as large.
		debug.SetMemoryLimit(cfg.Hold.Memory + cfg.Hold.Memory/4 + 256<<20)
	}
	var running atomic.Pointer[collector.Collector]
	o, err := collectorOptions(cfg, log, func(ctx context.Context) error {
		if c := running.Load(); c != nil {
			return c.Confirm(ctx)
		}
		return errStarting
	})
	if err != nil {
		return err
	}
	col, err := collector.New(ctx, *o)
	if err != nil {
		return errors.Join(err, o.Sink.Close(0))
	}
	running.Store(col)
	so := control.ServerOptions{Socket: cfg.Control.Socket, HTTP: cfg.Control.HTTP, Backend: col, Log: log}
	if o.Table != nil {
		so.Tables = col.Tables
	}
	server, err := control.Listen(so)
	if err != nil {
		return errors.Join(err, o.Sink.Close(0))
	}
	defer server.Close()

	// The collector goes on while it hands over; what looks at it does as well.
	around, stop := context.WithCancel(context.Background())
	defer stop()
	requests, err := signal.Requests(around)
	if err != nil {
		return err
	}
	go obey(around, col, requests, log)
	go report(around, col, log)
	go func() {
		<-ctx.Done()
		notify(log, systemd.Stopping)
	}()
	if err := col.Run(ctx); err != nil {
		return err
	}
	log.Info("collector stopped")
	return nil
}

var errStarting = errors.New("the collector is starting")

// obey carries out what operators ask for by signals.
func obey(ctx context.Context, col *collector.Collector, requests <-chan signal.Request, log *slog.Logger) {
	for r := range requests {
		log.Info("signal", "number", int(r), "request", r.String())
		var err error
		switch r {
		case signal.Regenerate:
			err = col.Regenerate(ctx)
		case signal.Active:
			err = col.Force(ctx, election.ForceActive)
		case signal.Standby:
			err = col.Force(ctx, election.ForceStandby)
		case signal.Auto:
			err = col.Force(ctx, election.Auto)
		}
		if err != nil {
			return // stopping
		}
	}
}

// report tells the service manager that we are ready, how we are, and that the
// main loops turn.
func report(ctx context.Context, col *collector.Collector, log *slog.Logger) {
	interval, watched := systemd.WatchdogInterval()
	every := 2 * time.Second
	if watched {
		every = min(every, interval/2)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	notify(log, systemd.Ready)
	for {
		if watched && col.Healthy() == nil {
			notify(log, systemd.Watchdog)
		}
		st := col.Status()
		notify(log, systemd.Status(st.Role+": "+st.Reason))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func notify(log *slog.Logger, state string) {
	if err := systemd.Notify(state); err != nil {
		log.Debug("tell the service manager", "error", err)
	}
}

func newLogger(c config.Log, w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		level = slog.LevelInfo // the configuration was checked
	}
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// collectorOptions turns the configuration into what a collector is made of.
// confirm is asked by a fenced sink, see sink.Options.
func collectorOptions(cfg *config.Config, log *slog.Logger, confirm func(context.Context) error) (*collector.Options, error) {
	form, err := pmacct.ParseTimestamps(cfg.Output.Timestamps)
	if err != nil {
		return nil, cfg.ErrorAt("output.timestamps", "%v", err)
	}
	enc, err := pmacct.NewEncoder(pmacct.Options{
		Dialect: cfg.Output.Dialect, Timestamps: form, WriterID: writerID(cfg), Header: cfg.Output.Header && cfg.Sink == config.SinkKafka,
		RIB: cfg.Output.RIB == config.RIBOn,
	})
	if err != nil {
		return nil, cfg.ErrorAt("output", "%v", err)
	}
	servers, err := redisServers(cfg)
	if err != nil {
		return nil, err
	}
	out, target, err := newSink(cfg, log, confirm)
	if err != nil {
		return nil, err
	}
	keepalive := cfg.Listen.Keepalive
	if keepalive == 0 {
		keepalive = -1
	}
	o := &collector.Options{
		Version: version(), Process: cfg.Process, Cluster: cfg.Cluster.Name, ID: cfg.Cluster.ID, Members: cfg.Cluster.Members,
		Listen: cfg.Listen.Address, Allow: cfg.Listen.Allow, MaxSessions: cfg.Listen.MaxSessions,
		MaxMessage: int(cfg.Listen.MaxMessage), KeepAlive: keepalive, ReadTimeout: cfg.Listen.ReadTimeout,
		BySysName: cfg.Identity == config.IdentitySysname, Alias: cfg.Routers,
		Memory: cfg.Hold.Memory, Window: cfg.Hold.Window, Margin: cfg.Hold.Margin,
		Redis:     servers,
		Heartbeat: cfg.Redis.Heartbeat, Expiry: cfg.Redis.Expiry,
		HoldRoles: cfg.RedisLost == config.RedisLostHold, Failback: cfg.Failback == config.FailbackAuto,
		Encoder: enc,
		Topic: func(addr netip.Addr, port uint16) string {
			return config.Expand(cfg.Kafka.Topic, addr, port)
		},
		Key: func(addr netip.Addr, port uint16) []byte {
			return []byte(config.Expand(cfg.Kafka.Key, addr, port))
		},
		Sink: out, SinkKind: cfg.Sink, SinkTarget: target, DeadLetter: cfg.Kafka.DeadLetter, SinkPatience: cfg.Kafka.Patience,
		Log: log,
	}
	if kept := cfg.TableKept(); kept != config.TableOff {
		o.Table = &collector.TableOptions{
			Hashes: kept == config.TableState, Memory: cfg.TableMemory,
			Diff: cfg.Redump == config.RedumpDiff, RIB: cfg.Output.RIB == config.RIBOn,
		}
	}
	if cfg.Sink == config.SinkKafka && cfg.Output.Header && cfg.Kafka.ReadBack > 0 {
		o.ReadBack, o.ReadBackTime = &topic.Options{Kafka: sinkOptions(cfg, log), Committed: cfg.Kafka.Fencing}, cfg.Kafka.ReadBack
	}
	if cfg.Kafka.Fencing {
		o.TransactionalID = func(process string) string { return transactionalID(cfg, process) }
	}
	if l := &cfg.Link; l.Listen != "" {
		o.Link = &link.Options{Listen: l.Listen, Advertise: l.Advertise, Secret: []byte(l.Secret.Reveal())}
	}
	if o.Dump, err = dumpOptions(cfg, form); err != nil {
		return nil, err
	}
	beside(o, cfg, log)
	return o, nil
}

// dumpOptions returns how tables are dumped, nil if they are not.
func dumpOptions(cfg *config.Config, form pmacct.Timestamps) (*collector.DumpOptions, error) {
	u := &cfg.Dump
	if u.Period == 0 {
		return nil, nil
	}
	o := &collector.DumpOptions{Plan: dump.Plan{Period: u.Period, Slots: u.Slots}, Stats: u.Stats}
	if u.Topic != "" {
		o.Topic = func(addr netip.Addr, port uint16) string { return config.Expand(u.Topic, addr, port) }
	}
	if u.File == "" {
		return o, nil
	}
	zone := time.Local
	if form == pmacct.UTC {
		zone = time.UTC
	}
	o.File = func(addr netip.Addr, port uint16, slot time.Time) (path, latest string) {
		path, _ = config.ExpandFile(u.File, addr, port, slot.In(zone)) // the template was checked
		return path, config.Expand(u.Latest, addr, port)
	}
	var err error
	// In files pmacct's records have no writer, and there is no place for a header.
	if o.FileEncoder, err = pmacct.NewEncoder(pmacct.Options{Dialect: cfg.Output.Dialect, Timestamps: form}); err != nil {
		return nil, cfg.ErrorAt("output", "%v", err)
	}
	return o, nil
}

// beside fills in what concerns a pmacct that the collector stands beside.
func beside(o *collector.Options, cfg *config.Config, log *slog.Logger) {
	o.NoDecode, o.Proxy = !cfg.Decodes(), cfg.Listen.Proxy
	o.Header = cfg.Output.Header && cfg.Sink == config.SinkKafka
	o.Route = func(addr netip.Addr) string { return config.Expand("$bmp_router", addr, 0) }
	o.RelayPatience, o.IntakePatience = cfg.Relay.Patience, cfg.Intake.Patience
	if r := &cfg.Relay; len(r.To) > 0 {
		o.Relay = &relay.Options{
			Targets: r.To, Proxy: r.Proxy, Buffer: r.Buffer, Parallel: r.Parallel,
			Resync: r.Resync != config.ResyncNone, Replay: r.Resync == config.ResyncReplay, Log: log,
		}
		if o.NoDecode {
			// A router need not go faster than the pmacct that makes its records,
			// unless that stands still.
			o.Relay.Wait = 10 * time.Second
		}
	}
	if in := &cfg.Intake; len(in.Listen) > 0 {
		o.Intake = &intake.Options{
			Listen: in.Listen, Allow: in.Allow, Advertise: in.Advertise, Partitions: int32(in.Partitions),
		}
	}
	if in := &cfg.Intake; len(in.Files) > 0 {
		o.Files = &tail.Options{Patterns: in.Files, Positions: in.Positions}
	}
	if s := &cfg.Spool; s.Dir != "" {
		o.Spool = &spool.Options{Dir: s.Dir, MaxBytes: s.MaxBytes, Log: log}
	}
}

// writerID fills in the variables that pmacct knows. Only records for Kafka have
// a writer.
func writerID(cfg *config.Config) string {
	if cfg.Sink != config.SinkKafka {
		return ""
	}
	return strings.NewReplacer(
		"$proc_name", cfg.Process, "$writer_pid", strconv.Itoa(os.Getpid()), "$pmacct_build", "bmpha-"+version(),
	).Replace(cfg.Output.WriterID)
}

func newSink(cfg *config.Config, log *slog.Logger, confirm func(context.Context) error) (sink.Sink, string, error) {
	switch cfg.Sink {
	case config.SinkStdout:
		s, err := sink.NewFile("-")
		return s, "-", err
	case config.SinkFile:
		s, err := sink.NewFile(cfg.File.Path)
		return s, cfg.File.Path, err
	}
	k := &cfg.Kafka
	open := sink.NewKafka
	if k.Client == config.ClientReference {
		open = sink.NewReference
	}
	o := sinkOptions(cfg, log)
	if k.Fencing {
		o.TransactionalID, o.CommitInterval, o.Confirm = transactionalID(cfg, cfg.Process), k.CommitInterval, confirm
	}
	s, err := open(o)
	if err != nil {
		return nil, "", cfg.ErrorAt("kafka", "%v", err)
	}
	return s, strings.Join(k.Brokers, ",") + " topic " + k.Topic, nil
}

// transactionalID names the transactions of a member of the cluster. No name has a +
// in it, so no two members have the same id, nor does one have an id that the sink
// makes of another's.
func transactionalID(cfg *config.Config, process string) string {
	return fmt.Sprintf("bmpha.%s.%d.+%s", cfg.Cluster.Name, cfg.Cluster.ID, process)
}

// sinkOptions says how Kafka is reached.
func sinkOptions(cfg *config.Config, log *slog.Logger) sink.Options {
	k := &cfg.Kafka
	o := sink.Options{
		Brokers: k.Brokers, Properties: k.Properties, DeadLetter: k.DeadLetter, Window: k.InFlight, Log: log,
		TLS: sink.TLS{
			Enable: k.TLS.Enabled, CAFile: k.TLS.CA, CertFile: k.TLS.Cert, KeyFile: k.TLS.Key,
			KeyPassword: k.TLS.KeyPassword.Reveal(),
		},
		SASL: sink.SASL{Mechanism: k.SASL.Mechanism, Username: k.SASL.Username, Password: k.SASL.Password.Reveal()},
	}
	if k.TLS.Enabled && !k.TLS.VerifyHostname {
		o.Properties = maps.Clone(k.Properties)
		if o.Properties == nil {
			o.Properties = make(map[string]string)
		}
		o.Properties["ssl.endpoint.identification.algorithm"] = "none"
	}
	return o
}

// redisServers says how Redis is reached: one server, what sentinels know of, or a
// Redis Cluster.
func redisServers(cfg *config.Config) (cluster.Options, error) {
	r := &cfg.Redis
	o := cluster.Options{
		Address: r.Address, Cluster: r.Cluster, Database: r.Database, Scan: r.Scan,
		Username: r.Username, Password: r.Password.Reveal(),
		Sentinel: cluster.Sentinel{
			Master: r.Sentinel.Master, Addresses: r.Sentinel.Addresses,
			Username: r.Sentinel.Username, Password: r.Sentinel.Password.Reveal(),
		},
	}
	var err error
	o.TLS, err = redisTLS(cfg)
	return o, err
}

// redisTLS reads the certificates for Redis.
func redisTLS(cfg *config.Config) (*tls.Config, error) {
	t := &cfg.Redis.TLS
	if !t.Enabled {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName}
	if t.CA != "" {
		pem, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, cfg.ErrorAt("redis.tls.ca", "%v", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, cfg.ErrorAt("redis.tls.ca", "%s holds no certificate", t.CA)
		}
	}
	if t.Cert != "" {
		pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			return nil, cfg.ErrorAt("redis.tls.cert", "%v", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// clusterFromRedis shows a cluster without a daemon, for bmpha status --redis.
func clusterFromRedis(ctx context.Context, o cluster.Options, name string, id int) (control.ClusterView, error) {
	o.Keys, o.Deadline, o.Keep = cluster.NewKeys(name, id), 3*time.Second, 15*time.Second
	client := cluster.New(o)
	defer client.Close()
	v, err := client.Look(ctx)
	if err != nil {
		return control.ClusterView{}, err
	}
	return control.ClusterView{
		Version: control.StatusVersion, At: time.UnixMicro(v.RedisTime), Redis: o.Where(),
		Cluster: control.Cluster{Name: name, ID: id}, Members: collector.Members(v, "", 0),
	}, nil
}

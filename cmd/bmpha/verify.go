package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/bmpha/bmpha/pkg/config"
	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/table"
	"github.com/bmpha/bmpha/pkg/verify"
)

// exitUnsound is the exit code of verify when it did its work and found faults or
// differences.
const exitUnsound = 8

func verifyCommand() *cli.Command {
	return &cli.Command{
		Name:  "verify",
		Usage: "tell who sent what to a topic, and whether it is what the router says",
		Description: "Reads a topic of BMP records (pmacct's JSON, of bmpha or pmacct 1.7.7 and later) up to\n" +
			"the end that it has now, and says per router who sent when, what was repeated and\n" +
			"what was out of order. Nothing is written to Kafka. With --collector it compares the\n" +
			"table that the records make with that of the collector on this host, active or\n" +
			"standby, with --frr or --gobgp with the one that the router printed, with --against\n" +
			"with the one that another topic makes, as that of a native pmacct beside bmpha.\n\n" +
			"Examples:\n" +
			"  bmpha verify -c /etc/bmpha/bmpha.yaml\n" +
			"  bmpha verify -c /etc/bmpha/bmpha.yaml --collector\n" +
			"  bmpha verify --brokers kafka:9092 --topic bmp --collector --socket /run/bmpha/bmpha.sock\n" +
			"  bmpha verify --collector --from dump --dump-topic bmp.dump --json | jq .collector.extra\n" +
			"  bmpha verify --brokers kafka:9092 --topic bmp --from 2h --router 192.0.2.1\n" +
			"  bmpha verify --brokers kafka:9092 --topic bmp --against bmp.native\n" +
			"  bmpha verify --json | jq '.report.routers[] | {router, at_takeovers}'\n" +
			"  vtysh -c 'show bgp ipv4 unicast json' | bmpha verify --topic bmp --router 192.0.2.1 --frr -\n" +
			"  gobgp global rib -j | bmpha verify --topic bmp --router 192.0.2.2 --gobgp -\n" +
			"  gobgp neighbor 192.0.2.9 adj-in -j > adj-in\n" +
			"  bmpha verify --topic bmp --router 192.0.2.2 --gobgp adj-in --json | jq .comparison.missing\n\n" +
			"Collector: it needs table: full. All routers that it has heard are compared, unless\n" +
			"--router, --peer, --rib or --family is given. Routers go on talking meanwhile: what\n" +
			"differs at first is looked at again, in the topic and there, until it does not differ\n" +
			"or the time of --settle is over. With --from, or when the topic's beginning was\n" +
			"deleted, routes that records have not mentioned since are told apart and are no\n" +
			"difference. --from dump begins with each router's last whole dump in the topic of\n" +
			"dumps, which is read from its beginning, and the records since.\n\n" +
			"FRR: show bgp ipv4|ipv6 unicast json [detail] is compared with the post-policy\n" +
			"Adj-RIBs-In; show bgp ipv4 unicast neighbors PEER received-routes json with the\n" +
			"pre-policy one of the peer, which --peer has to name.\n" +
			"GoBGP: global rib -j is compared with post-policy, neighbor PEER adj-in -j with\n" +
			"pre-policy. The router must be quiet between the two: what it says after it printed\n" +
			"its table is a difference.\n\n" +
			"Takeovers: of each it says who took over from whom, when, and how long nobody had\n" +
			"sent; how many records told again what was there, which of them were older than\n" +
			"what was there, which were flagged as replayed and are new, and what a sender before\n" +
			"said too late. Those behind which nothing was told again are shown with --all. A\n" +
			"router that goes back to an older word just then looks like a sender that does.\n" +
			"It needs bmpha's header.\n\n" +
			"Faults are records that cannot be read, a sender's records that go back and are not\n" +
			"flagged as replayed, and a sender that others had taken over from. Repeats are\n" +
			"counted, and are no faults: they cost, and harm no table. Only a whole topic makes a\n" +
			"whole table; with --from, what was said before is missing.\n\n" +
			"Exit codes: 0 no fault, and equal if compared; 8 faults or differences; 9 the\n" +
			"collector has not heard the router; 10 it keeps no table of routes; 4 it does not\n" +
			"answer; 5 not running; 1 any other error.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "topic", Usage: "the `TOPIC`; of the configuration by default"},
			&cli.StringSliceFlag{Name: "brokers", Usage: "`HOST:PORT` of Kafka's brokers, in place of the configuration's"},
			&cli.StringFlag{
				Name: "config", Aliases: []string{"c"}, EnvVars: []string{"BMPHA_CONFIG"}, DefaultText: defaultConfig + " unless --brokers is given",
				Usage: "configuration `FILE` that names brokers, TLS, SASL and topic",
			},
			&cli.StringFlag{Name: "from", Value: "beginning", Usage: "where to begin: beginning, an offset, an RFC 3339 time, a time ago as in 90m, or dump (`WHERE`)"},
			&cli.StringFlag{Name: "dump-topic", Usage: "the `TOPIC` of --from dump; the configuration's dump.topic by default, else --topic"},
			&cli.StringFlag{Name: "until", Value: "end", Usage: "where to end, not included: end, an offset, a time, or a time ago (`WHERE`)"},
			&cli.StringFlag{Name: "router", Usage: "look at the router with this `ADDR` only"},
			&cli.BoolFlag{Name: "collector", Usage: "compare with the tables of the running collector"},
			socketFlag(),
			&cli.StringFlag{Name: "against", Usage: "compare with the tables that this `TOPIC` makes"},
			&cli.DurationFlag{Name: "settle", Value: 5 * time.Second, Usage: "`TIME` for which what differs from the collector is looked at again"},
			&cli.StringSliceFlag{Name: "frr", Usage: "compare with what FRR printed: `FILE`, or - for standard input"},
			&cli.StringSliceFlag{Name: "gobgp", Usage: "compare with what GoBGP printed: `FILE`, or - for standard input"},
			&cli.StringFlag{Name: "peer", Usage: "compare the routes of the peer with this `ADDR` only"},
			&cli.StringFlag{Name: "rib", Usage: "compare with this `RIB` in place of the usual one: adj-in-pre, adj-in-post, adj-out-pre, adj-out-post, loc"},
			&cli.StringSliceFlag{Name: "family", Usage: "compare this `FAMILY`, ipv4 or ipv6; those of the router's routes by default"},
			&cli.DurationFlag{Name: "within", Value: verify.DefaultWithin, Usage: "`TIME` in which an equal record counts as repeated, for records without bmpha's header"},
			&cli.DurationFlag{Name: "timeout", Value: 30 * time.Second, Usage: "give up after this `TIME` without an answer of Kafka"},
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "show all differences, faults and senders, not the first of each"},
			&cli.BoolFlag{Name: "json", Usage: "print everything as JSON"},
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return fmt.Errorf("verify takes no arguments, found %q", c.Args().First())
			}
			v, err := newVerification(c)
			if err != nil {
				return err
			}
			result, err := v.run(c.Context)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				e := json.NewEncoder(c.App.Writer)
				e.SetEscapeHTML(false)
				e.SetIndent("", "  ")
				err = e.Encode(result)
			} else {
				err = result.Write(c.App.Writer, c.Bool("all"))
			}
			if err != nil {
				return fmt.Errorf("write the report: %w", err)
			}
			if !result.Sound() {
				return exit(exitUnsound)
			}
			return nil
		},
	}
}

// A verification is what verify was asked to do.
type verification struct {
	topic       string
	client      []kgo.Opt
	from, until bound
	options     verify.Options
	tables      []verify.Table
	compare     bool // with tables
	scope       verify.Scope
	dumpTopic   string
	against     string        // the other topic to compare with, "" for none
	socket      string        // of the collector to compare with, "" for none
	settle      time.Duration // for which that is tried
	timeout     time.Duration
	progress    io.Writer // nil where nobody watches
}

func newVerification(c *cli.Context) (*verification, error) {
	v := &verification{timeout: c.Duration("timeout"), options: verify.Options{Within: c.Duration("within")}}
	var err error
	if v.timeout <= 0 {
		return nil, fmt.Errorf("--timeout %s: want more than 0", v.timeout)
	}
	if v.options.Within <= 0 {
		return nil, fmt.Errorf("--within %s: want more than 0", v.options.Within)
	}
	now := time.Now()
	if v.from, err = parseBound(c.String("from"), "beginning", now); err != nil {
		return nil, fmt.Errorf("--from: %w", err)
	}
	if v.until, err = parseBound(c.String("until"), "end", now); err != nil {
		return nil, fmt.Errorf("--until: %w", err)
	}
	switch {
	case v.until.dump:
		return nil, errors.New("--until dump: only --from can be dump")
	case !v.from.dump && c.IsSet("dump-topic"):
		return nil, errors.New("--dump-topic has no effect without --from dump")
	}
	if v.options.Router, err = addrFlag(c, "router"); err != nil {
		return nil, err
	}
	if v.scope.Peer, err = addrFlag(c, "peer"); err != nil {
		return nil, err
	}
	switch rib := replay.RIB(c.String("rib")); rib {
	case "", replay.InPre, replay.InPost, replay.OutPre, replay.OutPost, replay.Loc:
		v.scope.RIB = rib
	default:
		return nil, fmt.Errorf("--rib %s: want adj-in-pre, adj-in-post, adj-out-pre, adj-out-post or loc", rib)
	}
	for _, name := range c.StringSlice("family") {
		afi, ok := map[string]uint16{"ipv4": 1, "ipv6": 2}[name]
		if !ok {
			return nil, fmt.Errorf("--family %s: want ipv4 or ipv6", name)
		}
		if !slices.Contains(v.scope.AFIs, afi) {
			v.scope.AFIs = append(v.scope.AFIs, afi)
		}
	}
	if err := v.running(c); err != nil {
		return nil, err
	}
	if err := v.kafka(c); err != nil {
		return nil, err
	}
	if err := v.readTables(c); err != nil {
		return nil, err
	}
	if v.against = c.String("against"); v.against != "" {
		switch {
		case v.socket != "" || v.compare:
			return nil, errors.New("--against does not go together with --collector, --frr or --gobgp")
		case v.against == v.topic:
			return nil, fmt.Errorf("--against %s: want another topic", v.against)
		case v.from.dump || v.from.offset >= 0 || v.until.offset >= 0:
			return nil, errors.New("--against does not go together with --from dump or an offset: say a time")
		}
	}
	for _, name := range []string{"peer", "rib", "family"} {
		if c.IsSet(name) && !v.compare && v.socket == "" && v.against == "" {
			return nil, fmt.Errorf("--%s has no effect without --collector, --against, --frr or --gobgp", name)
		}
	}
	if f, ok := c.App.ErrWriter.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		v.progress = f
	}
	return v, nil
}

// running finds the collector to compare with.
func (v *verification) running(c *cli.Context) (err error) {
	v.settle = c.Duration("settle")
	switch {
	case !c.Bool("collector"):
		for _, name := range []string{"socket", "settle"} {
			if c.IsSet(name) && (name != "socket" || os.Getenv("BMPHA_SOCKET")+os.Getenv("BMPHA_CONTROL_SOCKET") == "") {
				return fmt.Errorf("--%s has no effect without --collector", name)
			}
		}
		return nil
	case c.IsSet("frr") || c.IsSet("gobgp"):
		return errors.New("--collector does not go together with --frr or --gobgp")
	case v.until != bound{offset: -1}:
		return errors.New("--collector does not go together with --until: it has no past")
	case v.settle < 0:
		return fmt.Errorf("--settle %s: want 0 or more", v.settle)
	}
	v.socket, err = socketPath(c)
	return err
}

func addrFlag(c *cli.Context, name string) (netip.Addr, error) {
	text := c.String(name)
	if text == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return a, fmt.Errorf("--%s: %w", name, err)
	}
	return a, nil
}

// readTables reads what the router printed.
func (v *verification) readTables(c *cli.Context) error {
	stdin := false
	for _, kind := range []struct {
		flag  string
		parse func(io.Reader) ([]verify.Table, error)
	}{{"frr", verify.ParseFRR}, {"gobgp", verify.ParseGoBGP}} {
		for _, name := range c.StringSlice(kind.flag) {
			v.compare = true
			var in io.Reader = os.Stdin
			if name == "-" {
				if stdin {
					return errors.New("standard input can be read only once")
				}
				stdin = true
			} else {
				f, err := os.Open(name)
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			tables, err := kind.parse(in)
			if err != nil {
				return fmt.Errorf("--%s %s: %w", kind.flag, name, err)
			}
			for _, t := range tables {
				if t.Unnamed && !v.scope.Peer.IsValid() {
					return fmt.Errorf("--%s %s: received routes do not name their peer: say --peer ADDR", kind.flag, name)
				}
			}
			v.tables = append(v.tables, tables...)
		}
	}
	return nil
}

// kafka finds out how to reach Kafka.
func (v *verification) kafka(c *cli.Context) error {
	brokers := c.StringSlice("brokers")
	v.topic, v.dumpTopic = c.String("topic"), c.String("dump-topic")
	file := c.String("config")
	if file == "" && len(brokers) == 0 {
		file = defaultConfig
	}
	if file != "" {
		cfg, err := config.Load(file, os.LookupEnv)
		if err != nil {
			return err
		}
		if v.client, err = kafkaOptions(cfg); err != nil {
			return err
		}
		if len(brokers) == 0 {
			brokers = cfg.Kafka.Brokers
		}
		if v.topic == "" && !strings.Contains(cfg.Kafka.Topic, "$") {
			v.topic = cfg.Kafka.Topic
		}
		if v.dumpTopic == "" && v.from.dump {
			if v.dumpTopic = cfg.Dump.Topic; strings.Contains(v.dumpTopic, "$") {
				return cfg.ErrorAt("dump.topic", "is not the same for all routers: say --dump-topic TOPIC")
			}
		}
	}
	v.dumpTopic = cmp.Or(v.dumpTopic, v.topic)
	if v.topic == "" {
		return errors.New("verify needs a topic: --topic TOPIC")
	}
	if len(brokers) == 0 {
		return errors.New("verify needs a broker: --brokers HOST:PORT")
	}
	v.client = append(v.client, kgo.SeedBrokers(brokers...))
	return nil
}

// kafkaOptions is kafka.tls and kafka.sasl for this client.
func kafkaOptions(cfg *config.Config) ([]kgo.Opt, error) {
	k := &cfg.Kafka
	for _, name := range slices.Sorted(maps.Keys(k.Properties)) {
		for _, sort := range []string{"security.", "sasl.", "ssl.", "enable.ssl."} {
			if strings.HasPrefix(name, sort) {
				return nil, cfg.ErrorAt("kafka.properties."+name, "verify reads without librdkafka and cannot follow its properties; use kafka.tls and kafka.sasl, or --brokers without a configuration")
			}
		}
	}
	var opts []kgo.Opt
	if k.TLS.Enabled {
		t, err := kafkaTLS(cfg)
		if err != nil {
			return nil, err
		}
		opts = append(opts, kgo.DialTLSConfig(t))
	}
	user, password := k.SASL.Username, k.SASL.Password.Reveal()
	switch k.SASL.Mechanism {
	case "PLAIN":
		opts = append(opts, kgo.SASL(plain.Auth{User: user, Pass: password}.AsMechanism()))
	case "SCRAM-SHA-256":
		opts = append(opts, kgo.SASL(scram.Auth{User: user, Pass: password}.AsSha256Mechanism()))
	case "SCRAM-SHA-512":
		opts = append(opts, kgo.SASL(scram.Auth{User: user, Pass: password}.AsSha512Mechanism()))
	}
	return opts, nil
}

func kafkaTLS(cfg *config.Config) (*tls.Config, error) {
	k := &cfg.Kafka.TLS
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if k.CA != "" {
		pem, err := os.ReadFile(k.CA)
		if err != nil {
			return nil, cfg.ErrorAt("kafka.tls.ca", "%v", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, cfg.ErrorAt("kafka.tls.ca", "no certificate in %s", k.CA)
		}
	}
	if k.Cert != "" {
		if k.KeyPassword != "" {
			return nil, cfg.ErrorAt("kafka.tls.key_password", "verify cannot read a key that is encrypted")
		}
		own, err := tls.LoadX509KeyPair(k.Cert, k.Key)
		if err != nil {
			return nil, cfg.ErrorAt("kafka.tls.cert", "%v", err)
		}
		t.Certificates = []tls.Certificate{own}
	}
	if !k.VerifyHostname {
		// The chain counts, the name does not.
		t.InsecureSkipVerify = true
		t.VerifyConnection = func(s tls.ConnectionState) error {
			o := x509.VerifyOptions{Roots: t.RootCAs, Intermediates: x509.NewCertPool()}
			for _, c := range s.PeerCertificates[1:] {
				o.Intermediates.AddCert(c)
			}
			_, err := s.PeerCertificates[0].Verify(o)
			return err
		}
	}
	return t, nil
}

// A bound is where reading begins or ends.
type bound struct {
	offset int64     // -1 when it is none
	at     time.Time // zero when it is none
	dump   bool      // the last whole one
}

// parseBound reads an offset, a time or how long ago; usual is the word for none.
func parseBound(text, usual string, now time.Time) (bound, error) {
	if text == usual {
		return bound{offset: -1}, nil
	}
	if text == "dump" {
		return bound{offset: -1, dump: true}, nil
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil && n >= 0 {
		return bound{offset: n}, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return bound{offset: -1, at: now.Add(-d)}, nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return bound{}, fmt.Errorf("%q: want %s, an offset, a time as in %s, or a time ago as in 90m", text, usual, now.UTC().Format(time.RFC3339))
	}
	return bound{offset: -1, at: at}, nil
}

func (v *verification) run(ctx context.Context) (*verify.Result, error) {
	options, from := v.options, v.from
	var dumps *verify.Dumps
	r := &verify.Result{Topic: v.topic}
	if from.dump {
		var err error
		if dumps, r.Dumps, err = v.dumps(ctx); err != nil {
			return nil, fmt.Errorf("topic %s: %w", v.dumpTopic, err)
		}
		from.at = slices.MinFunc(r.Dumps.Bases, func(a, b verify.Base) int { return a.Time.Compare(b.Time) }).Time.Add(-dumpMargin)
	}
	spans, err := v.span(ctx, v.topic, from, v.until)
	if err != nil {
		return nil, fmt.Errorf("topic %s: %w", v.topic, err)
	}
	options.Partial = slices.ContainsFunc(spans, func(s verify.Span) bool { return s.From > 0 })
	ledger := verify.New(options)
	if dumps != nil {
		ledger.Load(dumps)
	}
	var running *peeking
	if v.socket != "" {
		if running, err = v.peek(ctx, ledger); err != nil {
			return nil, err
		}
		defer running.client.Close()
	}
	if err := v.read(ctx, v.topic, spans, ledger.Record); err != nil {
		return nil, fmt.Errorf("topic %s: %w", v.topic, err)
	}
	if running != nil {
		if r.Collector, err = v.match(ctx, running, ledger, spans); err != nil {
			return nil, err
		}
	}
	r.Partitions, r.Report = spans, ledger.Report()
	if v.against != "" {
		if r.Against, err = v.other(ctx, ledger); err != nil {
			return nil, fmt.Errorf("topic %s: %w", v.against, err)
		}
	}
	if v.options.Router.IsValid() && len(r.Report.Routers) == 0 && !v.compare && v.socket == "" && v.against == "" {
		return nil, fmt.Errorf("topic %s: none of %d records is about router %s", v.topic, r.Report.Records, v.options.Router)
	}
	if !v.compare {
		return r, nil
	}
	name := v.options.Router.String()
	switch n := len(r.Report.Routers); {
	case n == 1:
		name = r.Report.Routers[0].Router
	case n > 1:
		var names []string
		for _, rt := range r.Report.Routers[:min(n, 10)] {
			names = append(names, rt.Router)
		}
		return nil, fmt.Errorf("topic %s has records of %d routers: say --router, one of %s", v.topic, n, strings.Join(names, ", "))
	case !v.options.Router.IsValid():
		name = "the router" // of which nothing is in Kafka
	}
	routes, _ := ledger.Routes(name)
	if r.Comparison, err = verify.Compare(name, v.tables, routes, v.scope); err != nil {
		return nil, fmt.Errorf("compare the tables: %w", err)
	}
	ledger.Attribute(r.Comparison)
	return r, nil
}

// other compares ledger with the other topic.
func (v *verification) other(ctx context.Context, ledger *verify.Ledger) (*verify.TopicComparison, error) {
	spans, err := v.span(ctx, v.against, v.from, v.until)
	if err != nil {
		return nil, err
	}
	options := v.options
	options.Partial = slices.ContainsFunc(spans, func(s verify.Span) bool { return s.From > 0 })
	other := verify.New(options)
	if err := v.read(ctx, v.against, spans, other.Record); err != nil {
		return nil, err
	}
	c := ledger.Against(other, v.scope)
	c.Topic, c.Partitions = v.against, spans
	return c, nil
}

// dumpMargin is how long before a dump_init came to Kafka the records are read that
// follow the dump: the first routes were read from the table before that. More than
// is needed does no harm, for all that was said since is among them.
const dumpMargin = time.Minute

// dumps reads the topic of dumps.
func (v *verification) dumps(ctx context.Context) (*verify.Dumps, *verify.DumpReport, error) {
	spans, err := v.span(ctx, v.dumpTopic, bound{offset: -1}, bound{offset: -1})
	if err != nil {
		return nil, nil, err
	}
	dumps := verify.NewDumps(v.options.Router)
	if err := v.read(ctx, v.dumpTopic, spans, dumps.Record); err != nil {
		return nil, nil, err
	}
	rep := dumps.Report()
	rep.Topic = v.dumpTopic
	if len(rep.Bases) == 0 {
		return nil, nil, fmt.Errorf("no whole dump in it, and %d that are not", rep.Broken)
	}
	return dumps, rep, nil
}

// settleStep is how long the collector and the topic are left alone between two
// looks.
const settleStep = 300 * time.Millisecond

// A peeking is a comparison with a running collector on its way.
type peeking struct {
	client *control.Client
	m      *verify.Match
	router string // the only one, "" for all
}

// peek asks the collector which routers it hears, before a long topic is read for
// nothing.
func (v *verification) peek(ctx context.Context, ledger *verify.Ledger) (p *peeking, err error) {
	p = &peeking{client: control.NewClient(v.socket), m: verify.NewMatch(ledger, v.scope)}
	if v.options.Router.IsValid() {
		p.router = v.options.Router.String()
	}
	routers := 0
	err = p.client.Peers(ctx, p.router, func(line []byte) error {
		routers++
		return p.m.Router(line)
	})
	if err == nil && routers > 0 {
		// Whether it can tell routes.
		_, err = p.client.Routes(ctx, &control.Query{Router: p.router, Limit: 1}, func([]byte) error { return nil })
	}
	if err != nil {
		err = lookup(err)
	} else if routers == 0 {
		err = cli.Exit(fmt.Sprintf("no router has connected yet to the collector at %s", v.socket), control.ExitNotFound)
	}
	if err != nil {
		p.client.Close()
		return nil, err
	}
	return p, nil
}

// match compares the tables of ledger with the collector's. It moves the ends of
// spans, up to which ledger has the records.
func (v *verification) match(ctx context.Context, p *peeking, ledger *verify.Ledger, spans []verify.Span) (*verify.TableComparison, error) {
	m := p.m
	more := func() error {
		if err := v.follow(ctx, spans, ledger); err != nil {
			return fmt.Errorf("topic %s: %w", v.topic, err)
		}
		return nil
	}
	// A long topic has grown while it was read.
	if err := more(); err != nil {
		return nil, err
	}
	if err := v.pass(ctx, p); err != nil {
		return nil, lookup(err)
	}
	began := time.Now()
	for m.Check() > 0 {
		left := v.settle - time.Since(began)
		if left <= 0 {
			break
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(min(left, settleStep)):
		}
		if err := more(); err != nil {
			return nil, err
		}
		if m.Check() == 0 {
			break
		}
		if err := v.pass(ctx, p); err != nil {
			return nil, lookup(err)
		}
	}
	r := m.Result(v.socket, time.Since(began))
	if len(r.Routers) == 0 {
		w := r.Without[0]
		return nil, cli.Exit(fmt.Sprintf("the collector at %s keeps no table of router %s: %s", v.socket, w.Router, w.Reason), control.ExitNoTable)
	}
	return r, nil
}

// pass lets the collector tell all routes, or those that are to be looked at again.
func (v *verification) pass(ctx context.Context, p *peeking) error {
	m := p.m
	asks, all := m.Open()
	m.Begin()
	if all {
		if _, err := p.client.Routes(ctx, &control.Query{Router: p.router, Peer: v.scope.Peer, Match: table.Longest}, m.Route); err != nil {
			return err
		}
	}
	for _, a := range asks {
		_, err := p.client.Routes(ctx, &control.Query{Router: a.Router, Prefix: a.Prefix, Match: table.Exact}, m.Route)
		if err != nil && !errors.As(err, new(*control.NotFound)) {
			return err
		}
	}
	m.End()
	return nil
}

// follow reads what has come since the ends of spans, and moves them.
func (v *verification) follow(ctx context.Context, spans []verify.Span, ledger *verify.Ledger) error {
	now, err := v.span(ctx, v.topic, bound{offset: -1}, bound{offset: -1})
	if err != nil {
		return err
	}
	var news []verify.Span
	for i := range spans {
		for _, s := range now {
			if s.Partition == spans[i].Partition && s.Until > spans[i].Until {
				news = append(news, verify.Span{Partition: s.Partition, From: spans[i].Until, Until: s.Until})
				spans[i].Until = s.Until
			}
		}
	}
	return v.read(ctx, v.topic, news, ledger.Record)
}

// span asks Kafka what lies between two bounds.
func (v *verification) span(ctx context.Context, topic string, from, until bound) ([]verify.Span, error) {
	asked, stop := context.WithTimeout(ctx, v.timeout)
	defer stop()
	admin, err := kgo.NewClient(v.client...)
	if err != nil {
		return nil, err
	}
	defer admin.Close()
	spans, err := spansOf(asked, kadm.NewClient(admin), topic, from, until)
	if err != nil {
		if asked.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("no answer of Kafka within %s: %w", v.timeout, err)
		}
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("the connection was closed by Kafka; are TLS, SASL and the password as it wants them? (%w)", err)
		}
		return nil, err
	}
	return spans, nil
}

// read takes what lies in spans to each.
func (v *verification) read(ctx context.Context, topic string, spans []verify.Span, each func(verify.Record)) error {
	begin := make(map[int32]kgo.Offset)
	ends := make(map[int32]int64)
	var total int64
	for _, s := range spans {
		if s.From < s.Until {
			begin[s.Partition] = kgo.NewOffset().At(s.From)
			ends[s.Partition] = s.Until
			total += s.Until - s.From
		}
	}
	if len(ends) == 0 {
		return nil
	}
	client, err := kgo.NewClient(append(slices.Clone(v.client),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: begin}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()), // what is gone must be said, not skipped
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // one may be the last before the end
	)...)
	if err != nil {
		return err
	}
	defer client.Close()
	bar := progress{w: v.progress, total: total}
	defer bar.clear()
	for len(ends) > 0 {
		wait, stop := context.WithTimeout(ctx, v.timeout)
		fetches := client.PollFetches(wait)
		late := wait.Err() != nil
		stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		for _, e := range fetches.Errors() {
			switch {
			case errors.Is(e.Err, context.DeadlineExceeded) && late:
			case errors.Is(e.Err, kerr.OffsetOutOfRange):
				return fmt.Errorf("partition %d: records were deleted before they could be read: begin later with --from", e.Partition)
			default:
				return fmt.Errorf("partition %d: %w", e.Partition, e.Err)
			}
		}
		if late && fetches.NumRecords() == 0 {
			p := slices.Min(slices.Collect(maps.Keys(ends)))
			return fmt.Errorf("partition %d: nothing came for %s, with offset %d still to come", p, v.timeout, ends[p]-1)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			end, open := ends[r.Partition]
			if !open {
				return
			}
			bar.done++
			if r.Offset >= end-1 {
				delete(ends, r.Partition)
				client.PauseFetchPartitions(map[string][]int32{topic: {r.Partition}})
			}
			if r.Offset >= end || r.Attrs.IsControl() {
				return
			}
			each(verify.Record{
				Partition: r.Partition, Offset: r.Offset, Time: r.Timestamp, Value: r.Value, Header: headerOf(r),
			})
		})
		bar.draw(time.Now())
	}
	return nil
}

// headerOf returns bmpha's header, which comes behind all that a record brought.
func headerOf(r *kgo.Record) []byte {
	for _, h := range slices.Backward(r.Headers) {
		if h.Key == record.HeaderName {
			return h.Value
		}
	}
	return nil
}

// spansOf asks Kafka for the offsets of a topic between two bounds.
func spansOf(ctx context.Context, admin *kadm.Client, topic string, fromBound, untilBound bound) ([]verify.Span, error) {
	starts, err := admin.ListStartOffsets(ctx, topic)
	if err == nil {
		err = starts.Error()
	}
	var ends, from, until kadm.ListedOffsets
	if err == nil {
		if ends, err = admin.ListCommittedOffsets(ctx, topic); err == nil {
			err = ends.Error()
		}
	}
	for _, b := range []struct {
		bound
		to *kadm.ListedOffsets
	}{{fromBound, &from}, {untilBound, &until}} {
		if err == nil && !b.at.IsZero() {
			if *b.to, err = admin.ListOffsetsAfterMilli(ctx, max(0, b.at.UnixMilli()), topic); err == nil {
				err = b.to.Error()
			}
		}
	}
	if err != nil {
		if errors.Is(err, kerr.UnknownTopicOrPartition) {
			return nil, errors.New("no such topic")
		}
		return nil, err
	}
	if len(ends[topic]) == 0 {
		return nil, errors.New("no such topic")
	}
	var spans []verify.Span
	for p, end := range ends[topic] {
		start, ok := starts.Lookup(topic, p)
		if !ok {
			return nil, fmt.Errorf("partition %d: Kafka does not say where it begins", p)
		}
		at := func(b bound, listed kadm.ListedOffsets, usual int64) int64 {
			n := usual
			if o, ok := listed.Lookup(topic, p); ok && o.Offset >= 0 {
				n = o.Offset
			} else if ok {
				n = end.Offset // nothing is as late
			}
			if b.offset >= 0 {
				n = b.offset
			}
			return min(max(n, start.Offset), end.Offset)
		}
		s := verify.Span{Partition: p, From: at(fromBound, from, start.Offset), Until: at(untilBound, until, end.Offset)}
		s.Until = max(s.Until, s.From)
		spans = append(spans, s)
	}
	slices.SortFunc(spans, func(a, b verify.Span) int { return int(a.Partition) - int(b.Partition) })
	return spans, nil
}

// progress tells on a terminal how far reading is.
type progress struct {
	w           io.Writer
	total, done int64
	drawn       time.Time
}

func (p *progress) draw(now time.Time) {
	if p.w == nil || now.Sub(p.drawn) < 200*time.Millisecond {
		return
	}
	p.drawn = now
	fmt.Fprintf(p.w, "\r\x1b[K%d of %d records, %d %%", p.done, p.total, 100*p.done/max(p.total, 1))
}

func (p *progress) clear() {
	if !p.drawn.IsZero() {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

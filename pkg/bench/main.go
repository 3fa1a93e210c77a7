// Command bench prints the numbers that this project is judged by: what decoding,
// encoding, holding and handing over cost, what the whole collector costs beside
// pmacct's pmbmpd, what a standby costs, how long a takeover takes, how fast
// the disk spool is, and how a pair of pmacct fares alone and with bmpha. It is run by scripts/bench; docs/benchmarks.md explains a run.
//
// It promises to be fair and to count: both daemons get the same bytes, send to
// the same broker, take turns in one run, and a run counts only with every record
// at the broker. What is printed is the median; nothing is left out because it
// looks bad.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/redis/go-redis/v9"

	"github.com/bmpha/bmpha/pkg/rig"
)

// A run is what the sections share.
type run struct {
	report   *report
	bmpha    string // the binary
	dir      string // for everything that is written
	profiles string // folder for CPU profiles of bmpha; "" makes none
	quick    bool
	messages int // of the stream of the throughput section
	repeats  int
	kills    int
	rate     int // of the failover section: messages a second
	each     int // of the failover section: kills of pmacct, and of bmpha

	redis rig.Redis
}

// promise notes that something did not hold that must.
func (r *run) promise(ok bool, format string, args ...any) {
	if !ok {
		r.report.Failed = append(r.report.Failed, fmt.Sprintf(format, args...))
	}
}

func main() {
	if os.Getenv(brokerEnv) != "" {
		if err := runBroker(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if os.Getenv(relayEnv) != "" {
		if err := runRelay(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	redis.SetLogger(silent{}) // says a lot while a server starts
	if err := bench(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

func bench(ctx context.Context) error {
	r := &run{report: newReport()}
	flag.StringVar(&r.bmpha, "bmpha", "bin/bmpha", "the bmpha `binary`")
	flag.StringVar(&r.profiles, "profiles", "", "write CPU profiles of bmpha into this `folder`")
	flag.BoolVar(&r.quick, "short", false, "fewer and shorter runs, for looking")
	flag.IntVar(&r.messages, "messages", 0, "BMP `messages` of the throughput stream (0: 500000, with -short 100000)")
	jsonFile := flag.String("json", "", "write the results to this `file`, too")
	only := flag.String("only", "", "run only these `sections`: code, whole, real, standby, takeover, relay, spool, table, replay; or failover alone")
	flag.IntVar(&r.rate, "rate", 2000, "`messages` a second of the failover section")
	flag.IntVar(&r.each, "kills", 0, "`kills` of pmacct, and of bmpha, in the failover section (0: 5, with -short 1)")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	r.repeats, r.kills = 3, 10
	if r.quick {
		r.repeats, r.kills = 1, 3
	}
	if r.each == 0 {
		r.each = 5
		if r.quick {
			r.each = 1
		}
	}
	if r.messages == 0 {
		r.messages = 500_000
		if r.quick {
			r.messages = 100_000
		}
	}
	var err error
	if r.bmpha, err = filepath.Abs(r.bmpha); err != nil {
		return fmt.Errorf("find bmpha: %w", err)
	}
	if _, err := os.Stat(r.bmpha); err != nil {
		return fmt.Errorf("find bmpha (make build makes it): %w", err)
	}
	if r.dir, err = os.MkdirTemp("", "bmpha-bench-"); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	defer os.RemoveAll(r.dir)
	if r.redis, err = rig.StartRedis(ctx, rig.RedisOptions{}); err != nil {
		return err
	}
	defer r.redis.Close()

	type section struct {
		name string
		run  func(context.Context) ([]*table, error)
	}
	sections := []section{
		{"code", r.code}, {"whole", r.whole}, {"real", r.real}, {"standby", r.standby}, {"takeover", r.takeover},
		{"relay", r.relay},
		{"spool", r.spool},
		{"table", r.table},
		{"replay", r.replay},
	}
	if *only == "failover" { // takes minutes and all real parts
		sections = []section{{"failover", r.failover}}
	}
	for name := range strings.SplitSeq(*only, ",") {
		known := name == ""
		for _, s := range sections {
			known = known || s.name == name
		}
		if !known {
			return fmt.Errorf("no section %q", name)
		}
	}
	r.report.head(os.Stdout)
	for _, s := range sections {
		if *only != "" && !strings.Contains(","+*only+",", ","+s.name+",") {
			continue
		}
		tables, err := s.run(ctx)
		for _, t := range tables {
			t.write(os.Stdout)
			r.report.Sections = append(r.report.Sections, t)
		}
		if err != nil {
			return fmt.Errorf("section %s: %w", s.name, err)
		}
	}
	if *jsonFile != "" {
		if err := r.report.save(*jsonFile); err != nil {
			return err
		}
	}
	if len(r.report.Failed) > 0 {
		return errors.New("promises that did not hold: " + strings.Join(r.report.Failed, "; "))
	}
	return nil
}

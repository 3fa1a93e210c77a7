// Command chaos tries real collectors, real servers and real routers under faults,
// and counts what that costs.
//
//	chaos timelines   nine stories that a pair lives through, one after the other,
//	                  beside the figures measured for pmacct's own high availability
//	chaos faults      three collectors and several routers under faults drawn from a
//	                  seed, many of them at the same time
//
// What it promises:
//
//   - Nothing stands in for a real part: collectors are processes of the binary,
//     with redis-server, Apache Kafka, FRR and GoBGP. Networks that lose packets or
//     are slow are proxies on loopback, so that no privileges are needed.
//   - What must not be makes it fail, as below. What is a limit by design is told apart
//     and counted under its own name.
//   - A seed reproduces the schedule of faults. What the machine makes of it is not
//     reproducible.
//
// Both commands fail if a record cannot be read, if a collector crashes, or if more
// than unflaggedMost records come again without a flag. I7 of DESIGN.md allows such
// repeats, above all of what a sender received within hold.margin after it took over:
// each takeover may cost a second of a router's words. They are rare: 37 in a run of
// 200 faults and 5.0 million records. Allowed is one such second of one router, and
// beside it 1 in 10,000 records. Of that run it is 1,750: room for one takeover at its
// worst, none for takeovers that forget their seam.
//
// timelines fails, besides, if a number that the router gave has not come.
//
// faults fails, besides, if a fault could not be carried out, if a collector has ended
// by itself, if there is no rest within restMost, or if then
//
//   - the table of a consumer that goes by the tokens differs in any route from what
//     the router itself says;
//   - bmpha verify finds that Kafka differs in any route of any RIB from the table of a
//     collector, or in any route from what FRR or GoBGP prints; or it finds a fault
//     other than late words;
//   - a sender has told, without a flag, an older word after a newer one of its own
//     about the same route;
//   - a collector has messages that are not in Kafka.
//
// A route that differs is excused, and counted as of two senders, if its last word was
// sent while Redis could not be asked and two might send, or a Peer Up or Peer Down of
// its peer behind it was: then the later record can have the older word. The newer one
// has to be there, too, as far as MEDs tell it: among what came since one sender was
// last alone. What never came is lost. With -strict nothing is excused so.
//
// Where the table is verify's, which believes every record, a route is excused also if
// the last word about it is a late one, of a process that stood still; a consumer tells
// it by the token. And GoBGP does not tell a BMP session all withdrawals after policy,
// so that a collector may have what Kafka and GoBGP itself do not have. Each excuse is
// for one route of one RIB.
//
// That a number never came is no failure of faults: of a route that changes while its
// sender does not hear the router only the last value is told.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	redis.SetLogger(silent{}) // says a lot while a server is away
	err := run(ctx, os.Args[1:], os.Stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

func run(ctx context.Context, args []string, out io.Writer) error {
	command := ""
	if len(args) > 0 {
		command, args = args[0], args[1:]
	}
	switch command {
	case "timelines":
		return runTimelines(ctx, args, out)
	case "faults":
		return runFaults(ctx, args, out)
	}
	return fmt.Errorf("command %q, want timelines or faults (with -h for their flags)", command)
}

// flags adds what both commands take.
func (o *options) flags(f *flag.FlagSet) {
	f.StringVar(&o.bmpha, "bmpha", "bin/bmpha", "the bmpha `binary`")
	f.StringVar(&o.config, "config", "", "a template for the collectors' configuration `file`, in place of pkg/chaos/collector.yaml")
	f.Var(&o.set, "set", "`key=value` of the collectors' configuration, such as redis.expiry=500ms; may be repeated")
	f.BoolVar(&o.links, "link", false, "give the collectors direct links to each other")
	f.StringVar(&o.keep, "keep", "", "keep the collectors' logs in this `folder`")
	f.StringVar(&o.json, "json", "", "write the results to this `file`, too")
}

func (o *options) check() (err error) {
	if o.bmpha, err = filepath.Abs(o.bmpha); err != nil {
		return fmt.Errorf("find bmpha: %w", err)
	}
	if _, err := os.Stat(o.bmpha); err != nil {
		return fmt.Errorf("find bmpha (make build makes it): %w", err)
	}
	return nil
}

// committed makes a consumer leave out what a fenced sender could not commit.
var committed = kgo.FetchIsolationLevel(kgo.ReadCommitted())

// generatedNet is how the addresses of generated routers begin.
const generatedNet = "127.3.2."

// routerAddr is the address of generated router i.
func routerAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 3, 2, byte(i + 1)}) }

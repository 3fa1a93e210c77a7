package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/bmpha/bmpha/pkg/replay"
)

func replayCommand() *cli.Command {
	return &cli.Command{
		Name:      "replay",
		Usage:     "play routers, from captured BMP or made up, to several collectors at once",
		ArgsUsage: "[FILE…] --to HOST:PORT[,HOST:PORT…]",
		Description: "A router for testing. With files, each is played by a router of its own;\n" +
			"without, peers, prefixes and what happens to them are made up, the same for the\n" +
			"same --seed.\n\n" +
			"Every connected collector gets every message. One that comes later, or comes\n" +
			"back, gets what a router would tell it: Initiation, Peer Ups, the table as it is\n" +
			"now, End-of-RIBs, and then what is new. One that does not read is dropped when it\n" +
			"is 64 MiB behind.\n\n" +
			"With --loop a file is played for ever: after its end, the routes and statistics\n" +
			"that came after their peer's last Peer Up are sent again and again.\n\n" +
			"Several routers on loopback get the source addresses 127.0.1.1, 127.0.1.2 …\n\n" +
			"Examples:\n" +
			"  bmpha replay session.bmp --to 127.0.0.1:1790\n" +
			"  bmpha replay --to 10.0.0.1:1790,10.0.0.2:1790 --rate 2000 --duration 1m\n" +
			"  bmpha replay --to [::1]:1790 --routers 50 --peers 10 --prefixes 10000 --ipv6 0.3\n" +
			"  bmpha replay --to localhost:1790 --churn withdraw=1,announce=1,peerflap=0.01\n" +
			"  bmpha replay --to localhost:1790 --numbered --count 100000 --json\n\n" +
			"Exit codes: 0 the streams ended, or --count, --duration or a signal ended them;\n" +
			"1 no collector could be reached, or the sessions did not take all that was sent.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "to", Usage: "collectors to send to, `HOST:PORT[,HOST:PORT…]`"},
			&cli.Float64Flag{Name: "rate", Usage: "`MESSAGES` per second of each router; 0: as fast as they are read"},
			&cli.IntFlag{Name: "routers", Value: 1, Usage: "`NUMBER` of routers, at least one for each file"},
			&cli.StringFlag{Name: "from", Usage: "source `ADDRESS` of the first router; the others take those that follow"},
			&cli.BoolFlag{Name: "loop", Usage: "play files for ever"},
			&cli.Uint64Flag{Name: "count", Usage: "end after `MESSAGES` of each router"},
			&cli.DurationFlag{Name: "duration", Usage: "end after this `TIME`"},
			&cli.Uint64Flag{Name: "seed", Value: 1, Usage: "`NUMBER` that the first made-up router begins with"},
			&cli.IntFlag{Name: "peers", Value: 4, Usage: "`NUMBER` of peers of a made-up router"},
			&cli.IntFlag{Name: "prefixes", Value: 1000, Usage: "`NUMBER` of prefixes of each peer"},
			&cli.Float64Flag{Name: "ipv6", Usage: "`SHARE` of the prefixes that is IPv6, 0 to 1"},
			&cli.IntFlag{Name: "routes", Value: 1, Usage: "most `ROUTES` in one message"},
			&cli.IntFlag{Name: "attributes", Value: 1000, Usage: "`NUMBER` of different sets of path attributes"},
			&cli.BoolFlag{Name: "post-policy", Usage: "send everything for the post-policy RIB too"},
			&cli.StringFlag{Name: "churn", Value: "default", Usage: "what goes on after the dump: none, default, or `SHARES` as in withdraw=2,announce=5,flap=1,repeat=2,peerflap=0.001"},
			&cli.BoolFlag{Name: "numbered", Usage: "make every message announce one new, numbered prefix"},
			&cli.BoolFlag{Name: "stateless", Usage: "keep no table: no dump for sessions that begin later"},
			&cli.BoolFlag{Name: "json", Usage: "print the summary as JSON"},
			&cli.BoolFlag{Name: "quiet", Usage: "show no progress"},
		},
		Action: runReplay,
	}
}

func runReplay(c *cli.Context) error {
	files, help, err := interspersed(c)
	if err != nil {
		return err
	}
	if help {
		return cli.ShowSubcommandHelp(c)
	}
	o := replay.Options{
		Files: files, Loop: c.Bool("loop"), Routers: c.Int("routers"), Rate: c.Float64("rate"),
		Count: c.Uint64("count"), Duration: c.Duration("duration"), Stateless: c.Bool("stateless"),
		Synthetic: replay.Synthetic{
			Seed: c.Uint64("seed"), Peers: c.Int("peers"), Prefixes: c.Int("prefixes"), IPv6: c.Float64("ipv6"),
			Routes: c.Int("routes"), Attributes: c.Int("attributes"), PostPolicy: c.Bool("post-policy"),
			Numbered: c.Bool("numbered"), Start: time.Now(),
		},
	}
	for _, to := range strings.Split(c.String("to"), ",") {
		if to = strings.TrimSpace(to); to != "" {
			o.To = append(o.To, to)
		}
	}
	if len(o.To) == 0 {
		return fmt.Errorf("replay needs a collector to send to, as in --to 127.0.0.1:1790")
	}
	if o.Synthetic.Churn, err = parseChurn(c.String("churn")); err != nil {
		return fmt.Errorf("--churn: %w", err)
	}
	if from := c.String("from"); from != "" {
		if o.From, err = netip.ParseAddr(from); err != nil {
			return fmt.Errorf("--from: %w", err)
		}
	}
	var last replay.Progress
	line := progressLine{out: c.App.ErrWriter}
	if f, ok := c.App.ErrWriter.(*os.File); !ok || c.Bool("quiet") || !term.IsTerminal(int(f.Fd())) {
		line.out = nil
	}
	err = replay.Run(c.Context, o, func(p replay.Progress) {
		last = p
		line.show(p)
	})
	if !last.Done {
		return err // it did not even begin
	}
	if c.Bool("json") {
		if jsonErr := writeSummaryJSON(c.App.Writer, last); jsonErr != nil {
			return jsonErr
		}
	} else {
		writeSummary(c.App.Writer, last)
	}
	return err
}

// interspersed returns the arguments that are no flags, and sets those flags that
// stand behind one, as in `replay FILE --to …`, where the library stops to look.
func interspersed(c *cli.Context) (args []string, help bool, err error) {
	rest := c.Args().Slice()
	for len(rest) > 0 {
		if rest[0] == "-" || !strings.HasPrefix(rest[0], "-") {
			args, rest = append(args, rest[0]), rest[1:]
			continue
		}
		set := flag.NewFlagSet(c.Command.Name, flag.ContinueOnError)
		set.SetOutput(io.Discard)
		set.Usage = func() {}
		for _, f := range c.Command.Flags {
			if f.Names()[0] == "help" {
				continue // the flag set has its own
			}
			if err := f.Apply(set); err != nil {
				return nil, false, err
			}
		}
		if err := set.Parse(rest); err == flag.ErrHelp {
			return nil, true, nil
		} else if err != nil {
			return nil, false, fmt.Errorf("%w (see bmpha %s --help)", err, c.Command.Name)
		}
		set.Visit(func(f *flag.Flag) {
			for _, known := range c.Command.Flags {
				if !slices.Contains(known.Names(), f.Name) {
					continue
				}
				for _, name := range known.Names() { // it may be looked up by any of them
					if setErr := c.Set(name, f.Value.String()); setErr != nil && err == nil {
						err = fmt.Errorf("--%s: %w", f.Name, setErr)
					}
				}
			}
		})
		if err != nil {
			return nil, false, err
		}
		rest = set.Args()
	}
	return args, false, nil
}

func parseChurn(s string) (replay.Churn, error) {
	switch s {
	case "default":
		return replay.DefaultChurn, nil
	case "none", "":
		return replay.Churn{}, nil
	}
	var churn replay.Churn
	shares := map[string]*float64{"withdraw": &churn.Withdraw, "announce": &churn.Announce, "flap": &churn.Flap,
		"repeat": &churn.Repeat, "peerflap": &churn.PeerFlap}
	for _, part := range strings.Split(s, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		share, ok := shares[name]
		if !ok {
			return churn, fmt.Errorf("%q: want withdraw, announce, flap, repeat or peerflap, each with =SHARE", part)
		}
		var err error
		if *share, err = strconv.ParseFloat(value, 64); err != nil {
			return churn, fmt.Errorf("%q: want a number behind %s=", part, name)
		}
	}
	return churn, nil
}

// progressLine shows how far a run is in one line of a terminal that is written
// over and over.
type progressLine struct {
	out  io.Writer // nil: nothing is shown
	last replay.Progress
}

func (l *progressLine) show(p replay.Progress) {
	if l.out == nil {
		return
	}
	if p.Done {
		fmt.Fprint(l.out, "\r\x1b[K")
		return
	}
	rate := 0.0
	if d := (p.Elapsed - l.last.Elapsed).Seconds(); d > 0 {
		rate = float64(p.Messages-l.last.Messages) / d
	}
	l.last = p
	fmt.Fprintf(l.out, "\r\x1b[K%6.1fs  %d messages, %.0f/s, %d routes ", p.Elapsed.Seconds(), p.Messages, rate, p.Routes)
	for _, c := range p.Collectors {
		switch {
		case c.Connected && c.Sessions > uint64(p.Routers):
			fmt.Fprintf(l.out, " %s up again", c.Address)
		case c.Connected:
			fmt.Fprintf(l.out, " %s up", c.Address)
		default:
			fmt.Fprintf(l.out, " %s DOWN", c.Address)
		}
	}
}

func writeSummary(w io.Writer, p replay.Progress) {
	seconds := max(p.Elapsed.Seconds(), 1e-9)
	fmt.Fprintf(w, "%d messages of %d routers in %.1f s (%.0f/s): %d announcements, %d withdrawals, %d End-of-RIBs; %d routes at the end\n",
		p.Messages, p.Routers, seconds, float64(p.Messages)/seconds, p.Announced, p.Withdrawn, p.EndOfRIB, p.Routes)
	for _, c := range p.Collectors {
		fmt.Fprintf(w, "%s: %d messages, %d bytes in %d sessions; %d from dumps, %d connections failed, %d sessions dropped because it did not keep up",
			c.Address, c.Messages, c.Bytes, c.Sessions, c.Redumped, c.Failures, c.Overflows)
		if c.LastError != "" {
			fmt.Fprintf(w, "; last error: %s", c.LastError)
		}
		fmt.Fprintln(w)
	}
}

func writeSummaryJSON(w io.Writer, p replay.Progress) error {
	type collector struct {
		Address   string `json:"address"`
		Sessions  uint64 `json:"sessions"`
		Failures  uint64 `json:"failures"`
		Overflows uint64 `json:"overflows"`
		Messages  uint64 `json:"messages"`
		Bytes     uint64 `json:"bytes"`
		Redumped  uint64 `json:"redumped"`
		LastError string `json:"last_error,omitempty"`
	}
	summary := struct {
		Seconds    float64     `json:"seconds"`
		Routers    int         `json:"routers"`
		Messages   uint64      `json:"messages"`
		Announced  uint64      `json:"announced"`
		Withdrawn  uint64      `json:"withdrawn"`
		EndOfRIB   uint64      `json:"end_of_rib"`
		Opaque     uint64      `json:"opaque"`
		Routes     int         `json:"routes"`
		Collectors []collector `json:"collectors"`
	}{p.Elapsed.Seconds(), p.Routers, p.Messages, p.Announced, p.Withdrawn, p.EndOfRIB, p.Opaque, p.Routes, nil}
	for _, c := range p.Collectors {
		summary.Collectors = append(summary.Collectors, collector{c.Address, c.Sessions, c.Failures, c.Overflows, c.Messages, c.Bytes, c.Redumped, c.LastError})
	}
	if err := json.NewEncoder(w).Encode(summary); err != nil {
		return fmt.Errorf("write summary: %w", err)
	}
	return nil
}

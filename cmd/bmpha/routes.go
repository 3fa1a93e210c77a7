package main

import (
	"bufio"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/bmpha/bmpha/pkg/control"
)

const lookingCodes = "Exit codes: 0 found; 9 nothing was found; 10 the collector keeps no table of routes\n" +
	"(table: full); 4 it does not answer; 5 not running; 1 any other error."

// unbounded is the width of a table that nobody looks at on a terminal.
const unbounded = 1 << 16

func routesCommand() *cli.Command {
	return &cli.Command{
		Name:      "routes",
		Usage:     "look up routes in the tables of the running collector",
		ArgsUsage: "[PREFIX]",
		Description: "Asks the collector on this host, active or standby, what its routers say of a prefix,\n" +
			"or of an address: the longest match in each table of each BGP peer, unless --exact,\n" +
			"--longer or --shorter is given. Without a prefix it lists all routes that the other\n" +
			"flags let through. It needs table: full in the configuration.\n\n" +
			"Examples:\n" +
			"  bmpha routes 203.0.113.9\n" +
			"  bmpha routes 203.0.113.0/24 --longer --router edge-1\n" +
			"  bmpha routes 2001:db8::/32 --exact --rib in-post --wide\n" +
			"  bmpha routes --origin-as 64501 --limit 20\n" +
			"  bmpha routes 10.0.0.0/8 --rd 64500:1 --family ipv4-vpn\n" +
			"  bmpha routes --router edge-1 --all --json | jq -r .ip_prefix\n\n" +
			"The AS path ends with the origin: i, e or ? (incomplete). #1 behind a peer is the\n" +
			"path identifier of ADD-PATH. Age is since the route came here. Stale: of the session\n" +
			"before, and not yet said again. (down) behind a router: its session is, and this is\n" +
			"what it said last. The origin AS is the last of the AS path, or any of\n" +
			"the set that it ends with. With --json each route is a line; keys that records have,\n" +
			"too, have the same values, and router is the identity, rib the short name of the\n" +
			"table, session the state of the router's, received the time of arrival, timestamp the router's own if it tells.\n\n" + lookingCodes,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "exact", Usage: "routes to this prefix only"},
			&cli.BoolFlag{Name: "longer", Usage: "routes to it and to all inside it"},
			&cli.BoolFlag{Name: "shorter", Usage: "routes to it and to all that it is inside of"},
			&cli.StringFlag{Name: "router", Usage: "of this `ROUTER` only: its identity or its address"},
			&cli.StringFlag{Name: "peer", Usage: "of the BGP peer with this `ADDR` only"},
			&cli.StringFlag{Name: "origin-as", Usage: "that come from this `AS` only"},
			&cli.StringFlag{Name: "rib", Usage: "in this `RIB` only: in-pre, in-post, out-pre, out-post, loc"},
			&cli.StringFlag{Name: "family", Usage: "of this `FAMILY` only: ipv4 or ipv6, alone or with -unicast, -labelled, -vpn"},
			&cli.StringFlag{Name: "rd", Usage: "with this route distinguisher `RD` only, as in 64500:1 or 192.0.2.1:1"},
			&cli.BoolFlag{Name: "withdrawn", Usage: "also routes that were withdrawn, as far as they are kept"},
			&cli.IntFlag{Name: "limit", Value: control.DefaultLimit, Usage: "at most `N` routes; 0 for all"},
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "all routes, as --limit 0; without a prefix, too"},
			&cli.BoolFlag{Name: "wide", Aliases: []string{"w"}, Usage: "all communities, local preference, MED and label"},
			&cli.BoolFlag{Name: "json", Usage: "print a line of JSON for each route"},
			socketFlag(), socketConfigFlag(),
		},
		Action: func(c *cli.Context) error {
			args, help, err := interspersed(c)
			if err != nil {
				return err
			}
			if help {
				return cli.ShowSubcommandHelp(c)
			}
			q, err := routesQuery(c, args)
			if err != nil {
				return err
			}
			return showRoutes(c, &q)
		},
	}
}

// routesQuery makes a query of the command line.
func routesQuery(c *cli.Context, args []string) (control.Query, error) {
	if len(args) > 1 {
		return control.Query{}, fmt.Errorf("routes takes one prefix, found %q, too", args[1])
	}
	v := url.Values{}
	if len(args) > 0 {
		if args[0] == "" {
			return control.Query{}, errors.New(`prefix "": want one, or an address`)
		}
		v.Set("prefix", args[0])
	}
	for _, match := range []string{control.MatchExact, control.MatchLonger, control.MatchShorter} {
		if !c.Bool(match) {
			continue
		}
		if other := v.Get("match"); other != "" {
			return control.Query{}, fmt.Errorf("--%s and --%s do not go together", other, match)
		}
		if len(args) == 0 {
			return control.Query{}, fmt.Errorf("--%s needs a prefix", match)
		}
		v.Set("match", match)
	}
	for _, name := range []string{"router", "peer", "origin-as", "rib", "family", "rd"} {
		if c.IsSet(name) && c.String(name) == "" {
			return control.Query{}, fmt.Errorf("--%s is empty", name)
		}
		v.Set(strings.ReplaceAll(name, "-", "_"), c.String(name))
	}
	v.Set("withdrawn", strconv.FormatBool(c.Bool("withdrawn")))
	v.Set("limit", strconv.Itoa(c.Int("limit")))
	if c.Bool("all") {
		if c.IsSet("limit") {
			return control.Query{}, errors.New("--all and --limit do not go together")
		}
		v.Set("limit", "0")
	}
	q, err := control.ParseQuery(v)
	var bad *control.QueryError
	switch {
	case errors.As(err, &bad) && bad.Key == "prefix":
		return q, fmt.Errorf("%q: want %s", bad.Value, bad.Want)
	case errors.As(err, &bad):
		return q, fmt.Errorf("--%s %s: want %s", strings.ReplaceAll(bad.Key, "_", "-"), bad.Value, bad.Want)
	case err != nil:
		return q, err
	case !q.Narrowed() && !c.Bool("all"):
		return q, errors.New("routes needs a prefix, a flag that says which routes, or --all (see bmpha routes --help)")
	}
	return q, nil
}

func showRoutes(c *cli.Context, q *control.Query) error {
	path, err := socketPath(c)
	if err != nil {
		return err
	}
	client := control.NewClient(path)
	defer client.Close()
	out := bufio.NewWriter(c.App.Writer)
	v := newViewer(c)
	printer := control.NewRoutePrinter(out, v.unclipped(), c.Bool("wide"))
	answer, err := client.Routes(c.Context, q, func(line []byte) error {
		if v.json {
			return v.line(out, line)
		}
		return printer.Line(line)
	})
	flushed := errors.Join(printer.Flush(), out.Flush())
	switch {
	case err != nil:
		return lookup(err)
	case flushed != nil:
		return fmt.Errorf("write the routes: %w", flushed)
	}
	if answer.Without != "" {
		fmt.Fprintf(c.App.ErrWriter, "bmpha: not looked at, for want of a table: %s\n", answer.Without)
	}
	if answer.Found == 0 {
		text := "no such route"
		if answer.Telling != "" {
			text += "; but not all of the table has come yet from " + answer.Telling
		}
		return cli.Exit(text, control.ExitNotFound)
	}
	if answer.More {
		fmt.Fprintf(c.App.ErrWriter, "bmpha: there are more than these %d routes: --limit N shows more, --all shows all\n", answer.Found)
	}
	return nil
}

// line writes a line of JSON. On a terminal people see it at once.
func (v *viewer) line(w *bufio.Writer, line []byte) error {
	_, err := w.Write(append(line[:len(line):len(line)], '\n'))
	if err == nil && v.terminal != nil {
		err = w.Flush()
	}
	return err
}

// unclipped are options that cut nothing where there is no terminal.
func (v *viewer) unclipped() control.RenderOptions {
	o := v.options()
	if v.terminal == nil {
		o.Width = unbounded
	}
	return o
}

// lookup gives an error of the looking glass its exit code.
func lookup(err error) error {
	var missing *control.NotFound
	switch {
	case errors.Is(err, control.ErrNoTable):
		return cli.Exit(err.Error(), control.ExitNoTable)
	case errors.As(err, &missing):
		return cli.Exit(err.Error(), control.ExitNotFound)
	}
	return coded(err, control.ExitDegraded)
}

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/bmpha/bmpha/pkg/control"
)

func peersCommand() *cli.Command {
	return &cli.Command{
		Name:  "peers",
		Usage: "show the BGP peers of the routers of the running collector",
		Description: "Asks the collector on this host, active or standby, for the BGP peers of its routers:\n" +
			"those that are not up first, with the reason of the last Peer Down; since when, by\n" +
			"the router's clock; how many routes, and how many of them stale, that is of the\n" +
			"session before and not yet said again; how far the dump of each family is (begin,\n" +
			"dump, end-of-rib, live); and what was negotiated. A peer is awaited when it was up\n" +
			"in the router's last session, and not yet in this one. It needs table: full in the\n" +
			"configuration.\n\n" +
			"Examples:\n" +
			"  bmpha peers\n" +
			"  bmpha peers --router edge-1\n" +
			"  bmpha peers --json | jq -c '.router as $r | .peers[] | select(.state != \"up\") | [$r, .peer_ip, .down.text]'\n\n" + lookingCodes,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "router", Usage: "of this `ROUTER` only: its identity or its address"},
			&cli.BoolFlag{Name: "json", Usage: "print a line of JSON for each router"},
			socketFlag(), socketConfigFlag(),
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return fmt.Errorf("peers takes no arguments, found %q", c.Args().First())
			}
			if c.IsSet("router") && c.String("router") == "" {
				return errors.New("--router is empty")
			}
			path, err := socketPath(c)
			if err != nil {
				return err
			}
			client := control.NewClient(path)
			defer client.Close()
			found := 0
			out := bufio.NewWriter(c.App.Writer)
			v := newViewer(c)
			err = client.Peers(c.Context, c.String("router"), func(line []byte) error {
				found++
				if v.json {
					return v.line(out, line)
				}
				var r control.RouterPeers
				if err := json.Unmarshal(line, &r); err != nil {
					return fmt.Errorf("read a router: %w", err)
				}
				if found > 1 {
					fmt.Fprintln(out)
				}
				return control.RenderPeers(out, &r, v.unclipped())
			})
			flushed := out.Flush()
			switch {
			case err != nil:
				return lookup(err)
			case flushed != nil:
				return fmt.Errorf("write the peers: %w", flushed)
			case found == 0:
				return cli.Exit("no router has connected yet", control.ExitNotFound)
			}
			return nil
		},
	}
}

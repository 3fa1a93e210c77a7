package main

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/bmpha/bmpha/pkg/pmacct"
)

func decodeCommand() *cli.Command {
	return &cli.Command{
		Name:      "decode",
		Usage:     "turn a BMP byte stream into pmacct JSON lines",
		ArgsUsage: "FILE|-",
		Description: "Prints the records that one BMP session with these bytes would make,\n" +
			"log_init and log_close included.\n\n" +
			"With --rib they are those of a pmacct that keeps a table: withdrawals tell what\n" +
			"was withdrawn, those of unknown routes are left out, and the routes of a peer\n" +
			"that goes down, and all of them at the end, are deleted one by one.\n\n" +
			"Examples:\n" +
			"  bmpha decode session.bmp\n" +
			"  nc -l 1790 | bmpha decode --timestamps utc -\n" +
			"  bmpha decode --rib session.bmp | grep '\"log_type\": \"delete\"'\n\n" +
			"Exit codes: 0 all was decoded; 1 the stream is cut short or is not BMP (the\n" +
			"records before are printed, the error names the offset).",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "dialect", Value: pmacct.Dialect18, Usage: "pmacct `VERSION` to look like"},
			&cli.StringFlag{Name: "timestamps", Value: "default", Usage: "`FORM`: default (local time), utc, rfc3339 or epoch"},
			&cli.BoolFlag{Name: "rib", Usage: "keep a table of routes, as pmacct's other daemons do"},
			&cli.StringFlag{Name: "router", Value: "0.0.0.0", Usage: "`ADDR` to show as bmp_router"},
		},
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return fmt.Errorf("decode takes one file, or - for standard input")
			}
			form, err := pmacct.ParseTimestamps(c.String("timestamps"))
			if err != nil {
				return fmt.Errorf("--timestamps: %w", err)
			}
			router, err := netip.ParseAddr(c.String("router"))
			if err != nil {
				return fmt.Errorf("--router: %w", err)
			}
			var in io.Reader = os.Stdin
			if name := c.Args().First(); name != "-" {
				f, err := os.Open(name)
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			out := bufio.NewWriterSize(c.App.Writer, 64<<10)
			st, err := pmacct.Decode(out, in, pmacct.DecodeOptions{
				Dialect: c.String("dialect"), Timestamps: form, Router: router, RIB: c.Bool("rib"),
				Warn: func(offset int64, err error) {
					fmt.Fprintf(c.App.ErrWriter, "bmpha: message at offset %d: %v\n", offset, err)
				},
			})
			if flushErr := out.Flush(); flushErr != nil {
				return fmt.Errorf("write records: %w", flushErr)
			}
			if err != nil {
				return fmt.Errorf("decode %s: %w (%d messages before)", c.Args().First(), err, st.Messages)
			}
			return nil
		},
	}
}

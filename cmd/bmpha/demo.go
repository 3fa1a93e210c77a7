package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/bmpha/bmpha/pkg/demo"
)

func demoCommand() *cli.Command {
	return &cli.Command{
		Name:  "demo",
		Usage: "see it work: three collectors, two routers, an embedded Redis and Kafka",
		Description: "Starts an embedded Redis and an embedded Kafka, three collectors as processes of\n" +
			"their own and two routers that replay captured BMP (of FRR and of GoBGP) to all\n" +
			"three, and walks through the life of the cluster: maintenance, kill -9, a collector\n" +
			"coming back, Redis away, a router's session cut, Kafka away, a stop in good order.\n" +
			"Everything is on loopback addresses and free ports. It takes about a minute and\n" +
			"leaves nothing running.\n\n" +
			"Each message of the routers has a timestamp of its own, so that each record in Kafka\n" +
			"can be told from all others, and lost and repeated ones counted. In the end the\n" +
			"table that a consumer builds from Kafka must be the routers'.\n\n" +
			"Examples:\n" +
			"  bmpha demo\n" +
			"  bmpha demo --rate 500             # on a small machine\n" +
			"  bmpha demo --keep                 # and look at the collectors' logs\n" +
			"  bmpha demo --json | jq .total     # what happens is told on standard error\n\n" +
			"Exit codes: 0 nothing was lost and the tables are equal; 1 otherwise; 130 it was\n" +
			"interrupted.",
		Flags: []cli.Flag{
			&cli.Float64Flag{Name: "rate", Value: 3000, Usage: "BMP `MESSAGES` per second of both routers together"},
			&cli.BoolFlag{Name: "keep", Usage: "keep the temporary folder with configurations and logs"},
			&cli.BoolFlag{Name: "json", Usage: "print the final table as JSON"},
			&cli.BoolFlag{Name: "plain", Usage: "print a line for each event also on a terminal"},
		},
		Action: runDemo,
	}
}

func runDemo(c *cli.Context) error {
	if c.NArg() > 0 {
		return fmt.Errorf("demo takes no arguments, found %q", c.Args().First())
	}
	if rate := c.Float64("rate"); !(rate > 0 && rate <= 1e6) {
		return fmt.Errorf("--rate %v: want more than 0 and at most 1000000", rate)
	}
	binary, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the own program to run collectors with: %w", err)
	}
	o := demo.Options{Binary: binary, Command: os.Args[0], Rate: c.Float64("rate"), Keep: c.Bool("keep"), Out: c.App.Writer}
	if c.Bool("json") {
		o.Out = c.App.ErrWriter
	}
	columns := 0
	if f, fd := terminal(o.Out); f != nil {
		size := func() (int, int) {
			columns, lines, err := term.GetSize(fd)
			if err != nil || columns <= 0 || lines <= 0 {
				return 80, 24
			}
			return columns, lines
		}
		columns, _ = size()
		if !c.Bool("plain") && os.Getenv("TERM") != "dumb" {
			o.Size = size
			o.Style = demo.Style{Color: os.Getenv("NO_COLOR") == "", ASCII: !utf8Locale()}
		}
	}
	begin := time.Now()
	report, err := demo.Run(c.Context, o)
	if report != nil {
		if c.Bool("json") {
			enc := json.NewEncoder(c.App.Writer)
			enc.SetIndent("", "  ")
			if jsonErr := enc.Encode(report); jsonErr != nil {
				return fmt.Errorf("write the report: %w", jsonErr)
			}
		} else {
			fmt.Fprintln(c.App.Writer)
			if writeErr := report.Write(c.App.Writer, columns); writeErr != nil {
				return fmt.Errorf("write the report: %w", writeErr)
			}
		}
	}
	switch {
	case c.Context.Err() != nil:
		return cli.Exit(fmt.Sprintf("demo: interrupted after %s", time.Since(begin).Round(time.Second)), 130)
	case err != nil && !c.Bool("keep"):
		return fmt.Errorf("demo: %w (--keep keeps the collectors' logs)", err)
	case err != nil:
		return fmt.Errorf("demo: %w", err)
	case !report.OK:
		return cli.Exit("", 1)
	}
	return nil
}

// terminal returns the terminal that w is, nil if it is none.
func terminal(w io.Writer) (*os.File, int) {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil, 0
	}
	return f, int(f.Fd())
}

// utf8Locale says whether the terminal shows more than ASCII, by what the user has
// set.
func utf8Locale() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := strings.ToLower(os.Getenv(name)); v != "" {
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return true // nothing set: the arrow of the table will do as well
}

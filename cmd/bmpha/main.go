// Command bmpha makes a pair of BMP collectors forward each message once. See
// the README for what it is, and bmpha --help for its commands.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"

	_ "github.com/bmpha/bmpha/pkg/signal" // 34 to 37 must not end any of our processes
)

func main() { os.Exit(run(os.Args, os.Stdout, os.Stderr)) }

// run is the whole program, but for leaving it: what it returns is the exit
// code.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	app := newApp(stdout, stderr)
	err := app.RunContext(ctx, args)
	if err == nil {
		return 0
	}
	if text := err.Error(); text != "" {
		fmt.Fprintf(stderr, "bmpha: %s\n", text)
	}
	var coded cli.ExitCoder
	if errors.As(err, &coded) {
		return coded.ExitCode()
	}
	return 1
}

func newApp(stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:  "bmpha",
		Usage: "forward each BMP message once, from a pair of collectors",
		Description: "Routers send their BMP feed to two or more collectors, so that one may die.\n" +
			"bmpha stands there, elects one that sends through Redis, holds on the others\n" +
			"what is not yet in Kafka, and forwards.\n\n" +
			"See it work:          bmpha demo\n" +
			"Run a collector:      bmpha run -c /etc/bmpha/bmpha.yaml\n" +
			"How is it?            bmpha status\n" +
			"Let another take over: bmpha maintenance",
		Version:              version(),
		HideVersion:          true,
		EnableBashCompletion: true,
		Writer:               stdout,
		ErrWriter:            stderr,
		ExitErrHandler:       func(*cli.Context, error) {},
		Action: func(c *cli.Context) error {
			if name := c.Args().First(); name != "" {
				return fmt.Errorf("no command %q (see bmpha --help)", name)
			}
			return cli.ShowAppHelp(c)
		},
		Commands: []*cli.Command{
			runCommand(), statusCommand(), routesCommand(), peersCommand(), maintenanceCommand(), configCommand(),
			decodeCommand(), verifyCommand(), replayCommand(), demoCommand(), versionCommand(), manCommand(),
		},
	}
	app.OnUsageError = usageError("bmpha")
	complain("bmpha", app.Commands)
	return app
}

// usageError is one line on standard error in place of the whole help on standard
// output.
func usageError(command string) cli.OnUsageErrorFunc {
	return func(_ *cli.Context, err error, _ bool) error {
		return fmt.Errorf("%w (see %s --help)", err, command)
	}
}

// complain sets usageError for commands and theirs, which do not inherit it.
func complain(parent string, commands []*cli.Command) {
	for _, c := range commands {
		name := parent + " " + c.Name
		c.OnUsageError = usageError(name)
		complain(name, c.Subcommands)
	}
}

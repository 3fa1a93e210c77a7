package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/bmpha/bmpha/pkg/control"
)

const maintenanceCodes = "Exit codes: 0 done and seen; 5 not running; 6 refused, nothing was changed; 7 begun,\n" +
	"but not seen to happen in time, or no answer; 1 any other error."

func maintenanceCommand() *cli.Command {
	return &cli.Command{
		Name:  "maintenance",
		Usage: "hand over to another collector, or force a role",
		Description: "Without a role, the collector becomes the youngest of its cluster, as by signal 34:\n" +
			"another one takes over, and this one stays ready as a standby. The command waits\n" +
			"until another is seen active and says who. It is refused when no other member is\n" +
			"alive; --force does it anyway.\n\n" +
			"A forced role lasts until auto, or until the process ends.\n\n" +
			"Examples:\n" +
			"  bmpha maintenance                      # before work on this host\n" +
			"  bmpha maintenance standby              # and stay out until told otherwise\n" +
			"  bmpha maintenance auto                 # take part in the election again\n" +
			"  bmpha maintenance active --timeout 30s\n\n" + maintenanceCodes,
		Flags:  maintenanceFlags(socketFlag(), socketConfigFlag()),
		Action: maintain(control.ModeHandover),
		Subcommands: []*cli.Command{
			maintenanceMode(control.ModeActive, "be active whatever the election says, as signal 35"),
			maintenanceMode(control.ModeStandby, "be standby whatever the election says, as signal 36"),
			maintenanceMode(control.ModeAuto, "follow the election again, as signal 37"),
		},
	}
}

func maintenanceMode(mode, usage string) *cli.Command {
	return &cli.Command{
		Name: mode, Usage: usage, Action: maintain(mode),
		Flags:       maintenanceFlags(&cli.StringFlag{Name: "socket", Usage: "`PATH` of the collector's control socket"}, &cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "configuration `FILE` that names the socket"}),
		Description: "Example:\n  bmpha maintenance " + mode + "\n\n" + maintenanceCodes,
	}
}

// maintenanceFlags are taken before and behind the role. Only those before it may
// come from the environment, which would otherwise hide what was typed there.
func maintenanceFlags(where ...cli.Flag) []cli.Flag {
	return append([]cli.Flag{
		&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "do it even if nobody else is alive to take over"},
		&cli.DurationFlag{Name: "timeout", Value: control.DefaultMaintainTimeout, Usage: "how `LONG` to wait until it is seen to have happened"},
		&cli.BoolFlag{Name: "json", Usage: "print the result as JSON"},
	}, where...)
}

func maintain(mode string) cli.ActionFunc {
	return func(c *cli.Context) error {
		if c.NArg() > 0 {
			return fmt.Errorf("no role %q, want active, standby or auto", c.Args().First())
		}
		timeout := setting(c, "timeout").Duration("timeout")
		if timeout <= 0 || timeout > control.MaxMaintainTimeout {
			return fmt.Errorf("--timeout %s: want more than 0 and at most %s", timeout, control.MaxMaintainTimeout)
		}
		path, err := socketPath(c)
		if err != nil {
			return err
		}
		client := control.NewClient(path)
		defer client.Close()
		result, err := client.Maintain(c.Context, control.MaintainRequest{
			Mode: mode, Force: setting(c, "force").Bool("force"), Timeout: control.Seconds(timeout.Seconds()),
		})
		if err != nil {
			return coded(err, control.ExitTimeout)
		}
		if setting(c, "json").Bool("json") {
			return json.NewEncoder(c.App.Writer).Encode(result)
		}
		_, err = fmt.Fprintln(c.App.Writer, maintenanceWords(result))
		return err
	}
}

// maintenanceWords tells a person what has happened.
func maintenanceWords(r *control.MaintainResult) string {
	took := max(r.Took.Duration().Round(time.Millisecond), time.Millisecond)
	var s string
	switch {
	case r.To == "":
		s = "no collector is active"
	case r.From == r.To:
		s = fmt.Sprintf("%s is active, as before", r.To)
	case r.From == "":
		s = fmt.Sprintf("%s is active, after %s", r.To, took)
	default:
		s = fmt.Sprintf("%s is active; it took over from %s in %s", r.To, r.From, took)
	}
	switch r.Mode {
	case control.ModeActive, control.ModeStandby:
		s += fmt.Sprintf("\nthis collector is forced %s until \"bmpha maintenance auto\"", r.Mode)
	case control.ModeAuto:
		s += fmt.Sprintf("\nthis collector follows the election and is %s", r.Role)
	}
	return s
}

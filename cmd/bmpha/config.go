package main

import (
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/bmpha/bmpha/pkg/config"
	"github.com/bmpha/bmpha/pkg/pmconf"
	"github.com/bmpha/bmpha/pkg/sink"
)

const defaultConfig = "/etc/bmpha/bmpha.yaml"

func configFlag() *cli.StringFlag {
	return &cli.StringFlag{
		Name: "config", Aliases: []string{"c"}, Value: defaultConfig, EnvVars: []string{"BMPHA_CONFIG"},
		Usage: "configuration `FILE`",
	}
}

// loadConfig reads and checks a configuration as a whole, also what only
// librdkafka knows.
func loadConfig(path string) (*config.Config, error) {
	c, err := config.Load(path, os.LookupEnv)
	if err != nil {
		return nil, err
	}
	var errs config.Errors
	for _, name := range slices.Sorted(maps.Keys(c.Kafka.Properties)) {
		if err := sink.CheckProperties(map[string]string{name: c.Kafka.Properties[name]}); err != nil {
			errs = append(errs, c.ErrorAt("kafka.properties."+name, "%v", err))
		}
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return c, nil
}

func configCommand() *cli.Command {
	return &cli.Command{
		Name:  "config",
		Usage: "check or show a configuration, or make one of pmacct's",
		Description: "Examples:\n" +
			"  bmpha config check -c /etc/bmpha/bmpha.yaml\n" +
			"  bmpha config from-pmacct /etc/pmacct/pmbmpd.conf > /etc/bmpha/bmpha.yaml\n" +
			"  BMPHA_KAFKA_TOPIC=lab bmpha config show -c bmpha.yaml",
		Subcommands: []*cli.Command{
			{
				Name:  "check",
				Usage: "say what is wrong with a configuration, with file, line and key",
				Description: "With --pmacct also what it and pmacct's configuration contradict each other in:\n" +
					"ports, the PROXY header, where records go, how many sessions there may be, and\n" +
					"who takes part in the election. A note is no contradiction.\n\n" +
					"Examples:\n" +
					"  bmpha config check -c bmpha.yaml && systemctl restart bmpha\n" +
					"  bmpha config check --pmacct /etc/pmacct/pmbmpd.conf\n\n" +
					"Exit codes: 0 it can be run; 1 it cannot, or contradicts pmacct's, or a file\n" +
					"cannot be read.",
				Flags: []cli.Flag{
					configFlag(),
					&cli.StringFlag{Name: "pmacct", Usage: "pmacct's configuration `FILE` to compare with"},
				},
				Action: checkConfig,
			},
			{
				Name:      "from-pmacct",
				Usage:     "make a configuration of pmacct's",
				ArgsUsage: "FILE",
				Description: "Prints a bmpha.yaml for the daemon of pmacct that FILE configures, each key with\n" +
					"where it comes from, and in comments what could not be carried over and the lines\n" +
					"that change in FILE; with --diff only these lines, for patch. Nothing is written.\n\n" +
					"Modes:\n" +
					"  relay   in front: routers connect to bmpha, which makes the records itself and\n" +
					"          passes every byte on to pmacct\n" +
					"  intake  behind: pmacct's records come to bmpha instead of Kafka\n" +
					"  both    pmacct in the middle\n\n" +
					"Examples:\n" +
					"  bmpha config from-pmacct /etc/pmacct/pmbmpd.conf > /etc/bmpha/bmpha.yaml\n" +
					"  bmpha config from-pmacct /etc/pmacct/nfacctd.conf --mode intake --diff |\n" +
					"    patch /etc/pmacct/nfacctd.conf\n\n" +
					"Exit codes: 0 printed; 1 FILE cannot be read, is none that pmacct would start\n" +
					"with, or has nothing for this mode.",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "mode", Value: string(pmconf.Both), Usage: "`MODE`: relay, intake or both"},
					&cli.BoolFlag{Name: "diff", Usage: "print what changes in pmacct's file"},
					&cli.StringFlag{Name: "relay", Usage: "`IP:PORT` where pmacct is to listen behind the relay (default: 127.0.0.1 and the next port)"},
					&cli.StringFlag{Name: "intake", Value: "127.0.0.1:9093", Usage: "`IP:PORT` where pmacct is to find bmpha"},
				},
				Action: fromPmacct,
			},
			{
				Name:        "show",
				Usage:       "print the effective configuration: file, environment and defaults",
				Description: "Secrets are shown as ***.\n\nExample:\n  bmpha config show -c bmpha.yaml",
				Flags:       []cli.Flag{configFlag()},
				Action: func(c *cli.Context) error {
					cfg, err := loadConfig(c.String("config"))
					if err != nil {
						return err
					}
					_, err = c.App.Writer.Write(cfg.YAML())
					return err
				},
			},
		},
	}
}

func checkConfig(c *cli.Context) error {
	name, pmacct := c.String("config"), c.String("pmacct")
	cfg, err := loadConfig(name)
	if err != nil {
		return err
	}
	if pmacct == "" {
		_, err = fmt.Fprintf(c.App.Writer, "%s: ok\n", name)
		return err
	}
	theirs, err := pmconf.Load(pmacct)
	if err != nil {
		return err
	}
	wrong := 0
	for _, f := range pmconf.Check(theirs, cfg) {
		if !f.Note {
			wrong++
		}
		if _, err := fmt.Fprintln(c.App.Writer, f); err != nil {
			return err
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%s and %s contradict each other (%d times)", name, pmacct, wrong)
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s with %s: ok\n", name, pmacct)
	return err
}

func fromPmacct(c *cli.Context) error {
	files, help, err := interspersed(c)
	if err != nil {
		return err
	}
	if help {
		return cli.ShowSubcommandHelp(c)
	}
	if len(files) != 1 {
		return fmt.Errorf("from-pmacct takes one file: pmacct's configuration")
	}
	theirs, err := pmconf.Load(files[0])
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("a name for the collector: %w", err)
	}
	p, err := pmconf.Propose(theirs, pmconf.Options{
		Mode: pmconf.Mode(c.String("mode")), Host: host, Target: c.String("relay"), Intake: c.String("intake"),
		CheckProperty: func(name, value string) error {
			return sink.CheckProperties(map[string]string{name: value})
		},
	})
	if err != nil {
		return err
	}
	out := p.YAML
	if c.Bool("diff") {
		out = p.Diff
	}
	_, err = c.App.Writer.Write(out)
	return err
}

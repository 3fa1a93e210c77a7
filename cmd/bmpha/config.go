package main

import (
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/bmpha/bmpha/pkg/config"
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
		Usage: "check or show a configuration",
		Description: "Examples:\n" +
			"  bmpha config check -c /etc/bmpha/bmpha.yaml\n" +
			"  BMPHA_KAFKA_TOPIC=lab bmpha config show -c bmpha.yaml",
		Subcommands: []*cli.Command{
			{
				Name:  "check",
				Usage: "say what is wrong with a configuration, with file, line and key",
				Description: "Example:\n  bmpha config check -c bmpha.yaml && systemctl restart bmpha\n\n" +
					"Exit codes: 0 it can be run; 1 it cannot, or the file cannot be read.",
				Flags: []cli.Flag{configFlag()},
				Action: func(c *cli.Context) error {
					if _, err := loadConfig(c.String("config")); err != nil {
						return err
					}
					_, err := fmt.Fprintf(c.App.Writer, "%s: ok\n", c.String("config"))
					return err
				},
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

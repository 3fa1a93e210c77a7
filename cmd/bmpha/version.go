package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"

	"github.com/bmpha/bmpha/pkg/sink"
)

// release is the version of a release build, set by the linker.
var release = ""

// version names the program: the release, or the commit that it was built from.
func version() string {
	if release != "" {
		return release
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	revision, modified := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			modified = "+changes"
		}
	}
	if revision == "" {
		return "devel"
	}
	return "devel-" + revision + modified
}

func versionCommand() *cli.Command {
	return &cli.Command{
		Name:        "version",
		Usage:       "print what this program was built from",
		Description: "Example:\n  bmpha version --json | jq -r .version",
		Flags:       []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "as a JSON object"}},
		Action: func(c *cli.Context) error {
			v := struct {
				Version    string `json:"version"`
				Go         string `json:"go"`
				Platform   string `json:"platform"`
				Librdkafka string `json:"librdkafka"`
			}{version(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH, sink.Version()}
			if c.Bool("json") {
				return json.NewEncoder(c.App.Writer).Encode(v)
			}
			_, err := fmt.Fprintf(c.App.Writer, "bmpha %s (%s, %s, librdkafka %s)\n", v.Version, v.Go, v.Platform, v.Librdkafka)
			return err
		},
	}
}

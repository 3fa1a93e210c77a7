package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/bmpha/bmpha/pkg/cluster"
	"github.com/bmpha/bmpha/pkg/config"
	"github.com/bmpha/bmpha/pkg/control"
)

const watchInterval = time.Second

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "show role, members, who sends which router, hold, Kafka, Redis and takeovers",
		Description: "Asks the collector on this host. With --redis it shows what Redis alone knows of a\n" +
			"cluster; no collector is needed for that.\n\n" +
			"Examples:\n" +
			"  bmpha status\n" +
			"  bmpha status --watch\n" +
			"  bmpha status --json | jq '.problems[].text'\n" +
			"  bmpha status --json | jq '.routers[] | {identity, sender, why, low_water_lag_seconds, readings}'\n" +
			"  bmpha status --json | jq '.takeovers'\n" +
			"  bmpha status --socket /run/bmpha/second.sock\n" +
			"  bmpha status --redis 10.0.0.1:6379 --cluster core --id 2\n" +
			"  bmpha status --redis config -c /etc/bmpha/bmpha.yaml\n\n" +
			"Exit codes: 0 active and well; 3 standby and well; 4 degraded: something is wrong\n" +
			"(lines that begin with !), it is starting, or it does not answer; 5 not running;\n" +
			"1 any other error. With --redis: 0 one member is active; 4 none is, or several are.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "print the whole state as JSON; with --watch one line a second"},
			&cli.BoolFlag{Name: "watch", Aliases: []string{"w"}, Usage: "go on every second until interrupted"},
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "show every router, however many lines that takes"},
			socketFlag(), socketConfigFlag(),
			&cli.StringFlag{
				Name: "redis",
				Usage: "ask Redis at `ADDR` instead: host:port, or a redis:// or rediss:// URL with user, password and database; " +
					"what ADDR leaves out is that of --config, if named; config: all of it is",
			},
			&cli.StringFlag{Name: "cluster", Value: config.Default().Cluster.Name, EnvVars: []string{"BMPHA_CLUSTER_NAME"}, Usage: "with --redis: `NAME` of the cluster"},
			&cli.IntFlag{Name: "id", EnvVars: []string{"BMPHA_CLUSTER_ID"}, Usage: "with --redis: `N`, id of the cluster"},
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return fmt.Errorf("status takes no arguments, found %q", c.Args().First())
			}
			look, err := statusSource(c)
			if err != nil {
				return err
			}
			defer look.close()
			v := newViewer(c)
			if c.Bool("watch") {
				return v.watch(c.Context, look.get)
			}
			seen, err := look.get(c.Context)
			if err != nil {
				return coded(err, control.ExitDegraded)
			}
			if err := v.show(seen); err != nil {
				return err
			}
			return exit(seen.code(time.Now()))
		},
	}
}

func socketFlag() *cli.StringFlag {
	return &cli.StringFlag{
		Name: "socket", EnvVars: []string{"BMPHA_SOCKET", "BMPHA_CONTROL_SOCKET"}, DefaultText: control.DefaultSocket,
		Usage: "`PATH` of the collector's control socket",
	}
}

func socketConfigFlag() *cli.StringFlag {
	return &cli.StringFlag{
		Name: "config", Aliases: []string{"c"}, EnvVars: []string{"BMPHA_CONFIG"}, DefaultText: defaultConfig,
		Usage: "configuration `FILE` that names the socket",
	}
}

// socketPath finds the socket: what was said, else what the configuration that was
// named says, else what the usual configuration says if we may read it, else the
// default.
func socketPath(c *cli.Context) (string, error) {
	if path := setting(c, "socket").String("socket"); path != "" {
		return path, nil
	}
	if name := setting(c, "config").String("config"); name != "" {
		cfg, err := config.Load(name, os.LookupEnv)
		if err != nil {
			return "", err
		}
		return cfg.Control.Socket, nil
	}
	if cfg, err := config.Load(defaultConfig, os.LookupEnv); err == nil {
		return cfg.Control.Socket, nil
	}
	return control.DefaultSocket, nil
}

// setting is the context of c's lineage in which a flag was set, else c: the same
// flag may stand before or behind a subcommand.
func setting(c *cli.Context, name string) *cli.Context {
	for _, l := range c.Lineage() {
		if l.IsSet(name) {
			return l
		}
	}
	return c
}

// exit is the error that makes the program end with a code and without a word.
func exit(code int) error {
	if code == 0 {
		return nil
	}
	return cli.Exit("", code)
}

// coded gives an error its exit code; noAnswer is that of a collector that hangs.
func coded(err error, noAnswer int) error {
	var refused *control.Refused
	var late *control.TimedOut
	switch {
	case errors.Is(err, control.ErrNotRunning):
		return cli.Exit(err.Error(), control.ExitNotRunning)
	case errors.Is(err, control.ErrNoAnswer):
		return cli.Exit(err.Error(), noAnswer)
	case errors.As(err, &refused):
		return cli.Exit(err.Error(), control.ExitRefused)
	case errors.As(err, &late):
		return cli.Exit(err.Error(), control.ExitTimeout)
	}
	return err
}

// A sight is what there is to show: one collector, or a cluster.
type sight struct {
	status  *control.Status
	cluster *control.ClusterView
}

func (s sight) code(now time.Time) int {
	if s.cluster != nil {
		return control.ClusterExitCode(s.cluster)
	}
	return control.ExitCode(s.status, now)
}

func (s sight) MarshalJSON() ([]byte, error) {
	if s.cluster != nil {
		return json.Marshal(s.cluster)
	}
	return json.Marshal(s.status)
}

// A source is where sights come from.
type source struct {
	get   func(context.Context) (sight, error)
	close func()
}

func statusSource(c *cli.Context) (source, error) {
	if c.IsSet("redis") {
		return redisSource(c)
	}
	path, err := socketPath(c)
	if err != nil {
		return source{}, err
	}
	client := control.NewClient(path)
	return source{
		get: func(ctx context.Context) (sight, error) {
			s, err := client.Status(ctx)
			return sight{status: s}, err
		},
		close: client.Close,
	}, nil
}

func redisSource(c *cli.Context) (source, error) {
	address, name, id := c.String("redis"), c.String("cluster"), c.Int("id")
	o := cluster.Options{Username: os.Getenv("BMPHA_REDIS_USERNAME"), Password: os.Getenv("BMPHA_REDIS_PASSWORD")}
	file := setting(c, "config").String("config")
	if file == "" && address == configWord {
		file = defaultConfig
	}
	if file != "" {
		cfg, err := config.Load(file, os.LookupEnv)
		if err != nil {
			return source{}, err
		}
		if o, err = redisServers(cfg); err != nil {
			return source{}, err
		}
		if !c.IsSet("cluster") {
			name = cfg.Cluster.Name
		}
		if !c.IsSet("id") {
			id = cfg.Cluster.ID
		}
	}
	if address != configWord {
		var err error
		if o, err = redisOptions(address, o); err != nil {
			return source{}, fmt.Errorf("--redis: %w", err)
		}
	}
	o.Scan = true
	return source{
		get: func(ctx context.Context) (sight, error) {
			v, err := clusterFromRedis(ctx, o, name, id)
			return sight{cluster: &v}, err
		},
		close: func() {},
	}, nil
}

// configWord stands for an address: it is where the configuration says.
const configWord = "config"

// redisOptions reads an address or a URL, which wins over what o says already. User
// and password may come from there instead, where other users of the host do not see
// them.
func redisOptions(address string, o cluster.Options) (cluster.Options, error) {
	o.Address, o.Sentinel, o.Cluster = address, cluster.Sentinel{}, nil
	if !strings.Contains(address, "://") {
		if _, _, err := net.SplitHostPort(address); err != nil {
			o.Address = net.JoinHostPort(strings.Trim(address, "[]"), "6379")
		}
		return o, nil
	}
	u, err := redis.ParseURL(address)
	if err != nil { // it may hold the URL, and with it the password
		return o, errors.New("not a URL like redis://user:password@host:port/database")
	}
	if o.Address = u.Addr; u.TLSConfig == nil || o.TLS == nil {
		o.TLS = u.TLSConfig
	}
	if u.DB != 0 {
		o.Database = u.DB
	}
	if u.Username != "" {
		o.Username = u.Username
	}
	if u.Password != "" {
		o.Password = u.Password
	}
	return o, nil
}

// A viewer shows sights on a terminal or as plain text.
type viewer struct {
	w        io.Writer
	terminal *os.File // nil when w is none
	color    bool
	json     bool
	all      bool
	every    time.Duration // from frame to frame of a watch
}

func newViewer(c *cli.Context) *viewer {
	v := &viewer{w: c.App.Writer, json: c.Bool("json"), all: c.Bool("all"), every: watchInterval}
	if f, ok := v.w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		v.terminal = f
		// https://no-color.org: present and not empty.
		v.color = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	}
	return v
}

func (v *viewer) options() control.RenderOptions {
	o := control.RenderOptions{Color: v.color, Now: time.Now()}
	if v.terminal != nil {
		if width, height, err := term.GetSize(int(v.terminal.Fd())); err == nil {
			o.Width, o.Height = width, max(height-1, 1) // the prompt, or the cursor
		}
	}
	if v.all {
		o.Height = -1
	}
	return o
}

// show writes s once.
func (v *viewer) show(s sight) error {
	if v.json {
		e := json.NewEncoder(v.w)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(s)
	}
	return v.draw(v.w, s)
}

// draw writes s as a screen of text.
func (v *viewer) draw(w io.Writer, s sight) error {
	if s.cluster != nil {
		return control.RenderCluster(w, s.cluster, v.options())
	}
	return control.Render(w, s.status, v.options())
}

// watch shows what get returns again and again until ctx ends. A collector that does
// not run is shown as such, it may come back.
func (v *viewer) watch(ctx context.Context, get func(context.Context) (sight, error)) error {
	tick := time.NewTicker(v.every)
	defer tick.Stop()
	if v.terminal != nil && !v.json {
		if _, err := io.WriteString(v.w, "\x1b[2J"); err != nil {
			return err
		}
	}
	for {
		s, err := get(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err := v.frame(s, err); err != nil {
			return fmt.Errorf("write status: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// frame writes one moment of a watch: on a terminal over the last one, without
// flicker, else as a line.
func (v *viewer) frame(s sight, err error) error {
	now := time.Now()
	switch {
	case v.json && err != nil:
		return json.NewEncoder(v.w).Encode(map[string]any{"at": now, "error": err.Error()})
	case v.json:
		e := json.NewEncoder(v.w)
		e.SetEscapeHTML(false)
		return e.Encode(s)
	case v.terminal == nil && err != nil:
		_, err := fmt.Fprintf(v.w, "%s %s\n", now.UTC().Format(time.RFC3339), err)
		return err
	case v.terminal == nil && s.cluster == nil:
		_, err := fmt.Fprintln(v.w, control.Line(s.status, now))
		return err
	}
	var b bytes.Buffer
	if err != nil {
		fmt.Fprintf(&b, "%s\n%s\n", err, now.UTC().Format(time.RFC3339))
	} else if err := v.draw(&b, s); err != nil {
		return err
	}
	if v.terminal == nil {
		_, err := v.w.Write(b.Bytes())
		return err
	}
	// Home; each line erases what was behind it, the end what was below.
	text := strings.ReplaceAll(b.String(), "\n", "\x1b[K\n")
	_, err = io.WriteString(v.w, "\x1b[H"+text+"\x1b[J")
	return err
}

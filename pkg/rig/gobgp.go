package rig

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// A GoBGP is gobgpd. It sends Adj-RIB-In, pre- and post-policy, and Loc-RIB.
type GoBGP struct {
	*Process
	*router
	api string // host:port of its gRPC interface
}

var _ Router = (*GoBGP)(nil)

// StartGoBGP starts gobgpd.
func StartGoBGP(ctx context.Context, o RouterOptions) (*GoBGP, error) {
	r, err := newRouter("gobgp", o)
	if err != nil {
		return nil, err
	}
	g := &GoBGP{router: r}
	if g.api, err = freeAddr(); err != nil {
		r.release()
		return nil, fmt.Errorf("start gobgp: %w", err)
	}
	conf := filepath.Join(r.dir.path, "gobgpd.toml")
	if err := os.WriteFile(conf, []byte(g.config()), 0o600); err != nil {
		r.release()
		return nil, fmt.Errorf("start gobgp: %w", err)
	}
	bgp, api := dialable(g.BGP()), dialable(g.api)
	g.Process, err = Start(ctx, Command{
		Name: "gobgp", Path: "gobgpd", Args: []string{"-f", conf, "--api-hosts", g.api, "--pprof-disable"},
		Log:   filepath.Join(r.dir.path, "gobgpd.log"),
		Ready: func() error { return errors.Join(bgp(), api()) },
	})
	if err != nil {
		r.release()
		return nil, err
	}
	return g, nil
}

func (g *GoBGP) config() string {
	var b strings.Builder
	o := g.o
	quoted := make([]string, len(o.Addrs))
	for i, a := range o.Addrs {
		quoted[i] = strconv.Quote(a.String())
	}
	fmt.Fprintf(&b, "[global.config]\n  as = %d\n  router-id = %q\n  port = %d\n  local-address-list = [%s]\n",
		o.AS, o.ID, g.port, strings.Join(quoted, ", "))
	for _, l := range g.links {
		host, port := hostPort(l.Addr())
		fmt.Fprintf(&b, `[[bmp-servers]]
  [bmp-servers.config]
    address = %q
    port = %d
    route-monitoring-policy = "all"
    statistics-timeout = %d
`, host, port, max(15, int(o.StatsEvery.Seconds())))
	}
	for _, n := range o.Neighbors {
		fmt.Fprintf(&b, `[[neighbors]]
  [neighbors.config]
    neighbor-address = %q
    peer-as = %d
  [neighbors.transport.config]
    passive-mode = true
  [neighbors.ebgp-multihop.config]
    enabled = true
    multihop-ttl = 255
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
      afi-safi-name = "ipv4-unicast"
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
      afi-safi-name = "ipv6-unicast"
`, n.Addr, n.AS)
	}
	return b.String()
}

// Show runs gobgpd's own command, gobgp, such as "global", "rib", "-j", and returns
// what it printed.
func (g *GoBGP) Show(ctx context.Context, args ...string) ([]byte, error) {
	host, port := hostPort(g.api)
	out, err := exec.CommandContext(ctx, "gobgp", append([]string{"-u", host, "-p", strconv.Itoa(port)}, args...)...).Output()
	if err != nil {
		return nil, fmt.Errorf("gobgp %s: %w", strings.Join(args, " "), err)
	}
	return out, nil
}

// Table asks gobgpd by its own command, gobgp.
func (g *GoBGP) Table(ctx context.Context) (Table, error) {
	t := make(Table)
	for _, family := range []string{"ipv4", "ipv6"} {
		out, err := g.Show(ctx, "global", "rib", "-a", family, "-j")
		if err == nil {
			err = addGoBGPTable(t, out)
		}
		if err != nil {
			return nil, fmt.Errorf("gobgp's %s table: %w", family, err)
		}
	}
	return t, nil
}

func addGoBGPTable(t Table, text []byte) error {
	var answer map[netip.Prefix][]struct {
		Neighbor netip.Addr `json:"neighbor-ip"`
		Attrs    []struct {
			Type    int        `json:"type"`
			NextHop netip.Addr `json:"nexthop"`
			Paths   []struct {
				ASNs []uint32 `json:"asns"`
			} `json:"as_paths"`
		} `json:"attrs"`
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return err
	}
	for prefix, paths := range answer {
		for _, p := range paths {
			r := Route{Peer: p.Neighbor, Prefix: prefix}
			for _, a := range p.Attrs {
				if a.NextHop.IsValid() {
					r.NextHop = a.NextHop
				}
				for _, seg := range a.Paths {
					r.ASPath = strings.TrimSpace(r.ASPath + " " + asPath(seg.ASNs...))
				}
			}
			t[r] = true
		}
	}
	return nil
}

// Close ends gobgpd, frees its links and removes its temporary folder.
func (g *GoBGP) Close() error {
	if err := g.Process.Close(); err != nil {
		return err
	}
	return g.release()
}

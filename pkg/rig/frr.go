package rig

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// An FRR is FRRouting's bgpd with its BMP module, without zebra: it then takes
// every next hop for reachable, so that routes are valid at once. It sends
// Adj-RIB-In, pre- and post-policy, IPv4 and IPv6 unicast.
type FRR struct {
	*Process
	*router
}

var _ Router = (*FRR)(nil)

// StartFRR starts bgpd.
func StartFRR(ctx context.Context, o RouterOptions) (*FRR, error) {
	r, err := newRouter("frr", o)
	if err != nil {
		return nil, err
	}
	f := &FRR{router: r}
	conf, vty := f.path("bgpd.conf"), f.path("vty")
	if err := os.MkdirAll(vty, 0o700); err != nil {
		r.release()
		return nil, fmt.Errorf("start frr: %w", err)
	}
	if err := os.WriteFile(conf, []byte(f.config()), 0o600); err != nil {
		r.release()
		return nil, fmt.Errorf("start frr: %w", err)
	}
	args := []string{
		"-M", "bmp", "-S", "-Z", "-f", conf, "-i", f.path("bgpd.pid"), "-z", f.path("zserv.api"),
		"--vty_socket", vty, "-P", "0", "-p", strconv.Itoa(r.port),
		"--log", "stdout", "--log-level", "warn",
	}
	for _, a := range r.o.Addrs {
		args = append(args, "-l", a.String())
	}
	f.Process, err = Start(ctx, Command{
		Name: "frr", Path: filepath.Join(frrLib, "bgpd"), Args: args, Log: f.path("bgpd.log"),
		Ready: dialable(f.BGP()),
	})
	if err != nil {
		r.release()
		return nil, err
	}
	return f, nil
}

func (f *FRR) path(name string) string { return filepath.Join(f.dir.path, name) }

// config writes bgpd.conf. Each collector gets a target of its own: sessions of
// one target share a queue, and a slow one then ends with stale routes (8.4.4).
// Without soft-reconfiguration every pre-policy record is a withdrawal.
func (f *FRR) config() string {
	var b strings.Builder
	o := f.o
	fmt.Fprintf(&b, "hostname rig-frr\nbgp allow-martian-nexthop\nrouter bgp %d\n bgp router-id %s\n no bgp ebgp-requires-policy\n", o.AS, o.ID)
	for _, n := range o.Neighbors {
		fmt.Fprintf(&b, " neighbor %[1]s remote-as %[2]d\n neighbor %[1]s passive\n neighbor %[1]s disable-connected-check\n", n.Addr, n.AS)
	}
	for _, family := range []string{"ipv4", "ipv6"} {
		fmt.Fprintf(&b, " address-family %s unicast\n", family)
		for _, n := range o.Neighbors {
			fmt.Fprintf(&b, "  neighbor %[1]s activate\n  neighbor %[1]s soft-reconfiguration inbound\n", n.Addr)
		}
		b.WriteString(" exit-address-family\n")
	}
	for i, l := range f.links {
		host, port := hostPort(l.Addr())
		fmt.Fprintf(&b, " bmp targets T%d\n", i)
		for _, family := range []string{"ipv4", "ipv6"} {
			fmt.Fprintf(&b, "  bmp monitor %[1]s unicast pre-policy\n  bmp monitor %[1]s unicast post-policy\n", family)
		}
		fmt.Fprintf(&b, "  bmp stats interval %d\n  bmp connect %s port %d min-retry 100 max-retry 500\n exit\n",
			o.StatsEvery.Milliseconds(), host, port)
	}
	b.WriteString("exit\n")
	return b.String()
}

// VTY runs one command on bgpd's terminal, such as "clear bgp * soft in", and
// returns what it printed.
func (f *FRR) VTY(ctx context.Context, command string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, "vtysh", "--vty_socket", f.path("vty"), "-d", "bgpd", "-c", command).Output()
	if err != nil {
		return nil, fmt.Errorf("vtysh %q: %w", command, err)
	}
	return out, nil
}

// Table asks bgpd. In its BMP, bgpd puts the own AS number before the AS path of
// an external neighbour; so does Table.
func (f *FRR) Table(ctx context.Context) (Table, error) {
	t := make(Table)
	for _, family := range []string{"ipv4", "ipv6"} {
		out, err := f.VTY(ctx, "show bgp "+family+" unicast json")
		if err != nil {
			return nil, err
		}
		if err := f.addTable(t, out); err != nil {
			return nil, fmt.Errorf("frr's %s table: %w", family, err)
		}
	}
	return t, nil
}

func (f *FRR) addTable(t Table, text []byte) error {
	var answer struct {
		Routes map[netip.Prefix][]struct {
			Peer     netip.Addr `json:"peerId"`
			Path     string     `json:"path"`
			NextHops []struct {
				IP    netip.Addr `json:"ip"`
				Scope string     `json:"scope"` // IPv6 only
			} `json:"nexthops"`
		} `json:"routes"`
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return err
	}
	for prefix, paths := range answer.Routes {
		for _, p := range paths {
			r := Route{Peer: p.Peer, Prefix: prefix, ASPath: strings.TrimSpace(asPath(f.o.AS) + " " + p.Path)}
			for _, nh := range p.NextHops {
				if nh.Scope != "link-local" {
					r.NextHop = nh.IP
				}
			}
			t[r] = true
		}
	}
	return nil
}

// Close ends bgpd, frees its links and removes its temporary folder.
func (f *FRR) Close() error {
	if err := f.Process.Close(); err != nil {
		return err
	}
	return f.release()
}

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/rig"
)

const pmacctDir = "../../pmacct"

// TestPmacctPairs: the two halves of each pair in pmacct/ fit, without a note.
func TestPmacctPairs(t *testing.T) {
	t.Parallel()
	for _, daemon := range []string{"pmbmpd", "nfacctd"} {
		for _, mode := range []string{"relay", "intake", "both"} {
			ours, theirs := fmt.Sprintf("bmpha-%s.yaml", mode), fmt.Sprintf("%s-%s.conf", daemon, mode)
			cmd := exec.Command(program(t), "config", "check", "-c", ours, "--pmacct", theirs)
			cmd.Dir = pmacctDir
			out, err := cmd.CombinedOutput()
			if want := ours + " with " + theirs + ": ok\n"; err != nil || string(out) != want {
				t.Errorf("%v\n%s", err, out)
			}
		}
	}
}

// TestPmacctTakes: pmacct starts with each of its configurations in pmacct/, with
// those that from-pmacct makes of the plain one, too, and complains of no line.
func TestPmacctTakes(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(pmacctDir, "*.conf"))
	if err != nil || len(files) < 7 {
		t.Fatalf("%d configurations, %v", len(files), err)
	}
	dir := t.TempDir()
	for _, mode := range []string{"relay", "intake", "both"} {
		files = append(files, changed(t, filepath.Join(pmacctDir, "pmbmpd.conf"), mode, dir))
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			startPmacct(t, file)
		})
	}
}

// changed is a configuration of pmacct with what from-pmacct changes in it.
func changed(t *testing.T, file, mode, dir string) string {
	t.Helper()
	if _, err := exec.LookPath("patch"); err != nil {
		t.Skip("patch is not installed")
	}
	diff, err := exec.Command(program(t), "config", "from-pmacct", file, "--mode", mode, "--diff").Output()
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, "pmbmpd-made-"+mode+".conf")
	cmd := exec.Command("patch", "-o", to, file)
	cmd.Stdin = strings.NewReader(string(diff))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, diff)
	}
	return to
}

// startPmacct starts the daemon for which a file is, on free ports, until it
// listens.
func startPmacct(t *testing.T, file string) {
	daemon, _, _ := strings.Cut(strings.TrimSuffix(filepath.Base(file), ".conf"), "-")
	path := "/usr/sbin/" + daemon
	if _, err := os.Stat(path); err != nil {
		t.Skipf("%s is not installed", daemon)
	}
	src, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ports := map[string]string{"bmp_daemon_port": freePort(t), "nfacctd_port": freePort(t), "bmp_daemon_msglog_kafka_broker_port": freePort(t), "bmp_dump_kafka_broker_port": freePort(t)}
	lines := []string{"daemonize: false"}
	for line := range strings.Lines(string(src)) {
		key, _, _ := strings.Cut(line, ":")
		switch {
		case ports[key] != "":
			line = key + ": " + ports[key]
		case key == "bmp_daemon_ip":
			line = key + ": 127.0.0.1"
		case key == "imt_path":
			line = key + ": " + filepath.Join(dir, "pipe")
		}
		lines = append(lines, strings.TrimSpace(line))
	}
	conf, log := filepath.Join(dir, filepath.Base(file)), filepath.Join(dir, "log")
	if err := os.WriteFile(conf, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience*time.Minute)
	defer cancel()
	waiting := "waiting for BMP data on 127.0.0.1:" + ports["bmp_daemon_port"]
	p, err := rig.Start(ctx, rig.Command{
		Path: path, Args: []string{"-f", conf}, Log: log, StopSignal: syscall.SIGINT, Grace: 3 * time.Second,
		ReadyWithin: patience * 30 * time.Second,
		Ready: func() error {
			if text, err := os.ReadFile(log); err != nil || !strings.Contains(string(text), waiting) {
				return fmt.Errorf("no line %q: %v\n%s", waiting, err, text)
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for _, complaint := range regexp.MustCompile(`(?m)^(WARN|ERROR).*$`).FindAllString(string(text), -1) {
		t.Error(complaint)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	port, err := rig.FreePort("")
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(port)
}

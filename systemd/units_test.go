// Package systemd_test checks the units that are installed with bmpha.
package systemd_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var execStart = regexp.MustCompile(`(?m)^ExecStart=(\S+) (.*)$`)

// tool returns the path of one of systemd's programs. Without it the test is
// skipped, or fails if CI=true.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is not installed; it comes with the package systemd", name)
		}
		t.Skipf("%s is not installed: units are not verified", name)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var units = map[string]string{ // file to name of the unit
	"bmpha.service":  "bmpha.service",
	"bmpha@.service": "bmpha@edge.service",
}

// The units are verified as they are but for the program, which need not be
// installed here.
func TestUnitsVerify(t *testing.T) {
	analyze := tool(t, "systemd-analyze")
	for file, unit := range units {
		t.Run(file, func(t *testing.T) {
			out, err := verify(t, analyze, file, unit, nil)
			if err != nil || out != "" {
				t.Errorf("systemd-analyze verify: %v\n%s", err, out)
			}
			// The check must be able to fail.
			out, _ = verify(t, analyze, file, unit, func(text string) string {
				return strings.Replace(text, "WatchdogSec=10s", "WatchdogSecs=10s", 1)
			})
			if !strings.Contains(out, "WatchdogSecs") {
				t.Errorf("a misspelled key was not reported:\n%s", out)
			}
		})
	}
}

func verify(t *testing.T, analyze, file, unit string, change func(string) string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "bmpha")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	src, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(src)
	if m := execStart.FindStringSubmatch(text); m == nil || m[1] != "/usr/bin/bmpha" {
		t.Fatalf("%s does not start /usr/bin/bmpha", file)
	}
	text = execStart.ReplaceAllString(text, "ExecStart="+program+" $2")
	if change != nil {
		text = change(text)
	}
	// verify derives an instance from its template's file.
	if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	// Mistakes in other units of this host are not ours to fix.
	cmd := exec.Command(analyze, "verify", "--man=no", "--recursive-errors=no", filepath.Join(dir, unit))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// What is in the instance template and what is in the plain unit differ in the
// name of the instance only.
func TestTemplateIsTheUnitWithAnInstance(t *testing.T) {
	read := func(name string) []string {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var settings []string
		for line := range strings.Lines(string(src)) {
			line = strings.TrimSpace(line)
			if line == "" || line[0] == '#' || strings.HasPrefix(line, "Environment=BMPHA_") {
				continue
			}
			settings = append(settings, strings.NewReplacer(
				" (%i)", "", "/%i.yaml", "/bmpha.yaml", "-%i", "").Replace(line))
		}
		return settings
	}
	plain, template := read("bmpha.service"), read("bmpha@.service")
	if got, want := strings.Join(template, "\n"), strings.Join(plain, "\n"); got != want {
		t.Errorf("bmpha@.service:\n%s\n\nbmpha.service:\n%s", got, want)
	}
}

func TestSysusers(t *testing.T) {
	sysusers := tool(t, "systemd-sysusers")
	src, err := os.Open("bmpha.sysusers")
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	// Below another root there is no user bmpha yet.
	cmd := exec.Command(sysusers, "--dry-run", "--root="+t.TempDir(), "-")
	cmd.Stdin = src
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("systemd-sysusers: %v\n%s", err, out)
	}
	if !strings.Contains(string(out), "bmpha") {
		t.Errorf("no user bmpha would be made:\n%s", out)
	}
}

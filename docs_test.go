// Package bmpha_test checks the documents at the top of the tree: what they tell
// people to type works.
package bmpha_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/rig"
)

// fence is a fenced block of a Markdown file.
type fence struct{ lang, text string }

func fences(t *testing.T, file string) []fence {
	t.Helper()
	src, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var list []fence
	for _, m := range regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)^```$").FindAllStringSubmatch(string(src), -1) {
		list = append(list, fence{m[1], m[2]})
	}
	if len(list) == 0 {
		t.Fatalf("%s has no commands", file)
	}
	return list
}

// commands returns the lines of the sh blocks that begin with prefix.
func commands(t *testing.T, file, prefix string) (list []string) {
	for _, f := range fences(t, file) {
		if f.lang != "sh" {
			continue
		}
		for line := range strings.Lines(f.text) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, prefix) {
				list = append(list, line)
			}
		}
	}
	return list
}

func install(t *testing.T) (bin, root string) {
	t.Helper()
	root = t.TempDir()
	out, err := exec.Command("make", "install", "DESTDIR="+root).CombinedOutput()
	if err != nil {
		t.Fatalf("make install: %v\n%s", err, out)
	}
	return filepath.Join(root, "usr/local/bin/bmpha"), root
}

// TestMakeInstall: what README's installation leaves behind.
func TestMakeInstall(t *testing.T) {
	bin, root := install(t)
	for _, file := range []string{
		"usr/local/lib/systemd/system/bmpha.service",
		"usr/local/lib/systemd/system/bmpha@.service",
		"usr/local/lib/sysusers.d/bmpha.conf",
		"usr/local/share/doc/bmpha/bmpha.yaml",
		"usr/local/share/man/man1/bmpha.1",
		"usr/local/share/bash-completion/completions/bmpha",
	} {
		if _, err := os.Stat(filepath.Join(root, file)); err != nil {
			t.Error(err)
		}
	}
	unit, err := os.ReadFile(filepath.Join(root, "usr/local/lib/systemd/system/bmpha.service"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(unit, []byte("ExecStart=/usr/local/bin/bmpha run")) {
		t.Errorf("the unit starts another program:\n%s", unit)
	}
	if out, err := exec.Command(bin, "version").CombinedOutput(); err != nil {
		t.Errorf("version: %v\n%s", err, out)
	}
}

// TestSudoMakeInstall: root, who may have no go, installs what make has built.
func TestSudoMakeInstall(t *testing.T) {
	install(t) // builds
	out, err := exec.Command("make", "install", "SUDO_USER=somebody", "GO=false", "DESTDIR="+t.TempDir()).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestCompletion: bash asks the program.
func TestCompletion(t *testing.T) {
	bin, root := install(t)
	for words, want := range map[string]string{
		"bmpha ma":              "maintenance",
		"bmpha config ":         "check show",
		"bmpha maintenance --f": "--force",
	} {
		script := fmt.Sprintf(`PATH=%s:$PATH; source %s
COMP_WORDS=(%s); [[ "%s" == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]}-1)); _bmpha; printf '%%s\n' "${COMPREPLY[@]}"`,
			filepath.Dir(bin), filepath.Join(root, "usr/local/share/bash-completion/completions/bmpha"), words, words)
		out, err := exec.Command("bash", "-c", script).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, w := range strings.Fields(want) {
			if !slices.Contains(strings.Fields(string(out)), w) {
				t.Errorf("%q completes to %q, want %s", words, out, w)
			}
		}
	}
}

// TestTargetsExist: every make command in the documents is a target.
func TestTargetsExist(t *testing.T) {
	for _, file := range []string{"README.md", "docs/failover.md"} {
		for _, line := range commands(t, file, "make ") {
			for _, part := range strings.Split(line, "&&") {
				args := strings.Fields(part)
				if len(args) < 2 || args[0] != "make" {
					continue
				}
				if out, err := exec.Command("make", append([]string{"-n"}, args[1:]...)...).CombinedOutput(); err != nil {
					t.Errorf("%s: %s: %v\n%s", file, part, err, out)
				}
			}
		}
	}
}

// TestBesidePmacct follows README's way to a running pmacct: a configuration made
// of pmacct's, pmacct's changed by the patch, and nothing that contradicts.
func TestBesidePmacct(t *testing.T) {
	if _, err := exec.LookPath("patch"); err != nil {
		t.Skip("patch is not installed")
	}
	bin, _ := install(t)
	dir := t.TempDir()
	conf, err := os.ReadFile("pmacct/pmbmpd.conf")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "pmbmpd.conf"), conf, 0o600); err != nil {
		t.Fatal(err)
	}
	// What an operator does between the commands.
	between := map[string]string{"config from-pmacct --diff": " | patch " + dir + "/pmbmpd.conf"}
	n := 0
	for _, line := range commands(t, "README.md", "bmpha ") {
		if !strings.Contains(line, "/etc/pmacct/") {
			continue
		}
		n++
		for part, more := range between {
			if strings.Contains(line, part) {
				line += more
			}
		}
		line = strings.NewReplacer("/etc/pmacct", dir, "/etc/bmpha", dir).Replace(line)
		cmd := exec.Command("bash", "-o", "pipefail", "-c", line)
		cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(bin)+":"+os.Getenv("PATH"), "BMPHA_CONFIG="+filepath.Join(dir, "bmpha.yaml"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", line, err, out)
		}
	}
	if n != 3 {
		t.Errorf("%d commands about pmacct in the README", n)
	}
}

// TestFiveMinutes follows README's way to production on two "hosts": the
// configuration as printed there, but for addresses, and every bmpha command in
// the order in which it stands.
func TestFiveMinutes(t *testing.T) {
	bin, _ := install(t)
	redis, err := rig.StartEmbeddedRedis(rig.RedisOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer redis.Close()
	kafka, err := rig.StartEmbeddedKafka(t.Context(), rig.KafkaOptions{Topics: map[string]int{"bmp": 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer kafka.Close()
	var yaml string
	for _, f := range fences(t, "README.md") {
		if f.lang == "yaml" {
			yaml = f.text
			break
		}
	}
	dir := t.TempDir()
	var env [2][]string
	for i, name := range []string{"collector-a", "collector-b"} {
		text := strings.NewReplacer(
			"redis.example.net:6379", redis.Addr(), "kafka.example.net:9092", kafka.Brokers(), "collector-a", name,
		).Replace(yaml)
		if !strings.Contains(text, redis.Addr()) || !strings.Contains(text, kafka.Brokers()) {
			t.Fatalf("the configuration in the README has other addresses:\n%s", text)
		}
		file := filepath.Join(dir, name+".yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		// What a second host would make unnecessary.
		env[i] = append(os.Environ(),
			"BMPHA_CONFIG="+file,
			"BMPHA_LISTEN_ADDRESS=127.0.0.1:0",
			"BMPHA_CONTROL_SOCKET="+filepath.Join(dir, name+".sock"),
			"BMPHA_SOCKET="+filepath.Join(dir, name+".sock"),
			"BMPHA_KAFKA_DEAD_LETTER="+filepath.Join(dir, name+".dead"),
		)
	}
	bmpha := func(host int, args ...string) (string, int) {
		cmd := exec.Command(bin, args...)
		cmd.Env = env[host]
		out, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	for _, line := range commands(t, "README.md", "bmpha ") {
		if strings.Contains(line, "/etc/pmacct/") {
			continue // TestBesidePmacct
		}
		args := strings.Fields(line)[1:]
		out, code := bmpha(0, args...)
		t.Logf("$ %s\n%s", line, out)
		if code != 0 {
			t.Fatalf("%s: exit code %d", line, code)
		}
		if line == "bmpha config check" { // the next line in the README starts the service
			for host := range env {
				startAndWait(t, bin, env[host], func() (string, int) { return bmpha(host, "status") })
			}
		}
		if line == "bmpha maintenance" && !strings.Contains(out, "collector-b is active") {
			t.Errorf("maintenance did not hand over: %s", out)
		}
	}
}

// startAndWait runs a collector until the test ends, and waits until it has a
// role.
func startAndWait(t *testing.T, bin string, env []string, status func() (string, int)) {
	t.Helper()
	var log bytes.Buffer
	cmd := exec.Command(bin, "run")
	cmd.Env, cmd.Stderr = env, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v\n%s", err, &log)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := rig.WaitFor(ctx, func() error {
		out, code := status()
		if code == 0 || code == 3 { // active, standby
			return nil
		}
		return fmt.Errorf("exit code %d: %s", code, out)
	}); err != nil {
		t.Fatal(err)
	}
}

// TestPmacctConfigurations: what stands in pmacct/ can be run.
func TestPmacctConfigurations(t *testing.T) {
	bin, _ := install(t)
	if out, err := exec.Command(bin, "config", "check", "-c", "pmacct/bmpha.yaml").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	rig.Require(t, rig.PmbmpdPart)
	conf, err := os.ReadFile("pmacct/pmbmpd.conf")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string // but for the address, which the rig chooses
	for line := range strings.Lines(string(conf)) {
		if key, _, ok := strings.Cut(line, ":"); ok && !strings.HasPrefix(line, "!") && key != "bmp_daemon_ip" && key != "bmp_daemon_port" {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	p, err := rig.StartPmbmpd(ctx, rig.PmbmpdOptions{Config: lines})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// TestLinks: files that the documents point to exist.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)\)`)
	for _, file := range []string{"README.md", "DESIGN.md", "CHANGELOG.md", "pmacct/README.md", "docs/beside.md", "docs/failover.md", "docs/native.md", "docs/benchmarks.md"} {
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllSubmatch(src, -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(file), string(m[1]))); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
	}
}

// TestExitCodeFour: docs/failover.md names every problem that makes the exit code 4,
// and calls no other one that.
func TestExitCodeFour(t *testing.T) {
	text, err := os.ReadFile("docs/failover.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(text), "These make the exit code 4:")
	list, _, end := strings.Cut(after, "All others are")
	if !ok || !end {
		t.Fatal("docs/failover.md has no list of problems")
	}
	var told []string
	for _, m := range regexp.MustCompile("`([a-z]+_?[a-z_]*)`").FindAllStringSubmatch(list, -1) {
		told = append(told, m[1])
	}
	src, err := os.ReadFile("pkg/control/problems.go")
	if err != nil {
		t.Fatal(err)
	}
	var codes []string // of all whose severity is not always Notice
	for _, m := range regexp.MustCompile(`d\.(?:add|router)\((Degraded|severity|missing), (name\+)?"(\w+)"`).FindAllStringSubmatch(string(src), -1) {
		if m[2] == "" {
			codes = append(codes, m[3])
			continue
		}
		for _, name := range regexp.MustCompile(`d\.room\("(\w+)"`).FindAllStringSubmatch(string(src), -1) {
			codes = append(codes, name[1]+m[3])
		}
	}
	slices.Sort(told)
	slices.Sort(codes)
	if codes = slices.Compact(codes); !slices.Equal(told, codes) || len(codes) < 30 {
		t.Errorf("docs/failover.md has\n%s\npkg/control has\n%s", told, codes)
	}
}

// TestFailoverSettings: what docs/failover.md tells people to set is accepted, and has
// an effect.
func TestFailoverSettings(t *testing.T) {
	bin, _ := install(t)
	n := 0
	for _, f := range fences(t, "docs/failover.md") {
		if f.lang != "yaml" {
			continue
		}
		n++
		dir := t.TempDir()
		secret, file := filepath.Join(dir, "secret"), filepath.Join(dir, "bmpha.yaml")
		text := strings.ReplaceAll(f.text, "/etc/bmpha/link.secret", secret)
		for path, content := range map[string]string{secret: strings.Repeat("0123456789abcdef", 4), file: text} {
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command(bin, "config", "check", "-c", file)
		cmd.Env = append(os.Environ(), "BMPHA_PROCESS=collector-a", "BMPHA_KAFKA_BROKERS=kafka.example.net:9092")
		out, err := cmd.CombinedOutput()
		if err != nil || bytes.Contains(out, []byte("no effect")) {
			t.Errorf("%v\n%s\n%s", err, text, out)
		}
	}
	if n != 4 {
		t.Errorf("%d settings", n)
	}
}

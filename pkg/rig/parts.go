package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

// The names of the real parts.
const (
	RedisServerPart = "redis-server"
	KafkaPart       = "kafka"
	FRRPart         = "frr"
	GoBGPPart       = "gobgp"
	PmbmpdPart      = "pmbmpd"
)

// KafkaVersion is the version of Apache Kafka that scripts/install-parts
// fetches.
const KafkaVersion = "3.9.1"

// A Part is a real server or router that tests want.
type Part struct {
	Name    string
	Path    string // the program, or Kafka's folder of jars; "" when missing
	Version string
	Missing string // why it cannot be used; "" when it can
}

// frrLib is where Debian keeps FRR's daemons.
const frrLib = "/usr/lib/frr"

var lookParts = sync.OnceValue(func() []Part {
	return []Part{
		lookProgram(RedisServerPart, "redis-server", `v=(\S+)`, "--version"),
		lookKafka(),
		lookProgram(FRRPart, filepath.Join(frrLib, "bgpd"), `version (\S+)`, "--version"),
		lookProgram(GoBGPPart, "gobgpd", `version (\S+)`, "--version"),
		lookProgram(PmbmpdPart, "/usr/sbin/pmbmpd", `pmbmpd (\S+)`, "-V"),
	}
})

// Parts returns what is installed, always all parts in the same order. It looks
// once per process.
func Parts() []Part { return append([]Part(nil), lookParts()...) }

func installed(name string) bool {
	for _, p := range lookParts() {
		if p.Name == name {
			return p.Missing == ""
		}
	}
	return false
}

func lookProgram(name, program, pattern string, args ...string) Part {
	path, err := exec.LookPath(program)
	if err != nil {
		return Part{Name: name, Missing: program + " is not installed"}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	// Some print their version and then fail; only the text counts.
	out, _ := exec.CommandContext(ctx, path, args...).CombinedOutput()
	p := Part{Name: name, Path: path, Version: "unknown"}
	if m := regexp.MustCompile(pattern).FindSubmatch(out); m != nil {
		p.Version = string(m[1])
	}
	return p
}

func lookKafka() Part {
	dir, err := KafkaDir()
	if err != nil {
		return Part{Name: KafkaPart, Missing: err.Error()}
	}
	if _, err := exec.LookPath("java"); err != nil {
		return Part{Name: KafkaPart, Missing: "java is not installed"}
	}
	return Part{Name: KafkaPart, Path: dir, Version: KafkaVersion}
}

// KafkaDir returns the folder with Kafka's jars: kafka-<KafkaVersion> under
// $BMPHA_CACHE, or under bmpha in the user's cache folder.
func KafkaDir() (string, error) {
	cache := os.Getenv("BMPHA_CACHE")
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("kafka's jars: %w", err)
		}
		cache = filepath.Join(user, "bmpha")
	}
	dir := filepath.Join(cache, "kafka-"+KafkaVersion)
	jar := filepath.Join(dir, "kafka_2.13-"+KafkaVersion+".jar")
	if _, err := os.Stat(jar); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("no jars in %s", dir)
		}
		return "", fmt.Errorf("kafka's jars: %w", err)
	}
	return dir, nil
}

// Missing is one line for people: which real parts are missing, or that none is.
func Missing() string {
	var missing []string
	for _, p := range lookParts() {
		if p.Missing != "" {
			missing = append(missing, fmt.Sprintf("%s (%s)", p.Name, p.Missing))
		}
	}
	if len(missing) == 0 {
		return "all real parts present"
	}
	return "missing real parts: " + strings.Join(missing, ", ")
}

// Require skips the test when one of the named parts is missing. With CI=true or
// BMPHA_REQUIRE=1 it fails the test instead.
func Require(t TB, names ...string) {
	t.Helper()
	for _, name := range names {
		why := "no such part is known"
		for _, p := range lookParts() {
			if p.Name == name {
				why = p.Missing
			}
		}
		if why == "" {
			continue
		}
		if os.Getenv("CI") == "true" || os.Getenv("BMPHA_REQUIRE") == "1" {
			t.Fatalf("real part %s is required here: %s (scripts/install-parts installs it)", name, why)
		}
		t.Skipf("real part %s: %s (scripts/install-parts installs it)", name, why)
	}
}

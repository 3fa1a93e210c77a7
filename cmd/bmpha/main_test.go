package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/bmpha/bmpha/pkg/rig"
)

// The tests here run the program as operators do: the binary, built once, as
// processes of its own, against Redis and Kafka (the real ones where they are
// installed) and against routers. With the race detector on in the tests it is on
// in the binary, too.

var (
	scratch string      // removed at the end
	machine *rig.Stalls // what it keeps everybody waiting
	ends    struct {
		sync.Mutex
		list []func() error
	}
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) (code int) {
	var err error
	if scratch, err = os.MkdirTemp("", "bmpha-e2e-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	machine = rig.WatchStalls()
	defer func() {
		machine.Close()
		for _, end := range ends.list {
			err = errors.Join(err, end())
		}
		if err = errors.Join(err, os.RemoveAll(scratch)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}()
	return m.Run()
}

// atEnd registers what is to be ended after all tests.
func atEnd(f func() error) {
	ends.Lock()
	defer ends.Unlock()
	ends.list = append(ends.list, f)
}

var build = sync.OnceValues(func() (string, error) {
	path := filepath.Join(scratch, "bin", "bmpha")
	args := []string{"build", "-o", path}
	if raced {
		args = append(args, "-race")
	}
	out, err := exec.Command("go", append(args, ".")...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build bmpha: %w\n%s", err, out)
	}
	return path, nil
})

// program returns the path of the program.
func program(t testing.TB) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Tests that do no harm to Redis and Kafka share one of each, with a cluster and
// a topic of their own.
var (
	commonRedis = sync.OnceValues(func() (rig.Redis, error) {
		r, err := rig.StartRedis(context.Background(), rig.RedisOptions{})
		if err == nil {
			atEnd(r.Close)
		}
		return r, err
	})
	commonKafka = sync.OnceValues(func() (rig.Kafka, error) {
		k, err := rig.StartKafka(context.Background(), rig.KafkaOptions{})
		if err == nil {
			atEnd(k.Close)
		}
		return k, err
	})
)

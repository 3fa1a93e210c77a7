package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// tick is the unit of CPU time in /proc: USER_HZ is 100 on every Linux port that
// Go has.
const tick = 10 * time.Millisecond

// A window is a stretch of time in which the machine is watched.
type window struct {
	broker int // its process id

	busy, total, self, brokerCPU time.Duration
}

// watchMachine begins a window with a broker that takes part.
func watchMachine(to counter) (*window, error) {
	w := &window{broker: to.pid()}
	var err error
	if w.busy, w.total, err = machineCPU(); err != nil {
		return nil, err
	}
	w.self = selfCPU()
	w.brokerCPU, err = processCPU(w.broker)
	return w, err
}

// others returns which share of the machine went to other processes than the
// daemon, which used cpu, the broker and this program. Time that the hypervisor
// took counts as used.
func (w *window) others(cpu time.Duration) (float64, error) {
	busy, total, err := machineCPU()
	if err != nil {
		return 0, err
	}
	broker, err := processCPU(w.broker)
	if err != nil {
		return 0, err
	}
	rest := busy - w.busy - cpu - (selfCPU() - w.self) - (broker - w.brokerCPU)
	return max(0, rest.Seconds()/(total-w.total).Seconds()), nil
}

// machineCPU returns the time that all cores have been busy, and that they have
// been there.
func machineCPU() (busy, total time.Duration, err error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, fmt.Errorf("time of the machine: %w", err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	// cpu user nice system idle iowait irq softirq steal; guest is in user.
	fields := strings.Fields(line)
	if len(fields) < 9 {
		return 0, 0, fmt.Errorf("time of the machine: unexpected %q", line)
	}
	for i, f := range fields[1:9] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("time of the machine: %w", err)
		}
		total += time.Duration(n) * tick
		if i != 3 && i != 4 {
			busy += time.Duration(n) * tick
		}
	}
	return busy, total, nil
}

// processCPU returns the user and system time of a process.
func processCPU(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("time of process %d: %w", pid, err)
	}
	// The name before the last bracket may contain anything.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("time of process %d: unexpected %q", pid, b)
	}
	var sum time.Duration
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("time of process %d: %w", pid, err)
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}

func selfCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0 // cannot fail with these arguments
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

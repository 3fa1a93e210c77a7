package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// results are what `go test -bench` printed: by benchmark and unit, one value for
// each repetition.
type results map[string]map[string][]float64

// goBench runs benchmarks of one package of this module.
func (r *run) goBench(ctx context.Context, pkg, pattern, benchtime string, more ...string) (results, string, error) {
	if r.quick && benchtime == "1s" {
		benchtime = "200ms"
	}
	args := []string{"test", "./pkg/" + pkg, "-run", "^$", "-bench", pattern, "-benchtime", benchtime, "-count", strconv.Itoa(r.repeats)}
	args = append(args, more...)
	command := "go " + strings.Join(args, " ")
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, command, fmt.Errorf("%s: %w\n%s", command, err, out)
	}
	got := make(results)
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		// The number of cores follows, unless it is one.
		name, _, _ := strings.Cut(strings.TrimPrefix(fields[0], "Benchmark"), "-")
		if got[name] == nil {
			got[name] = make(map[string][]float64)
		}
		for i := 2; i+1 < len(fields); i += 2 {
			v, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, command, fmt.Errorf("%s: unexpected line %q", command, line)
			}
			got[name][fields[i+1]] = append(got[name][fields[i+1]], v)
		}
	}
	return got, command, nil
}

// cell returns the median of a figure, or "" if the benchmark has none.
func (g results) cell(name, unit string) any {
	if v := g[name][unit]; len(v) > 0 {
		return median(v)
	}
	return ""
}

// code runs the benchmarks of single packages.
func (r *run) code(ctx context.Context) ([]*table, error) {
	decode := &table{Title: "1. Decoding, beside GoBGP on the same bytes", Columns: []string{"decoder", "ns/msg", "B/msg", "allocs/msg", "% errors"}}
	costs := &table{Title: "2. Encoding, holding, handing over", Columns: []string{
		"what", "one operation", "ns/op", "CPU ns/op", "operations/s", "B/op", "allocs/op"}}
	tables := []*table{decode, costs}

	got, command, err := r.goBench(ctx, "bgp", "^BenchmarkDecode(GoBGP)?$", "1s", "-cpu", "1")
	if err != nil {
		return tables, err
	}
	decode.note("%s", command)
	decode.note("every attribute and every route of %s, one core; medians of %d", r.decoded(), r.repeats)
	for _, d := range []struct{ name, bench string }{{"bmpha", "Decode"}, {"GoBGP v4", "DecodeGoBGP"}} {
		decode.row(d.name, got.cell(d.bench, "ns/op"), got.cell(d.bench, "B/op"), got.cell(d.bench, "allocs/op"), got.cell(d.bench, "%errors"))
	}
	ours, theirs := got["Decode"]["ns/op"], got["DecodeGoBGP"]["ns/op"]
	if len(ours) == 0 || len(theirs) == 0 {
		return tables, fmt.Errorf("%s printed no figures", command)
	}
	decode.result("%.1f times as fast as GoBGP (target: 3), %v allocations and %v %% errors (target: 0 and 0)",
		median(theirs)/median(ours), got.cell("Decode", "allocs/op"), got.cell("Decode", "%errors"))

	for _, part := range []struct {
		pkg, pattern string
		rows         [][3]string // benchmark, what, one operation
		benchtime    string
	}{
		{"pmacct", "^Benchmark(Encode|EncodeHeader|Observe)$", [][3]string{
			{"Encode", "decode and encode", "record"},
			{"EncodeHeader", "decode and encode, with header", "record"},
			{"Observe", "a message that is let go", "message"},
		}, "1s"},
		{"hold", "^BenchmarkAppendNextFree$", [][3]string{{"AppendNextFree/130", "hold: append, read, free", "message of 130 bytes"}}, "1s"},
		{"gate", "^BenchmarkStream$", [][3]string{{"Stream", "gate and hold, without encoding", "message"}}, "1s"},
		{"sink", "^BenchmarkHand(Kafka|Reference)$", [][3]string{
			{"HandKafka/plain", "sink, native", "record of 600 bytes"},
			{"HandKafka/header", "sink, native, with header", "record of 600 bytes"},
			{"HandReference/plain", "sink, reference", "record of 600 bytes"},
			{"HandReference/header", "sink, reference, with header", "record of 600 bytes"},
		}, "500000x"},
	} {
		got, command, err := r.goBench(ctx, part.pkg, part.pattern, part.benchtime)
		if err != nil {
			return tables, err
		}
		costs.note("%s", command)
		for _, row := range part.rows {
			rate := any("")
			if ns := got[row[0]]["ns/op"]; len(ns) > 0 {
				rate = 1e9 / median(ns)
			}
			costs.row(row[1], row[2], got.cell(row[0], "ns/op"), got.cell(row[0], "cpu-ns/rec"), rate,
				got.cell(row[0], "B/op"), got.cell(row[0], "allocs/op"))
		}
	}
	costs.note("the sinks hand batches of 500 to a broker in another process, and every record is acknowledged; their ns/op is the slower of sink and broker, CPU ns/op is the sink's process with librdkafka's threads")
	costs.result("native: librdkafka through the C shim; reference: the client library's own Go calls")
	return tables, nil
}

// decoded says which messages the benchmark of decoding reads.
func (r *run) decoded() string {
	dir := os.Getenv("BMPHA_FIXTURES")
	if dir == "" {
		dir = "../shared/fixtures"
	}
	if _, err := os.Stat(dir); err != nil {
		return "messages made by hand (no captures in " + dir + ")"
	}
	return "the captured Route Monitoring messages in " + dir
}

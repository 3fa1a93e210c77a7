package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// brokerEnv makes this program the broker instead, so that the broker's work is
// in a process of its own and not counted as a daemon's.
const brokerEnv = "BMPHA_BENCH_BROKER"

// A discarding broker acknowledges what is produced at once, counts the records
// and forgets them. It has no disk, no replicas and no network worth the name, so
// what a daemon reaches with it is an upper bound. It speaks what a producer
// needs and nothing else. Every topic exists, with one partition.
type broker struct {
	host string
	port int32

	records, bytes atomic.Uint64
}

// The range of versions offered. None of them is flexible, which keeps the headers
// simple. Nobody fetches, but librdkafka writes record batches of format 2 only
// where Fetch 4 is offered.
var offered = []struct {
	key      kmsg.Key
	from, to int16
}{
	{kmsg.Produce, 3, 8},
	{kmsg.Fetch, 4, 4},
	{kmsg.Metadata, 1, 8},
	{kmsg.ApiVersions, 0, 2},
	{kmsg.InitProducerID, 0, 1},
}

// errUnsupportedVersion is Kafka's UNSUPPORTED_VERSION.
const errUnsupportedVersion = 35

// runBroker is the broker's process. It prints its address, then for each line on
// standard input the records and bytes so far, and ends with its input.
func runBroker() error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("broker: %w", err)
	}
	addr := ln.Addr().(*net.TCPAddr)
	b := &broker{host: addr.IP.String(), port: int32(addr.Port)}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if err := b.serve(c); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
					fmt.Fprintln(os.Stderr, "broker:", err)
				}
			}()
		}
	}()
	fmt.Println(addr)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		fmt.Println(b.records.Load(), b.bytes.Load())
	}
	return lines.Err()
}

// serve answers the requests of one connection, one after the other, until an
// error ends it.
func (b *broker) serve(c net.Conn) error {
	in := bufio.NewReaderSize(c, 1<<20)
	var buf, out []byte
	for {
		var size [4]byte
		if _, err := io.ReadFull(in, size[:]); err != nil {
			return err
		}
		n := int(binary.BigEndian.Uint32(size[:]))
		if n < 10 || n > 100<<20 {
			return fmt.Errorf("request of %d bytes", n)
		}
		if cap(buf) < n {
			buf = make([]byte, n)
		}
		buf = buf[:n]
		if _, err := io.ReadFull(in, buf); err != nil {
			return err
		}
		resp, err := b.answer(buf)
		if err != nil {
			return err
		}
		if resp == nil {
			continue
		}
		out = append(out[:0], 0, 0, 0, 0)
		out = append(out, buf[4:8]...) // the correlation id
		out = resp.AppendTo(out)
		binary.BigEndian.PutUint32(out, uint32(len(out)-4))
		if _, err := c.Write(out); err != nil {
			return err
		}
	}
}

// answer returns the response to a request, or nil if none is expected.
func (b *broker) answer(msg []byte) (kmsg.Response, error) {
	key, version := kmsg.Key(binary.BigEndian.Uint16(msg)), int16(binary.BigEndian.Uint16(msg[2:]))
	client := max(0, int(int16(binary.BigEndian.Uint16(msg[8:]))))
	if len(msg) < 10+client {
		return nil, fmt.Errorf("request %v without a body", key)
	}
	known := false
	for _, o := range offered {
		known = known || o.key == key && o.from <= version && version <= o.to
	}
	switch {
	case key == kmsg.ApiVersions && !known:
		// The one request that may be too new: it is answered in version 0.
		resp := kmsg.NewPtrApiVersionsResponse()
		resp.ErrorCode = errUnsupportedVersion
		b.versions(resp)
		return resp, nil
	case !known:
		return nil, fmt.Errorf("request %v version %d, which was not offered", key, version)
	}
	req := key.Request()
	req.SetVersion(version)
	if err := req.ReadFrom(msg[10+client:]); err != nil {
		return nil, fmt.Errorf("request %v version %d: %w", key, version, err)
	}
	switch req := req.(type) {
	case *kmsg.ApiVersionsRequest:
		resp := req.ResponseKind().(*kmsg.ApiVersionsResponse)
		b.versions(resp)
		return resp, nil
	case *kmsg.MetadataRequest:
		return b.metadata(req), nil
	case *kmsg.InitProducerIDRequest:
		resp := req.ResponseKind().(*kmsg.InitProducerIDResponse)
		resp.ProducerID = 1
		return resp, nil
	case *kmsg.ProduceRequest:
		return b.produce(req)
	}
	return nil, fmt.Errorf("request %v is offered and not served", key)
}

func (b *broker) versions(resp *kmsg.ApiVersionsResponse) {
	for _, o := range offered {
		k := kmsg.NewApiVersionsResponseApiKey()
		k.ApiKey, k.MinVersion, k.MaxVersion = o.key.Int16(), o.from, o.to
		resp.ApiKeys = append(resp.ApiKeys, k)
	}
}

func (b *broker) metadata(req *kmsg.MetadataRequest) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.MetadataResponse)
	node := kmsg.NewMetadataResponseBroker()
	node.NodeID, node.Host, node.Port = 1, b.host, b.port
	resp.Brokers = append(resp.Brokers, node)
	resp.ControllerID = 1
	for _, t := range req.Topics {
		topic := kmsg.NewMetadataResponseTopic()
		topic.Topic = t.Topic
		p := kmsg.NewMetadataResponseTopicPartition()
		p.Leader, p.Replicas, p.ISR = 1, []int32{1}, []int32{1}
		topic.Partitions = append(topic.Partitions, p)
		resp.Topics = append(resp.Topics, topic)
	}
	return resp
}

// produce counts the records and drops them.
func (b *broker) produce(req *kmsg.ProduceRequest) (kmsg.Response, error) {
	resp := req.ResponseKind().(*kmsg.ProduceResponse)
	var records, size uint64
	for _, t := range req.Topics {
		topic := kmsg.NewProduceResponseTopic()
		topic.Topic = t.Topic
		for _, p := range t.Partitions {
			n, err := countRecords(p.Records)
			if err != nil {
				return nil, fmt.Errorf("produce to %s: %w", t.Topic, err)
			}
			answer := kmsg.NewProduceResponseTopicPartition()
			answer.Partition = p.Partition
			answer.BaseOffset = int64(b.records.Load() + records)
			topic.Partitions = append(topic.Partitions, answer)
			records += n
			size += uint64(len(p.Records))
		}
		resp.Topics = append(resp.Topics, topic)
	}
	b.records.Add(records)
	b.bytes.Add(size)
	if req.Acks == 0 {
		return nil, nil
	}
	return resp, nil
}

// Offsets in a record batch of format 2.
const (
	batchLength = 8  // int32, counted from 12 on
	batchMagic  = 16 // int8
	batchAttrs  = 21 // int16; the low three bits are the compression
	batchCount  = 57 // int32
	batchHeader = 61
)

// countRecords counts the records in a run of record batches, one by one: what
// the header says is only checked against it.
func countRecords(b []byte) (total uint64, err error) {
	for len(b) > 0 {
		if len(b) < batchHeader || b[batchMagic] != 2 {
			return 0, errors.New("not a record batch of format 2")
		}
		end := 12 + int(binary.BigEndian.Uint32(b[batchLength:]))
		if end < batchHeader || end > len(b) {
			return 0, fmt.Errorf("record batch of %d bytes, %d are there", end, len(b))
		}
		if b[batchAttrs+1]&7 != 0 {
			return 0, errors.New("compressed record batch: the benchmark compares without")
		}
		n := uint64(0)
		for at := batchHeader; at < end; n++ {
			size, k := binary.Varint(b[at:end])
			if k <= 0 || size <= 0 || int64(end-at-k) < size {
				return 0, fmt.Errorf("record %d does not fit its batch", n)
			}
			at += k + int(size)
		}
		if want := uint64(binary.BigEndian.Uint32(b[batchCount:])); n != want {
			return 0, fmt.Errorf("record batch with %d records says %d", n, want)
		}
		total += n
		b = b[end:]
	}
	return total, nil
}

// A counter is where a daemon sends to and how many records are there.
type counter interface {
	address() string
	// count returns the records that have arrived so far.
	count() (uint64, error)
	every() time.Duration // how often to ask
	name() string
	pid() int
}

// A discarder is the discarding broker in a process of its own.
type discarder struct {
	addr string
	in   io.WriteCloser
	out  *bufio.Reader
	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
}

func startDiscarder() (*discarder, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start broker: %w", err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), brokerEnv+"=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start broker: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start broker: %w", err)
	}
	d := &discarder{in: in, out: bufio.NewReader(out), cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel ties the child to the thread that made it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // it ends with its input, and says why if it does not
			close(d.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start broker: %w", err)
	}
	line, err := d.out.ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("start broker: %w", err)
	}
	d.addr = strings.TrimSpace(line)
	return d, nil
}

func (d *discarder) address() string      { return d.addr }
func (d *discarder) name() string         { return "discarding broker" }
func (d *discarder) every() time.Duration { return 2 * time.Millisecond }
func (d *discarder) pid() int             { return d.cmd.Process.Pid }

func (d *discarder) count() (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := io.WriteString(d.in, "\n"); err != nil {
		return 0, fmt.Errorf("ask the broker: %w", err)
	}
	line, err := d.out.ReadString('\n')
	if err != nil {
		return 0, fmt.Errorf("ask the broker: %w", err)
	}
	var records, size uint64
	if _, err := fmt.Sscan(line, &records, &size); err != nil {
		return 0, fmt.Errorf("ask the broker: answer %q: %w", line, err)
	}
	return records, nil
}

func (d *discarder) close() {
	d.in.Close()
	select {
	case <-d.done:
	case <-time.After(5 * time.Second):
	}
}

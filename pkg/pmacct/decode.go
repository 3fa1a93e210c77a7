package pmacct

import (
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/table"
)

// DecodeOptions say how Decode reads and writes.
type DecodeOptions struct {
	Dialect    string         // "" means Dialect18
	Timestamps Timestamps     // the form of all timestamps
	Zone       *time.Location // for Default and RFC3339; nil means time.Local
	Router     netip.Addr     // bmp_router; the zero value means 0.0.0.0
	Port       uint16         // bmp_router_port
	WriterID   string         // value of writer_id; "" leaves the key out
	MaxMessage int            // longest message in bytes; 0 means 1 MiB

	// RIB keeps a table and makes the records of a pmacct that does, see
	// Options.RIB. At the end of the stream all routes are deleted.
	RIB bool

	Now func() time.Time // the time of arrival of each message; nil means time.Now

	// Warn is called with the offset in the stream of each message that
	// could not be decoded in whole, and with the error; nil drops them.
	Warn func(offset int64, err error)
}

// DecodeStats say what Decode has read and written.
type DecodeStats struct {
	Messages int64
	Records  int64
	Bytes    int64 // of whole messages
	Bad      int64 // messages that could not be decoded in whole
	Counters Counters
}

const defaultMaxMessage = 1 << 20

// Decode reads a BMP byte stream from r until its end and writes to w the
// records that one session with these bytes would make, a line each, log_init
// and log_close included. When the stream cannot be followed any further, or
// ends within a message, the records so far and log_close are written all the
// same, and the error names the offset of the message in the stream.
func Decode(w io.Writer, r io.Reader, opts DecodeOptions) (DecodeStats, error) {
	var st DecodeStats
	enc, err := NewEncoder(Options{Dialect: opts.Dialect, Timestamps: opts.Timestamps, WriterID: opts.WriterID, Zone: opts.Zone, RIB: opts.RIB})
	if err != nil {
		return st, err
	}
	if !opts.Router.IsValid() {
		opts.Router = netip.IPv4Unspecified()
	}
	if opts.MaxMessage == 0 {
		opts.MaxMessage = defaultMaxMessage
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	d := decoder{w: w, stats: &st}
	if opts.RIB {
		d.known = newMemory()
	}
	s := enc.Session(Identity{Addr: opts.Router, Port: opts.Port})
	now := func() int64 { return opts.Now().UnixMicro() }

	s.Open(&d.batch, nil, now())
	err = d.flush()
	if err == nil {
		err = d.follow(r, s, now, &opts)
	}
	if d.known != nil {
		d.known.table.Clear()
		if ferr := d.tidy(s, now()); err == nil {
			err = ferr
		}
	}
	s.Close(&d.batch, nil, now())
	if ferr := d.flush(); err == nil {
		err = ferr
	}
	st.Counters = enc.Counters()
	return st, err
}

// A decoder writes batches as lines.
type decoder struct {
	w     io.Writer
	batch record.Batch
	lines []byte
	stats *DecodeStats
	known *memory // nil without a table
}

// A memory is the table of a stream, and memory to tell of it.
type memory struct {
	table *table.Table
	notes table.Notes
	gone  table.Gone
	text  []byte // of notes
	note  func(*table.Change)
}

func newMemory() *memory {
	k := &memory{table: table.NewTable(table.NewStore(), table.Options{})}
	k.notes.Values = true
	k.note = func(c *table.Change) { k.notes.Add(c, false) }
	return k
}

// apply takes a message into the table and returns the notes of it.
func (k *memory) apply(msg []byte, at int64) []byte {
	k.notes.Reset()
	// What is wrong with a message the session says.
	k.notes.Applied(k.table.Apply(msg, at, k.note))
	k.text = k.notes.Append(k.text[:0])
	return k.text
}

// maxGone is about how long a body is that tells of routes that are gone.
const maxGone = 16 << 10

// tidy writes the records of all routes that are gone.
func (d *decoder) tidy(s *Session, at int64) error {
	k := d.known
	for more := k.table.Pending() > 0; more; {
		k.gone.Reset()
		for more && k.gone.Len() < maxGone {
			more = k.table.Tidy(64, k.gone.Add)
		}
		if err := s.Gone(&d.batch, nil, at, k.gone.Bytes()); err != nil {
			return err
		}
		if err := d.flush(); err != nil {
			return err
		}
	}
	return nil
}

// follow encodes the messages of r.
func (d *decoder) follow(r io.Reader, s *Session, now func() int64, opts *DecodeOptions) error {
	buf := make([]byte, 0, 64<<10)
	for {
		rest := buf
		for {
			n, err := bmp.Next(rest, opts.MaxMessage)
			if err != nil {
				return fmt.Errorf("at offset %d of the stream: %w", d.stats.Bytes, err)
			}
			if n == 0 {
				break
			}
			at := now()
			var notes []byte
			if d.known != nil {
				notes = d.known.apply(rest[:n], at)
			}
			if err := s.Noted(&d.batch, nil, at, rest[:n], notes); err != nil {
				d.stats.Bad++
				if opts.Warn != nil {
					opts.Warn(d.stats.Bytes, err)
				}
			}
			if d.known != nil {
				if err := d.tidy(s, at); err != nil {
					return err
				}
			}
			d.stats.Messages++
			d.stats.Bytes += int64(n)
			rest = rest[n:]
			if len(d.batch.Data) > 256<<10 {
				if err := d.flush(); err != nil {
					return err
				}
			}
		}
		if err := d.flush(); err != nil {
			return err
		}
		// Move what is left to the front and make room for more.
		kept := copy(buf[:cap(buf)], rest)
		if kept == cap(buf) {
			buf = append(buf[:kept], make([]byte, cap(buf))...)
		}
		n, err := r.Read(buf[kept:cap(buf)])
		buf = buf[:kept+n]
		switch {
		case err == io.EOF && len(buf) == 0:
			return nil
		case err == io.EOF && n == 0:
			return fmt.Errorf("at offset %d of the stream: it ends within a message, %d bytes of it: %w", d.stats.Bytes, len(buf), io.ErrUnexpectedEOF)
		case err != nil && err != io.EOF:
			return fmt.Errorf("reading BMP at offset %d of the stream: %w", d.stats.Bytes+int64(len(buf)), err)
		}
	}
}

// flush writes the batch and empties it.
func (d *decoder) flush() error {
	d.lines = d.lines[:0]
	for i := range d.batch.Recs {
		d.lines = append(append(d.lines, d.batch.Value(i)...), '\n')
	}
	d.stats.Records += int64(d.batch.Len())
	d.batch.Reset()
	if len(d.lines) == 0 {
		return nil
	}
	if _, err := d.w.Write(d.lines); err != nil {
		return fmt.Errorf("writing records: %w", err)
	}
	return nil
}

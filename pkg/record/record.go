// Package record holds what travels towards Kafka: batches of records in one
// piece of memory, and the binary header that tells consumers where a record
// came from.
//
// A Batch is filled by an encoder and emptied by a sink. All keys, headers and
// values of a batch lie in one byte slice and the records are plain numbers
// into it, so that a batch crosses into C in one call and nothing is allocated
// per record once the batch has grown to its working size.
//
// A record is either made by an encoder or came in as a Kafka record of another
// program. The latter keeps its key, value, timestamp and headers, be they empty
// or null; bmpha's header comes last, behind those that it brought.
//
// The package does no I/O and imports nothing of bmpha.
package record

import "hash/crc32"

// A Rec is one record of a Batch: offsets and lengths in bytes into
// Batch.Data. It holds no pointers, and its layout is shared with C. Fields that
// are zero ask for nothing: no key, no headers, any partition, the time of
// handing over.
type Rec struct {
	Topic     uint32 // handle given by the sink for a topic name
	KeyOff    uint32
	KeyLen    uint32 // 0 means a null key, or with RecEmptyKey an empty one
	HeaderOff uint32
	HeaderLen uint32 // 0 means no bmpha header
	ValueOff  uint32
	ValueLen  uint32
	MoreOff   uint32 // further Kafka headers, see AppendMore; they come before bmpha's
	MoreLen   uint32
	Flags     uint32 // RecEmptyKey, …
	Route     uint32 // with RecRouted: RouteOf the router's name
	Partition int32  // with RecPartition
	Timestamp int64  // ms since 1970; 0 or less means the time of handing over
}

// Flags of a Rec.
const (
	// RecEmptyKey says that a key of no bytes is an empty one, not null.
	RecEmptyKey = 1 << iota
	// RecNullValue makes the value null (a tombstone), whatever ValueLen says.
	RecNullValue
	// RecRouted sends the record to partition Route % partitions of its topic,
	// whatever its key.
	RecRouted
	// RecPartition sends the record to exactly Partition. It has precedence over
	// RecRouted.
	RecPartition
)

// RouteOf returns the Route of a router's name. It is such that a routed record
// goes where librdkafka's default partitioner puts a record with the name as its
// key: CRC-32 as in zlib.
func RouteOf(name string) uint32 { return crc32.ChecksumIEEE([]byte(name)) }

// A Batch is an ordered run of records of one stream. The zero value is ready
// to use. It is not safe for concurrent use. Batches stay far below 4 GiB: the
// gate hands one over as soon as it holds a few hundred records.
type Batch struct {
	Data []byte
	Recs []Rec
}

// Reset empties b and keeps its memory.
func (b *Batch) Reset() {
	b.Data = b.Data[:0]
	b.Recs = b.Recs[:0]
}

// Len returns the number of records in b.
func (b *Batch) Len() int { return len(b.Recs) }

// Key returns the key of record i, nil for a null key. It is valid until b
// changes.
func (b *Batch) Key(i int) []byte {
	r := &b.Recs[i]
	if r.KeyLen == 0 {
		if r.Flags&RecEmptyKey != 0 {
			return []byte{}
		}
		return nil
	}
	return b.Data[r.KeyOff : r.KeyOff+r.KeyLen]
}

// Header returns the bmpha header of record i, nil if it has none. It is valid
// until b changes.
func (b *Batch) Header(i int) []byte {
	r := &b.Recs[i]
	if r.HeaderLen == 0 {
		return nil
	}
	return b.Data[r.HeaderOff : r.HeaderOff+r.HeaderLen]
}

// Flag adds flags to the bmpha header of record i, if it has one.
func (b *Batch) Flag(i int, flags uint8) {
	if h := b.Header(i); len(h) > 1 {
		h[1] |= flags
	}
}

// Value returns the value of record i, nil for a null value. It is valid until b
// changes.
func (b *Batch) Value(i int) []byte {
	r := &b.Recs[i]
	switch {
	case r.Flags&RecNullValue != 0:
		return nil
	case r.ValueLen == 0:
		return []byte{}
	}
	return b.Data[r.ValueOff : r.ValueOff+r.ValueLen]
}

// More returns the further headers of record i, for EachMore. It is valid until
// b changes.
func (b *Batch) More(i int) []byte {
	r := &b.Recs[i]
	if r.MoreLen == 0 {
		return nil
	}
	return b.Data[r.MoreOff : r.MoreOff+r.MoreLen]
}

// Package record holds what travels towards Kafka: batches of records in one
// piece of memory, and the binary header that tells consumers where a record
// came from.
//
// A Batch is filled by an encoder and emptied by a sink. All keys, headers and
// values of a batch lie in one byte slice and the records are plain numbers
// into it, so that a batch crosses into C in one call and nothing is allocated
// per record once the batch has grown to its working size.
//
// The package does no I/O and imports nothing of bmpha.
package record

// A Rec is one record of a Batch: offsets and lengths in bytes into
// Batch.Data. It holds no pointers, and its layout is shared with C.
type Rec struct {
	Topic     uint32 // handle given by the sink for a topic name
	KeyOff    uint32
	KeyLen    uint32 // 0 means a null key
	HeaderOff uint32
	HeaderLen uint32 // 0 means no header
	ValueOff  uint32
	ValueLen  uint32
}

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

// Value returns the value of record i. It is valid until b changes.
func (b *Batch) Value(i int) []byte {
	r := &b.Recs[i]
	return b.Data[r.ValueOff : r.ValueOff+r.ValueLen]
}

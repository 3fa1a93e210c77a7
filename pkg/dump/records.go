package dump

import (
	"bytes"
	"slices"
	"strconv"

	"github.com/bmpha/bmpha/pkg/pmacct"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/table"
)

// Records returns an Encoder that makes pmacct's records, with o in their headers.
// To these it adds "unsettled": 1 in dump_init and "interrupted": "reason" in
// dump_close where there is reason to. onError is called with what could not be
// decoded of an event; it may be nil.
func Records(d *pmacct.Dump, o *record.Origin, onError func(error)) Encoder {
	return &records{d, o, onError}
}

type records struct {
	d       *pmacct.Dump
	o       *record.Origin
	onError func(error)
}

func (e *records) Init(b *record.Batch, settled bool) {
	e.d.Init(b, e.o)
	if !settled {
		amend(b, `, "unsettled": 1`)
	}
}

func (e *records) Route(b *record.Batch, r *table.Route) { e.d.Route(b, e.o, r) }

func (e *records) Event(b *record.Batch, msg []byte) {
	if err := e.d.Event(b, e.o, msg); err != nil && e.onError != nil {
		e.onError(err)
	}
}

func (e *records) Close(b *record.Batch, interruption string) {
	e.d.Close(b, e.o)
	if interruption != "" {
		amend(b, `, "interrupted": `+strconv.QuoteToASCII(interruption))
	}
}

// amend adds a member to the last record of b, a dump_init or dump_close, in
// front of its number. In a text of JSON these quotes would be escaped.
func amend(b *record.Batch, member string) {
	i := b.Len() - 1
	r := &b.Recs[i]
	at := bytes.Index(b.Value(i), []byte(`, "seq": `))
	if at < 0 {
		return
	}
	b.Data = slices.Insert(b.Data, int(r.ValueOff)+at, []byte(member)...)
	r.ValueLen += uint32(len(member))
	if r.HeaderOff > r.ValueOff {
		r.HeaderOff += uint32(len(member))
	}
}

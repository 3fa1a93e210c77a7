// The C half of the Kafka sink: a window of unacknowledged records per stream
// over librdkafka's producer. See kafka.go for what it promises and shim.c for
// how. All functions are safe for concurrent use, except where noted.
#ifndef BMPHA_SHIM_H
#define BMPHA_SHIM_H

#include <stddef.h>
#include <stdint.h>

// Layout of record.Rec.
typedef struct {
	uint32_t topic;
	uint32_t key_off, key_len;
	uint32_t header_off, header_len;
	uint32_t value_off, value_len;
	uint32_t more_off, more_len;
	uint32_t flags;
	uint32_t route;
	int32_t partition;
	int64_t timestamp;
} bk_rec;

// Flags of record.Rec.
enum { BK_EMPTY_KEY = 1, BK_NULL_VALUE = 2, BK_ROUTED = 4, BK_PARTITION = 8 };

// The producers of a sink. Almost everything goes through BK_BULK.
//
// What a broker refused as part of a batch goes through BK_SINGLE, whose batches
// hold one record, so that the record at fault is known.
//
// Topics that were refused or unknown go through BK_APART from then on.
// librdkafka (2.11.1) forgets the partitions of such a topic and, when the topic
// is back, may number records from 0 in an epoch that it has numbered from 0
// already; the broker takes them for repetitions of others and acknowledges them
// without storing them. A producer made after the failure has a number space of
// its own. See TestBrokerErrors, TOPIC_AUTHORIZATION_FAILED.
enum { BK_BULK = 0, BK_SINGLE = 1, BK_APART = 2, BK_LANES = 3 };

// Outcomes of our own, beside librdkafka's codes (-200 to a few hundred).
enum {
	BK_OK = 0,
	BK_CLOSED = 10001,
	BK_NO_STREAM,    // never Reset
	BK_STOPPED,      // failed and not Reset
	BK_POSITION,     // not the position that follows the last one
	BK_BAD_RECORD,   // lies outside its batch
	BK_NO_TOPIC,     // no such topic handle
	BK_BUSY,         // outstanding records
	BK_NO_MEMORY,
	BK_DEAD_LETTER,  // the dead-letter file could not take the record
	BK_LATER,        // of shim.c alone: a broker is to be asked first
	BK_ABORTED,      // its transaction was aborted
	BK_FENCED,       // its transaction was refused: the producer is no longer the one of its id
	BK_RECALLED,     // bk_recall gave it up
};

// What bk_transact comes back with.
enum {
	BK_OVER = 0,  // the producer is done with, or the sink at its end
	BK_CONFIRM,   // bk_confirm is to be called
};

// What bk_poll found, beside reports.
enum {
	BK_HAS_DEAD = 1,       // bk_take_dead has records
	BK_HAS_TEXT = 2,       // bk_take_text has lines
	BK_CONNECTED = 4,
	BK_WANT = 8,           // << lane: build a producer: bk_retire, then bk_build
	BK_PROGRESS = 64,      // << lane: acknowledged since its producer was built
	BK_ASK = 512,          // told once: call bk_ask
};

typedef struct bk_sink bk_sink;

typedef struct {
	uint32_t stream;
	uint32_t outstanding;
	uint64_t acked;
	int32_t err;      // 0 while the stream is good
	uint32_t topic;   // of the record that failed first
	uint64_t err_pos; // its position
	uint32_t again;   // a batch was refused: its records go one by one after a reset
} bk_report;

typedef struct {
	uint32_t n;
	int32_t err;
} bk_handed;

typedef struct {
	uint32_t n;
	uint32_t flags;
} bk_polled;

// A record that Kafka will never take. Owned by the caller of bk_take_dead until
// bk_dead_done.
typedef struct bk_dead {
	struct bk_dead *next;
	uint32_t stream, topic;
	uint64_t pos;
	int32_t err;
	uint32_t has_key;
	uint32_t has_value;
	uint32_t told;     // as a record of a transaction, with which it is counted
	int32_t partition; // -1 if it has none yet
	int64_t timestamp; // of the record itself, else 0
	size_t key_len, header_len, value_len, more_len;
	uint8_t data[]; // key, header, value, further headers
} bk_dead;

// A line of librdkafka's log (fac set) or an error event (fac empty).
typedef struct bk_text {
	struct bk_text *next;
	int32_t level;
	int32_t err;
	char fac[32];
	char text[512];
} bk_text;

typedef struct {
	uint64_t handed, acked, failed, dead, bytes, outstanding, text_dropped, fenced, unsure;
	int connected;
} bk_stats;

// bk_linked tells whether librdkafka was linked in.
int bk_linked(void);
const char *bk_version(void);
const char *bk_err2str(int err);

bk_sink *bk_new(uint32_t window, const char *header_name);
// bk_conf sets a property of the producers to be built. Returns 0, or an error
// with errstr filled. Before the first bk_build only.
int bk_conf(bk_sink *s, const char *name, const char *value, char *errstr, size_t size);
// bk_fencing makes the producers transactional, each with an id of its own that
// begins with id; a transaction lasts commit_ms. Before the first bk_build only.
// Returns 0, or -1 without memory.
int bk_fencing(bk_sink *s, const char *id, int commit_ms);
// bk_transact does all of a transactional producer's work, from bk_build until it
// is done with, and comes back now and then. It ends soon after bk_quit. One call
// at a time per lane.
int bk_transact(bk_sink *s, int lane);
// bk_confirm says whether what is in the transaction of a lane may be committed.
void bk_confirm(bk_sink *s, int lane, int ok);
// bk_fence_new makes a producer with the transactional id that a lane of another
// sink has, or returns NULL with errstr filled. Not after bk_free.
void *bk_fence_new(bk_sink *s, const char *id, int lane, char *errstr, size_t size);
// bk_fence initialises it: 0 if it did, 1 if it is to be called again, -1 for an
// error that stays. It takes up to 0.2 s. errstr is filled except for 0. tries is 0
// before the first call, and then bk_fence's.
int bk_fence(void *producer, int *tries, char *errstr, size_t size);
void bk_fence_free(void *producer);
// bk_build makes the producer of a lane: 0 if it did, 1 if there is one already,
// -1 for an error with errstr filled. One call at a time per lane.
int bk_build(bk_sink *s, int lane, char *errstr, size_t size);
// bk_retire destroys the failed producer of a lane, if there is one. It may take
// a second. One call at a time per lane.
void bk_retire(bk_sink *s, int lane);
// bk_topic returns the handle of a new topic or -1. The caller asks once a name.
int64_t bk_topic(bk_sink *s, const char *name);
// bk_hand copies recs to a stream and returns how many were taken. One call at a
// time per stream.
bk_handed bk_hand(bk_sink *s, uint32_t stream, uint64_t pos, const void *data, uint64_t len, const void *recs, uint32_t n);
// bk_poll waits at most ms and writes up to cap reports. One call at a time.
bk_polled bk_poll(bk_sink *s, int ms, bk_report *out, uint32_t cap);
int bk_reset(bk_sink *s, uint32_t stream, uint64_t pos);
// bk_recall gives up what is in the producers and has them made anew. It returns a
// bit for each lane whose producer was good. It does nothing with transactions.
uint32_t bk_recall(bk_sink *s);
bk_dead *bk_take_dead(bk_sink *s);
// bk_dead_done frees d; ok says whether it was set aside for good.
void bk_dead_done(bk_sink *s, bk_dead *d, int ok);
bk_text *bk_take_text(bk_sink *s);
void bk_free_text(bk_text *t);
// bk_probe asks a broker for metadata, to learn whether one is reachable.
void bk_probe(bk_sink *s, int ms);
// bk_ask asks for the numbers of partitions that bk_hand wants to know, each for
// at most ms. One call at a time, after BK_ASK.
void bk_ask(bk_sink *s, int ms);
void bk_get_stats(bk_sink *s, bk_stats *out);
// bk_stop makes bk_hand refuse from now on.
void bk_stop(bk_sink *s);
// bk_quit ends bk_transact. An open transaction is aborted if a broker is there.
void bk_quit(bk_sink *s);
// bk_free releases everything. No other call may be running or follow.
void bk_free(bk_sink *s);

// The window of one stream, for its tests.
typedef struct {
	uint64_t base; // first position not set
	uint64_t next; // first position not handed over
	uint64_t *bits;
	uint64_t mask; // bits - 1
} bk_ring;

int bk_ring_init(bk_ring *r, uint32_t window);
void bk_ring_reset(bk_ring *r, uint64_t pos);
void bk_ring_set(bk_ring *r, uint64_t pos);
void bk_ring_mark(bk_ring *r, uint64_t pos);
void bk_ring_advance(bk_ring *r);
void bk_ring_free(bk_ring *r);
// bk_opaque packs a stream, a position and whether the record has a timestamp of
// its own into what librdkafka carries along; bk_position finds the position
// again, given the stream's window.
void *bk_opaque(uint32_t stream, uint64_t pos, int stamped);
uint32_t bk_opaque_stream(void *opaque);
int bk_opaque_stamped(void *opaque);
uint64_t bk_position(const bk_ring *r, void *opaque);

enum { BK_MAX_STREAMS = 1 << 20, BK_MAX_TOPICS = 1 << 16 };

#endif

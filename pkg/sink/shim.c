#include "shim.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

// What we use of librdkafka's public C interface, declared by ourselves. The
// symbols are weak because this file is compiled (and, by cgo, trial-linked)
// without the library; importing confluent-kafka-go's kafka package puts the
// library into the final link, which resolves them. bk_linked checks that.
typedef struct rd_kafka_s rd_kafka_t;
typedef struct rd_kafka_topic_s rd_kafka_topic_t;
typedef struct rd_kafka_conf_s rd_kafka_conf_t;
typedef struct rd_kafka_topic_conf_s rd_kafka_topic_conf_t;
typedef struct rd_kafka_headers_s rd_kafka_headers_t;
typedef struct rd_kafka_error_s rd_kafka_error_t;
typedef struct rd_kafka_queue_s rd_kafka_queue_t;

struct rd_kafka_metadata_topic {
	char *topic;
	int partition_cnt;
	struct rd_kafka_metadata_partition *partitions;
	int err;
};

struct rd_kafka_metadata {
	int broker_cnt;
	struct rd_kafka_metadata_broker *brokers;
	int topic_cnt;
	struct rd_kafka_metadata_topic *topics;
	int32_t orig_broker_id;
	char *orig_broker_name;
};

typedef struct {
	int err;
	rd_kafka_topic_t *rkt;
	int32_t partition;
	void *payload;
	size_t len;
	void *key;
	size_t key_len;
	int64_t offset;
	void *opaque;
} rd_kafka_message_t;

typedef struct {
	int vtype;
	union {
		rd_kafka_topic_t *rkt;
		int i;
		int32_t i32;
		int64_t i64;
		struct {
			void *ptr;
			size_t size;
		} mem;
		rd_kafka_headers_t *headers;
		void *ptr;
		char pad[64];
	} u;
} rd_kafka_vu_t;

enum { V_RKT = 2, V_PARTITION = 3, V_VALUE = 4, V_KEY = 5, V_OPAQUE = 6, V_MSGFLAGS = 7, V_TIMESTAMP = 8, V_HEADERS = 10 };
enum { PRODUCER = 0, PARTITION_UA = -1, MSG_F_COPY = 2 };
enum { PURGE_QUEUE = 1, PURGE_INFLIGHT = 2, PURGE_NON_BLOCKING = 4 };
enum {
	ERR_FATAL = -150,
	ERR_INVALID_DIFFERENT_RECORD = -138,
	ERR_ALL_BROKERS_DOWN = -187,
	ERR_QUEUE_FULL = -184,
	ERR_INVALID_MSG = 2,
	ERR_INVALID_MSG_SIZE = 4,
	ERR_MSG_SIZE_TOO_LARGE = 10,
	ERR_RECORD_LIST_TOO_LARGE = 18,
	ERR_INVALID_TIMESTAMP = 32,
	ERR_INVALID_RECORD = 87,
	ERR_UNKNOWN_PARTITION = -190,
	ERR_UNKNOWN_TOPIC = -188,
	ERR_UNKNOWN_TOPIC_OR_PART = 3,
	ERR_TOPIC_EXCEPTION = 17,
	ERR_TOPIC_AUTHORIZATION_FAILED = 29,
	ERR_UNKNOWN_TOPIC_ID = 100,
	ERR_STATE = -172,
	ERR_PURGE_QUEUE = -152,
	ERR_PURGE_INFLIGHT = -151,
	ERR_FENCED = -144,
	ERR_INVALID_PRODUCER_EPOCH = 47,
	ERR_PRODUCER_FENCED = 90,
};

#define WEAK extern __attribute__((weak))
WEAK const char *rd_kafka_version_str(void);
WEAK const char *rd_kafka_err2str(int err);
WEAK int rd_kafka_last_error(void);
WEAK int rd_kafka_error_code(const rd_kafka_error_t *error);
WEAK void rd_kafka_error_destroy(rd_kafka_error_t *error);
WEAK const char *rd_kafka_error_string(const rd_kafka_error_t *error);
WEAK int rd_kafka_error_is_fatal(const rd_kafka_error_t *error);
WEAK int rd_kafka_error_is_retriable(const rd_kafka_error_t *error);
WEAK int rd_kafka_error_txn_requires_abort(const rd_kafka_error_t *error);
WEAK rd_kafka_error_t *rd_kafka_init_transactions(rd_kafka_t *rk, int timeout_ms);
WEAK rd_kafka_error_t *rd_kafka_begin_transaction(rd_kafka_t *rk);
WEAK rd_kafka_error_t *rd_kafka_commit_transaction(rd_kafka_t *rk, int timeout_ms);
WEAK rd_kafka_error_t *rd_kafka_abort_transaction(rd_kafka_t *rk, int timeout_ms);
WEAK rd_kafka_conf_t *rd_kafka_conf_new(void);
WEAK rd_kafka_conf_t *rd_kafka_conf_dup(const rd_kafka_conf_t *conf);
WEAK void rd_kafka_conf_destroy(rd_kafka_conf_t *conf);
WEAK int rd_kafka_conf_set(rd_kafka_conf_t *conf, const char *name, const char *value, char *errstr, size_t size);
WEAK int rd_kafka_conf_get(const rd_kafka_conf_t *conf, const char *name, char *dest, size_t *dest_size);
WEAK void rd_kafka_conf_set_opaque(rd_kafka_conf_t *conf, void *opaque);
WEAK void rd_kafka_conf_set_dr_msg_cb(rd_kafka_conf_t *conf, void (*cb)(rd_kafka_t *, const rd_kafka_message_t *, void *));
WEAK void rd_kafka_conf_set_error_cb(rd_kafka_conf_t *conf, void (*cb)(rd_kafka_t *, int, const char *, void *));
WEAK void rd_kafka_conf_set_socket_cb(rd_kafka_conf_t *conf, int (*cb)(int, int, int, void *));
WEAK void rd_kafka_conf_set_closesocket_cb(rd_kafka_conf_t *conf, int (*cb)(int, void *));
WEAK void rd_kafka_conf_set_log_cb(rd_kafka_conf_t *conf, void (*cb)(const rd_kafka_t *, int, const char *, const char *));
WEAK rd_kafka_t *rd_kafka_new(int type, rd_kafka_conf_t *conf, char *errstr, size_t size);
WEAK void rd_kafka_destroy(rd_kafka_t *rk);
WEAK void *rd_kafka_opaque(const rd_kafka_t *rk);
WEAK int rd_kafka_set_log_queue(rd_kafka_t *rk, rd_kafka_queue_t *queue);
WEAK rd_kafka_topic_t *rd_kafka_topic_new(rd_kafka_t *rk, const char *topic, rd_kafka_topic_conf_t *conf);
WEAK void rd_kafka_topic_destroy(rd_kafka_topic_t *rkt);
WEAK int rd_kafka_produce(rd_kafka_topic_t *rkt, int32_t partition, int msgflags, void *payload, size_t len, const void *key, size_t keylen, void *msg_opaque);
WEAK rd_kafka_error_t *rd_kafka_produceva(rd_kafka_t *rk, const rd_kafka_vu_t *vus, size_t cnt);
WEAK int rd_kafka_poll(rd_kafka_t *rk, int timeout_ms);
WEAK int rd_kafka_purge(rd_kafka_t *rk, int flags);
WEAK int rd_kafka_fatal_error(rd_kafka_t *rk, char *errstr, size_t size);
WEAK int rd_kafka_metadata(rd_kafka_t *rk, int all_topics, rd_kafka_topic_t *only, const struct rd_kafka_metadata **md, int timeout_ms);
WEAK void rd_kafka_metadata_destroy(const struct rd_kafka_metadata *md);
WEAK int rd_kafka_message_headers(const rd_kafka_message_t *msg, rd_kafka_headers_t **hdrs);
WEAK rd_kafka_headers_t *rd_kafka_headers_new(size_t initial_count);
WEAK void rd_kafka_headers_destroy(rd_kafka_headers_t *hdrs);
WEAK int rd_kafka_header_add(rd_kafka_headers_t *hdrs, const char *name, ssize_t name_size, const void *value, ssize_t value_size);
WEAK int rd_kafka_header_get_all(const rd_kafka_headers_t *hdrs, size_t idx, const char **name, const void **value, size_t *size);

_Static_assert(sizeof(void *) == 8, "stream and position are carried in a 64-bit pointer");
_Static_assert(sizeof(bk_rec) == 56, "bk_rec is record.Rec");

// The window of a stream.

int bk_ring_init(bk_ring *r, uint32_t window) {
	uint64_t bits = 64;
	while (bits < window)
		bits *= 2;
	r->bits = calloc(bits / 64, sizeof *r->bits);
	r->mask = bits - 1;
	r->base = r->next = 0;
	return r->bits == NULL;
}

void bk_ring_reset(bk_ring *r, uint64_t pos) {
	memset(r->bits, 0, (r->mask + 1) / 8);
	r->base = r->next = pos;
}

// bk_ring_mark marks a position in [base, next).
void bk_ring_mark(bk_ring *r, uint64_t pos) {
	uint64_t i = pos & r->mask;
	r->bits[i / 64] |= UINT64_C(1) << (i % 64);
}

// bk_ring_advance moves base past everything that is marked.
void bk_ring_advance(bk_ring *r) {
	while (r->base < r->next) {
		uint64_t i = r->base & r->mask;
		uint64_t bit = UINT64_C(1) << (i % 64);
		if (!(r->bits[i / 64] & bit))
			break;
		r->bits[i / 64] &= ~bit;
		r->base++;
	}
}

void bk_ring_set(bk_ring *r, uint64_t pos) {
	bk_ring_mark(r, pos);
	bk_ring_advance(r);
}

void bk_ring_free(bk_ring *r) {
	free(r->bits);
	r->bits = NULL;
}

// The low bits of a position are enough: those in a window are close together.
#define POS_BITS 43
#define POS_MASK ((UINT64_C(1) << POS_BITS) - 1)

void *bk_opaque(uint32_t stream, uint64_t pos, int stamped) {
	return (void *)(uintptr_t)((uint64_t)stream << (POS_BITS + 1) | (uint64_t)(stamped != 0) << POS_BITS | (pos & POS_MASK));
}

uint32_t bk_opaque_stream(void *opaque) { return (uint32_t)((uint64_t)(uintptr_t)opaque >> (POS_BITS + 1)); }
int bk_opaque_stamped(void *opaque) { return (uint64_t)(uintptr_t)opaque >> POS_BITS & 1; }

uint64_t bk_position(const bk_ring *r, void *opaque) {
	return r->base + (((uint64_t)(uintptr_t)opaque - r->base) & POS_MASK);
}

// A stream. Its outstanding records are those in a producer and those waiting to
// be written to the dead-letter file.
//
// In a transaction a record stays in the count of its producer until the
// transaction has ended, and its position is only marked in the window: base
// moves when it is committed.
typedef struct stream {
	uint32_t id;
	int lane;          // where its records go now
	int moved;         // in the list of streams to report
	int err;           // of the first failure, 0 while good; read without lock by bk_hand
	uint32_t err_topic;
	uint64_t err_pos;
	uint64_t single_end; // positions below go one by one
	uint32_t in_producer;
	uint32_t dead;
	int64_t told_at;     // ms; the last refusal of a topic that it was stopped for
	int64_t *stamps;     // by position in the window, of those that go one by one
	bk_ring ring;
	// With transactions:
	int listed;          // in the list of its lane's transaction
	struct stream *next_listed;
	uint32_t told;       // of in_producer, those that librdkafka has reported
	uint64_t *buried;    // a bit for each position in the window: set aside while it went one by one
} stream;

typedef struct {
	bk_sink *sink;
	int index;
	rd_kafka_t *rk;    // NULL while there is none
	rd_kafka_t *dying; // taken out, to be destroyed by bk_retire
	rd_kafka_topic_t **topics[BK_MAX_TOPICS / 256];
	rd_kafka_topic_t **dying_topics[BK_MAX_TOPICS / 256];
	int users;         // calls that use rk without the lock
	int wanted;
	int fatal;         // given up, with all that is in it; read without lock by on_close
	int recalled;      // by bk_recall, until its connections are closed
	int retiring;      // bk_retire destroys a producer
	int *sockets;      // of the producer; under socket_mu
	uint32_t sockets_n, sockets_cap;
	int renew;         // has lost count of a topic: to be made anew, once empty
	int progress;      // something was acknowledged
	int64_t purge_at;  // ms; when to purge a failed producer again
	uint32_t in_producer; // read without lock by on_close
	// With transactions:
	int txn;           // TXN_
	int served;        // bk_transact is at work
	int handing;       // calls of bk_hand that produce
	int abort;         // the transaction cannot be committed
	int unconfirmed;   // since its id was initialised
	int refusals;      // of a confirmation, one after the other
	int64_t began, hold_until, stalled_at; // ms
	uint32_t told;     // of in_producer, those that librdkafka has reported
	uint32_t still_told; // told, when it was looked at last while the transaction ends
	int64_t still_at, still; // ms; when that was, and for how long it had not grown
	stream *listed;    // those with records in the transaction
} lane;

// The states of a lane's transaction. bk_hand gives records to an open one only.
enum { TXN_NONE = 0, TXN_OPEN, TXN_ENDING };

// A transaction that may not be committed is tried again after a pause that grows.
enum { HOLD_MIN_MS = 100, HOLD_MAX_MS = 1000 };

// What a call into librdkafka may take before it is looked whether it is still
// wanted; after how long a commit is helped by asking for metadata; how long a
// transaction that is to be aborted may end without a report; and how long the end
// of a sink may be delayed by an abort.
enum { SLICE_MS = 100, TXN_SLICE_MS = 500, INIT_MIN_MS = 5, INIT_MAX_MS = 50, STALL_MS = 2000, STILL_MS = 1000, FAREWELL_MS = 300 };

typedef struct {
	char *name;
	int apart; // not to be used with BK_BULK; read without lock by bk_hand
	int used;  // a producer was given records of it; read without lock by bk_hand
	int failures; // one after the other
	int64_t failed_at, retry_at; // ms
	// What brokers say of its partitions, asked for by the records that have to
	// go to a certain one. Times in ms.
	uint32_t partitions; // 0 when not known; read without lock by bk_hand
	int64_t counted_at;  // when they said so; the same
	int64_t missed_at;   // since when there is not what is asked for
	int64_t ask_at;      // not before
	int ask;             // 1 to be asked for, 2 being asked for; the same
	int ask_lane;        // through which producer, whose view is to be the same
	int ask_failures;    // one after the other
	int refusal;         // why there is no answer, for streams to be told
	int64_t refused_at;
} topic;

// How often a producer that is given up is purged: what librdkafka was about to
// send again is not found by each purge.
enum { PURGE_PAUSE_MS = 1000, RECALL_PAUSE_MS = 100 };

// A topic that fails is tried again after a pause that grows, until it has not
// failed for a while.
enum { RETRY_MIN_MS = 100, RETRY_MAX_MS = 10000, RETRY_FORGET_MS = 60000 };

// A topic or a partition does not exist when brokers have said so for a while:
// one that was just made is not known to all of them at once. A partition that
// does not exist is asked for again before it is believed for longer.
enum { ASK_PAUSE_MS = 200, ASK_PATIENCE_MS = 2000, ASK_AGAIN_MS = 5000, ASK_FORGET_MS = 60000 };

struct bk_sink {
	pthread_mutex_t mu;
	pthread_cond_t wake; // a producer was built, or a user of one left
	uint32_t window, share;
	char *header_name;
	size_t header_name_len;
	rd_kafka_conf_t *conf;
	int64_t refresh; // ms between questions for a number of partitions that is known; 0 for ever
	int asks;        // topics to be asked for
	int asking;
	lane lanes[BK_LANES];
	stream **streams;
	uint32_t streams_cap;
	uint32_t *moved;
	uint32_t moved_n, moved_cap;
	topic *topics;
	uint32_t topics_n;
	bk_dead *dead, **dead_tail;
	bk_text *text, **text_tail;
	uint32_t text_n;
	bk_stats stats;
	uint64_t recalls;
	uint32_t recalling; // lanes that are recalled
	pthread_mutex_t socket_mu; // nothing else is locked behind it
	int closed;
	char *txn_id; // NULL without transactions
	int64_t commit_ms, txn_timeout; // ms
	uint32_t txn_size; // a transaction of so many records is committed at once
	int quit;
};

enum { TEXT_MAX = 200 };

int bk_linked(void) {
	return rd_kafka_new && rd_kafka_produce && rd_kafka_produceva && rd_kafka_poll && rd_kafka_purge &&
	       rd_kafka_fatal_error && rd_kafka_metadata && rd_kafka_metadata_destroy && rd_kafka_conf_new &&
	       rd_kafka_conf_dup && rd_kafka_conf_set && rd_kafka_conf_set_dr_msg_cb && rd_kafka_conf_set_error_cb &&
	       rd_kafka_conf_set_log_cb && rd_kafka_conf_set_socket_cb && rd_kafka_conf_set_closesocket_cb && rd_kafka_conf_set_opaque && rd_kafka_conf_destroy && rd_kafka_destroy &&
	       rd_kafka_opaque && rd_kafka_set_log_queue && rd_kafka_topic_new && rd_kafka_topic_destroy &&
	       rd_kafka_message_headers && rd_kafka_headers_new &&
	       rd_kafka_headers_destroy && rd_kafka_header_add && rd_kafka_header_get_all && rd_kafka_conf_get && rd_kafka_last_error && rd_kafka_error_code &&
	       rd_kafka_error_destroy && rd_kafka_err2str && rd_kafka_version_str && rd_kafka_error_string &&
	       rd_kafka_error_is_fatal && rd_kafka_error_is_retriable && rd_kafka_error_txn_requires_abort &&
	       rd_kafka_init_transactions && rd_kafka_begin_transaction && rd_kafka_commit_transaction &&
	       rd_kafka_abort_transaction;
}

const char *bk_version(void) { return rd_kafka_version_str(); }
const char *bk_err2str(int err) { return rd_kafka_err2str(err); }

static int64_t now_ms(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void lock(bk_sink *s) { pthread_mutex_lock(&s->mu); }
static void unlock(bk_sink *s) { pthread_mutex_unlock(&s->mu); }

static stream *find(bk_sink *s, uint32_t id) { return id < s->streams_cap ? s->streams[id] : NULL; }

// Everything below up to the next line of dashes is called with the lock held.

// rouse ends a bk_poll that waits: with transactions it does not wait in
// librdkafka.
static void rouse(bk_sink *s) {
	if (s->txn_id)
		pthread_cond_broadcast(&s->wake);
}

static void moved(bk_sink *s, stream *st) {
	if (st->moved)
		return;
	st->moved = 1;
	s->moved[s->moved_n++] = st->id; // as long as the list of streams
	rouse(s);
}

// settle moves the position of a stream that has nothing in a transaction.
static void settle(bk_sink *s, stream *st) {
	if (!s->txn_id || st->in_producer == 0)
		bk_ring_advance(&st->ring);
}

// of_topic tells whether an error is one of the topic, after which librdkafka may
// have lost count of the topic's records.
static int of_topic(int err) {
	return err == ERR_UNKNOWN_TOPIC || err == ERR_UNKNOWN_PARTITION || err == ERR_UNKNOWN_TOPIC_OR_PART ||
	       err == ERR_TOPIC_EXCEPTION || err == ERR_TOPIC_AUTHORIZATION_FAILED || err == ERR_UNKNOWN_TOPIC_ID;
}

// refuse keeps the reason why a topic has no partitions, once it had none for long
// enough, for streams that wait for it.
static void refuse(topic *t, int err, int64_t now) {
	if (err == 0 || err == ERR_UNKNOWN_PARTITION || !t->missed_at || now - t->missed_at < ASK_PATIENCE_MS)
		return;
	t->refusal = err;
	t->refused_at = now;
}

static void fail_topic(lane *l, topic *t, int err) {
	int64_t now = now_ms();
	refuse(t, err, now);
	__atomic_store_n(&t->apart, 1, __ATOMIC_RELAXED);
	__atomic_store_n(&t->partitions, 0, __ATOMIC_RELAXED);
	if (l->index != BK_BULK)
		l->renew = 1;
	if (now < t->retry_at)
		return; // told by several records
	if (now - t->failed_at > RETRY_FORGET_MS)
		t->failures = 0;
	int64_t wait = RETRY_MIN_MS << (t->failures < 10 ? t->failures : 10);
	t->failures++;
	t->failed_at = now;
	t->retry_at = now + (wait < RETRY_MAX_MS ? wait : RETRY_MAX_MS);
}

static void stop(bk_sink *s, stream *st, int err, uint64_t pos, uint32_t topic) {
	if (!st->err) {
		st->err_pos = pos;
		st->err_topic = topic;
		__atomic_store_n(&st->err, err, __ATOMIC_RELAXED);
	}
	moved(s, st);
}

static void fail(bk_sink *s, stream *st, int err, uint64_t pos, uint32_t topic) {
	if (of_topic(err))
		fail_topic(&s->lanes[st->lane], &s->topics[topic], err);
	stop(s, st, err, pos, topic);
}

static void condemn(lane *l) { __atomic_store_n(&l->fatal, 1, __ATOMIC_RELAXED); }

// reached notes that a broker has answered. While a recall is not over that says
// nothing: it may have been before, and connections of before may still deliver.
static void reached(bk_sink *s) {
	if (!s->recalling)
		s->stats.connected = 1;
}

// enter takes n records of a stream into the count of its producer.
static void enter(bk_sink *s, stream *st, uint32_t n) {
	lane *l = &s->lanes[st->lane];
	st->in_producer += n;
	__atomic_store_n(&l->in_producer, l->in_producer + n, __ATOMIC_RELAXED);
	s->stats.outstanding += n;
}

// leave takes n records of a stream out of the count of its producer.
static void leave(bk_sink *s, stream *st, uint32_t n) {
	lane *l = &s->lanes[st->lane];
	st->in_producer -= n;
	__atomic_store_n(&l->in_producer, l->in_producer - n, __ATOMIC_RELAXED);
	s->stats.outstanding -= n;
}

static void bury(bk_sink *s, stream *st, bk_dead *d) {
	st->dead++;
	s->stats.outstanding++;
	*s->dead_tail = d;
	s->dead_tail = &d->next;
	rouse(s);
}

static void want(bk_sink *s, lane *l, topic *t, int64_t now) {
	if (t->ask || now < t->ask_at)
		return;
	__atomic_store_n(&t->ask, 1, __ATOMIC_RELAXED);
	t->ask_lane = l->index;
	s->asks++;
	rouse(s);
}

// missing is what becomes of a record whose partition is not known: it goes later
// (BK_LATER), never (ERR_UNKNOWN_PARTITION), or stops its stream.
static int missing(bk_sink *s, lane *l, stream *st, topic *t, int64_t now) {
	if (t->partitions && t->missed_at && now - t->counted_at < ASK_FORGET_MS &&
	    t->counted_at - t->missed_at >= ASK_PATIENCE_MS) {
		if (now - t->counted_at >= ASK_AGAIN_MS)
			want(s, l, t, now);
		return ERR_UNKNOWN_PARTITION;
	}
	if (t->refusal && st->told_at < t->refused_at) {
		st->told_at = t->refused_at;
		return t->refusal;
	}
	if (!t->missed_at || (t->partitions && now - t->counted_at >= ASK_FORGET_MS))
		t->missed_at = now;
	want(s, l, t, now);
	return BK_LATER;
}

// answered takes what a broker said of a topic: n partitions, err as the error of
// the topic, or no_answer.
static void answered(lane *l, topic *t, int no_answer, int err, uint32_t n) {
	int64_t now = now_ms();
	__atomic_store_n(&t->ask, 0, __ATOMIC_RELAXED);
	t->ask_at = now + ASK_PAUSE_MS;
	if (no_answer)
		return;
	if (!err && n > 0) {
		if (n > t->partitions)
			t->missed_at = 0;
		t->ask_failures = t->refusal = 0;
		__atomic_store_n(&t->counted_at, now, __ATOMIC_RELAXED);
		__atomic_store_n(&t->partitions, n, __ATOMIC_RELAXED);
		return;
	}
	if (t->used && of_topic(err))
		fail_topic(l, t, err);
	__atomic_store_n(&t->partitions, 0, __ATOMIC_RELAXED);
	if (!t->missed_at)
		t->missed_at = now;
	refuse(t, err, now);
	if (!t->refusal)
		return;
	int64_t wait = ASK_PAUSE_MS << (t->ask_failures < 6 ? t->ask_failures : 6);
	t->ask_failures++;
	t->ask_at = now + (wait < RETRY_MAX_MS ? wait : RETRY_MAX_MS);
}

static void say(bk_sink *s, int level, int err, const char *fac, const char *text) {
	bk_text *t = s->text_n < TEXT_MAX ? calloc(1, sizeof *t) : NULL;
	if (!t) {
		s->stats.text_dropped++;
		return;
	}
	t->level = level;
	t->err = err;
	snprintf(t->fac, sizeof t->fac, "%s", fac);
	snprintf(t->text, sizeof t->text, "%s", text);
	*s->text_tail = t;
	s->text_tail = &t->next;
	s->text_n++;
	rouse(s);
}

// blame finds the topic that librdkafka could not add to a transaction: it tells
// so only in its log, and reports all records of the transaction as purged.
//
// It is also the only way to learn that partitions of a topic are gone, when there
// are none left in the queue that could fail for that.
static void blame(bk_sink *s, lane *l, const char *fac, const char *text) {
	const char *count = strcmp(fac, "PARTCNT") == 0 ? strstr(text, "changed from ") : NULL;
	int before_n, after_n;
	if (count && sscanf(count, "changed from %d to %d", &before_n, &after_n) == 2 && after_n < before_n)
		l->abort |= l->in_producer > 0;
	static const int errs[] = {ERR_TOPIC_AUTHORIZATION_FAILED, ERR_UNKNOWN_TOPIC_OR_PART, ERR_TOPIC_EXCEPTION, ERR_UNKNOWN_TOPIC_ID};
	static const char before[] = "Failed to add partition \"";
	const char *name = strcmp(fac, "ADDPARTS") == 0 ? strstr(text, before) : NULL;
	if (!name)
		return;
	name += sizeof before - 1;
	size_t len = strcspn(name, "\"");
	for (size_t i = 0; i < sizeof errs / sizeof *errs; i++) {
		if (!strstr(name + len, rd_kafka_err2str(errs[i])))
			continue;
		for (uint32_t t = 0; t < s->topics_n; t++)
			if (strlen(s->topics[t].name) == len && memcmp(s->topics[t].name, name, len) == 0)
				fail_topic(l, &s->topics[t], errs[i]);
		l->abort = 1;
		say(s, 3, errs[i], "", text);
	}
}

// ---------------------------------------------------------------------------

// new_dead returns a copy of a record, described by d and by where its parts lie.
static bk_dead *new_dead(bk_dead d, const void *key, const void *header, const void *value, const void *more) {
	bk_dead *copy = malloc(sizeof d + d.key_len + d.header_len + d.value_len + d.more_len);
	if (!copy)
		return NULL;
	*copy = d;
	uint8_t *to = copy->data;
	if (d.key_len)
		memcpy(to, key, d.key_len);
	to += d.key_len;
	if (d.header_len)
		memcpy(to, header, d.header_len);
	to += d.header_len;
	if (d.value_len)
		memcpy(to, value, d.value_len);
	to += d.value_len;
	if (d.more_len)
		memcpy(to, more, d.more_len);
	return copy;
}

#define NULL_LEN UINT32_MAX

static uint32_t get_u32(const uint8_t *p) {
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static uint8_t *put_u32(uint8_t *p, uint32_t n) {
	p[0] = (uint8_t)(n >> 24);
	p[1] = (uint8_t)(n >> 16);
	p[2] = (uint8_t)(n >> 8);
	p[3] = (uint8_t)n;
	return p + 4;
}

// take_more takes a header from what record.AppendMore wrote, at *p and before
// end: 1, or 0 when it does not lie there. A null value is NULL.
static int take_more(const uint8_t **p, const uint8_t *end, const void **name, uint32_t *name_len,
                     const void **value, uint32_t *value_len) {
	if (end - *p < 4)
		return 0;
	*name_len = get_u32(*p);
	*p += 4;
	if (*name_len > (uint64_t)(end - *p))
		return 0;
	*name = *p;
	*p += *name_len;
	if (end - *p < 4)
		return 0;
	*value_len = get_u32(*p);
	*p += 4;
	if (*value_len == NULL_LEN) {
		*value = NULL;
		*value_len = 0;
		return 1;
	}
	if (*value_len > (uint64_t)(end - *p))
		return 0;
	*value = *p;
	*p += *value_len;
	return 1;
}

static int good_more(const uint8_t *p, uint32_t len) {
	const uint8_t *end = p + len;
	const void *name, *value;
	uint32_t name_len, value_len;
	while (p < end)
		if (!take_more(&p, end, &name, &name_len, &value, &value_len))
			return 0;
	return 1;
}

// more_of returns the further headers of a record as record.AppendMore writes
// them, and where bmpha's lies, which comes last.
static uint8_t *more_of(bk_sink *s, const rd_kafka_headers_t *headers, size_t *len, const void **header, size_t *header_len) {
	const char *name;
	const void *value;
	size_t size, n = 0, need = 0;
	for (; rd_kafka_header_get_all(headers, n, &name, &value, &size) == 0; n++)
		need += 8 + strlen(name) + size;
	if (n && rd_kafka_header_get_all(headers, n - 1, &name, &value, &size) == 0 && strcmp(name, s->header_name) == 0) {
		*header = value;
		*header_len = value ? size : 0;
		n--;
	}
	uint8_t *more = n ? malloc(need) : NULL, *p = more;
	for (size_t i = 0; more && i < n && rd_kafka_header_get_all(headers, i, &name, &value, &size) == 0; i++) {
		size_t name_len = strlen(name);
		p = put_u32(p, (uint32_t)name_len);
		memcpy(p, name, name_len);
		p = put_u32(p + name_len, value ? (uint32_t)size : NULL_LEN);
		if (value) {
			memcpy(p, value, size);
			p += size;
		}
	}
	*len = (size_t)(p - more);
	return more;
}

// refused tells whether a broker refuses what it was given for what it is, so
// that the same batch would be refused again.
static int refused(int err) {
	return err == ERR_MSG_SIZE_TOO_LARGE || err == ERR_RECORD_LIST_TOO_LARGE || err == ERR_INVALID_MSG ||
	       err == ERR_INVALID_MSG_SIZE || err == ERR_INVALID_RECORD;
}

// refused_record does so for one record. Its timestamp is at fault only if it
// brought it.
static int refused_record(const rd_kafka_message_t *m) {
	return refused(m->err) || (m->err == ERR_INVALID_TIMESTAMP && bk_opaque_stamped(m->opaque));
}

static uint32_t topic_of(bk_sink *s, lane *l, rd_kafka_topic_t *rkt) {
	for (uint32_t i = 0; i < s->topics_n; i++)
		if (l->topics[i / 256] && l->topics[i / 256][i % 256] == rkt)
			return i;
	return 0;
}

// on_delivery runs on the thread that polls.
static void on_delivery(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque) {
	lane *l = opaque;
	bk_sink *s = l->sink;
	(void)rk;
	lock(s);
	stream *st = find(s, bk_opaque_stream(m->opaque));
	uint64_t pos = bk_position(&st->ring, m->opaque);
	if (s->txn_id) {
		st->told++;
		l->told++;
		l->abort |= m->err != 0;
	} else {
		leave(s, st, 1);
	}
	if (!m->err && s->txn_id) {
		s->stats.connected = 1;
		bk_ring_mark(&st->ring, pos);
		unlock(s);
		return;
	}
	if (!m->err) {
		s->stats.acked++;
		reached(s);
		l->progress = 1;
		bk_ring_set(&st->ring, pos);
		moved(s, st);
		unlock(s);
		return;
	}
	bk_dead *d = NULL;
	if (refused_record(m) && l->index == BK_SINGLE) {
		rd_kafka_headers_t *headers;
		const void *header = NULL;
		uint8_t *more = NULL;
		bk_dead about = {
			.stream = st->id, .topic = topic_of(s, l, m->rkt), .pos = pos, .err = m->err, .told = s->txn_id != NULL,
			.has_key = m->key != NULL, .has_value = m->payload != NULL, .key_len = m->key ? m->key_len : 0,
			.value_len = m->payload ? m->len : 0, .partition = m->partition,
			.timestamp = bk_opaque_stamped(m->opaque) && st->stamps ? st->stamps[pos & st->ring.mask] : 0,
		};
		if (rd_kafka_message_headers(m, &headers) == 0)
			more = more_of(s, headers, &about.more_len, &header, &about.header_len);
		d = new_dead(about, m->key, header, m->payload, more);
		free(more);
	}
	if (d) {
		bury(s, st, d);
	} else if (s->txn_id && (m->err == ERR_PURGE_QUEUE || m->err == ERR_PURGE_INFLIGHT)) {
		; // another record's fault
	} else {
		s->stats.failed += !s->txn_id; // counted when it has ended
		if (l->index != BK_SINGLE && (refused_record(m) || m->err == ERR_INVALID_DIFFERENT_RECORD) &&
		    pos >= st->single_end)
			st->single_end = pos + 1;
		fail(s, st, m->err, pos, st->err && !of_topic(m->err) ? 0 : topic_of(s, l, m->rkt));
	}
	moved(s, st);
	unlock(s);
}

static void on_error(rd_kafka_t *rk, int err, const char *reason, void *opaque) {
	lane *l = opaque;
	bk_sink *s = l->sink;
	char fatal[512];
	if (err == ERR_FATAL) {
		err = rd_kafka_fatal_error(rk, fatal, sizeof fatal);
		reason = fatal;
		lock(s);
		condemn(l);
	} else {
		lock(s);
		if (err == ERR_ALL_BROKERS_DOWN)
			s->stats.connected = 0;
	}
	if (!l->recalled) // of which nothing is expected
		say(s, 3, err, "", reason);
	unlock(s);
}

// A connection on which there may be records without an acknowledgement is reset
// when it is closed, so that the kernel does not go on to deliver them: they are given
// up, or go again on another one. A recall does not wait for that, because librdkafka
// may take a second to close. on_socket and on_close run on threads of librdkafka's.

static int on_socket(int domain, int type, int protocol, void *opaque) {
	lane *l = opaque;
#ifdef SOCK_CLOEXEC
	int fd = socket(domain, type | SOCK_CLOEXEC, protocol);
#else
	int fd = socket(domain, type, protocol);
	if (fd >= 0)
		fcntl(fd, F_SETFD, FD_CLOEXEC);
#endif
	if (fd < 0)
		return fd;
	pthread_mutex_lock(&l->sink->socket_mu);
	if (l->sockets_n == l->sockets_cap) {
		uint32_t cap = l->sockets_cap ? 2 * l->sockets_cap : 8;
		int *sockets = realloc(l->sockets, cap * sizeof *sockets);
		if (sockets) {
			l->sockets = sockets;
			l->sockets_cap = cap;
		}
	}
	if (l->sockets_n < l->sockets_cap)
		l->sockets[l->sockets_n++] = fd; // else it is reset when it is closed
	pthread_mutex_unlock(&l->sink->socket_mu);
	return fd;
}

static int on_close(int fd, void *opaque) {
	lane *l = opaque;
	pthread_mutex_lock(&l->sink->socket_mu);
	for (uint32_t i = 0; i < l->sockets_n; i++)
		if (l->sockets[i] == fd) {
			l->sockets[i] = l->sockets[--l->sockets_n];
			break;
		}
	pthread_mutex_unlock(&l->sink->socket_mu);
	if (__atomic_load_n(&l->fatal, __ATOMIC_RELAXED) || __atomic_load_n(&l->in_producer, __ATOMIC_RELAXED)) {
		struct linger none = {.l_onoff = 1};
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
	}
	return close(fd);
}

// sever resets the connections of a lane. librdkafka finds that they have ended, and
// closes them. Where the kernel cannot do it, they are reset then.
static void sever(lane *l) {
	struct sockaddr none = {.sa_family = AF_UNSPEC};
	pthread_mutex_lock(&l->sink->socket_mu);
	for (uint32_t i = 0; i < l->sockets_n; i++)
		(void)!connect(l->sockets[i], &none, sizeof none);
	pthread_mutex_unlock(&l->sink->socket_mu);
}

// on_log runs on the thread that polls, because of log.queue.
static void on_log(const rd_kafka_t *rk, int level, const char *fac, const char *buf) {
	lane *l = rd_kafka_opaque(rk);
	if (!l)
		return;
	lock(l->sink);
	if (!l->recalled)
		say(l->sink, level, 0, *fac ? fac : "-", buf);
	if (l->sink->txn_id)
		blame(l->sink, l, fac, buf);
	unlock(l->sink);
}

bk_sink *bk_new(uint32_t window, const char *header_name) {
	bk_sink *s = calloc(1, sizeof *s);
	if (!s)
		return NULL;
	pthread_mutex_init(&s->mu, NULL);
	pthread_mutex_init(&s->socket_mu, NULL);
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&s->wake, &attr);
	pthread_condattr_destroy(&attr);
	s->window = window;
	s->share = window > 1 ? window / 2 : 1;
	s->header_name = strdup(header_name);
	s->header_name_len = strlen(header_name);
	s->conf = rd_kafka_conf_new();
	s->topics = calloc(BK_MAX_TOPICS, sizeof *s->topics);
	s->dead_tail = &s->dead;
	s->text_tail = &s->text;
	for (int i = 0; i < BK_LANES; i++) {
		s->lanes[i].sink = s;
		s->lanes[i].index = i;
	}
	if (!s->header_name || !s->conf || !s->topics) {
		bk_free(s);
		return NULL;
	}
	return s;
}

int bk_conf(bk_sink *s, const char *name, const char *value, char *errstr, size_t size) {
	return rd_kafka_conf_set(s->conf, name, value, errstr, size);
}

// new_topic is called with the lock held, or before the lane's producer is seen.
static int new_topic(lane *l, rd_kafka_t *rk, uint32_t handle) {
	rd_kafka_topic_t ***chunk = &l->topics[handle / 256];
	if (!*chunk && !(*chunk = calloc(256, sizeof **chunk)))
		return -1;
	(*chunk)[handle % 256] = rd_kafka_topic_new(rk, l->sink->topics[handle].name, NULL);
	return (*chunk)[handle % 256] ? 0 : -1;
}

// set_id sets the transactional id of a lane.
static int set_id(rd_kafka_conf_t *conf, const char *id, int index, char *errstr, size_t size) {
	static const char *const suffix[BK_LANES] = {"", "+single", "+apart"};
	char name[1024];
	snprintf(name, sizeof name, "%s%s", id, suffix[index]);
	return rd_kafka_conf_set(conf, "transactional.id", name, errstr, size);
}

int bk_fencing(bk_sink *s, const char *id, int commit_ms) {
	s->txn_id = strdup(id);
	s->commit_ms = commit_ms;
	s->txn_size = s->share;
	return s->txn_id ? 0 : -1;
}

int bk_build(bk_sink *s, int index, char *errstr, size_t size) {
	lane *l = &s->lanes[index];
	char refresh[32] = "", timeout[32] = "";
	size_t refresh_size = sizeof refresh, timeout_size = sizeof timeout;
	rd_kafka_conf_get(s->conf, "topic.metadata.refresh.interval.ms", refresh, &refresh_size);
	rd_kafka_conf_get(s->conf, "transaction.timeout.ms", timeout, &timeout_size);
	lock(s);
	int needed = !l->rk;
	s->refresh = atoll(refresh);
	s->txn_timeout = atoll(timeout);
	unlock(s);
	if (!needed)
		return 1;
	rd_kafka_conf_t *conf = rd_kafka_conf_dup(s->conf);
	rd_kafka_conf_set_opaque(conf, l);
	rd_kafka_conf_set_dr_msg_cb(conf, on_delivery);
	rd_kafka_conf_set_error_cb(conf, on_error);
	rd_kafka_conf_set_log_cb(conf, on_log);
	if (!s->txn_id) { // with which brokers refuse what is late
		rd_kafka_conf_set_socket_cb(conf, on_socket);
		rd_kafka_conf_set_closesocket_cb(conf, on_close);
	}
	if (rd_kafka_conf_set(conf, "log.queue", "true", errstr, size) || (s->txn_id && set_id(conf, s->txn_id, index, errstr, size)) ||
	    (index == BK_SINGLE && rd_kafka_conf_set(conf, "batch.num.messages", "1", errstr, size))) {
		rd_kafka_conf_destroy(conf);
		return -1;
	}
	rd_kafka_t *rk = rd_kafka_new(PRODUCER, conf, errstr, size);
	if (!rk) {
		rd_kafka_conf_destroy(conf);
		return -1;
	}
	rd_kafka_set_log_queue(rk, NULL);
	lock(s);
	for (uint32_t i = 0; i < s->topics_n; i++)
		new_topic(l, rk, i); // a failure shows when the topic is used
	if (index == BK_BULK)
		for (uint32_t i = 0; i < s->topics_n; i++)
			__atomic_store_n(&s->topics[i].apart, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&l->fatal, 0, __ATOMIC_RELAXED);
	l->renew = l->progress = l->wanted = 0;
	l->purge_at = l->stalled_at = l->still_at = 0;
	l->txn = TXN_NONE;
	l->abort = 0;
	l->unconfirmed = 1;
	l->rk = rk;
	pthread_cond_broadcast(&s->wake);
	unlock(s);
	return 0;
}

static void destroy(rd_kafka_t *rk, rd_kafka_topic_t ***topics) {
	for (int i = 0; i < BK_MAX_TOPICS / 256; i++) {
		if (!topics[i])
			continue;
		for (int j = 0; j < 256; j++)
			if (topics[i][j])
				rd_kafka_topic_destroy(topics[i][j]);
		free(topics[i]);
		topics[i] = NULL;
	}
	if (rk)
		rd_kafka_destroy(rk);
}

void bk_retire(bk_sink *s, int index) {
	lane *l = &s->lanes[index];
	lock(s);
	rd_kafka_t *rk = l->dying;
	l->dying = NULL;
	l->retiring = rk != NULL;
	unlock(s);
	if (!rk)
		return;
	destroy(rk, l->dying_topics);
	lock(s);
	l->retiring = 0;
	s->recalling -= l->recalled;
	l->recalled = 0;
	unlock(s);
}

int64_t bk_topic(bk_sink *s, const char *name) {
	int64_t handle = -1;
	lock(s);
	if (s->topics_n < BK_MAX_TOPICS && (s->topics[s->topics_n].name = strdup(name))) {
		handle = s->topics_n++;
		for (int i = 0; i < BK_LANES; i++)
			if (s->lanes[i].rk)
				new_topic(&s->lanes[i], s->lanes[i].rk, (uint32_t)handle);
	}
	unlock(s);
	return handle;
}

// destination finds the partition of a record that has to go to a certain one.
// It returns what missing does when that is not known.
//
// The partition is chosen here and not in a partitioner of librdkafka's, because
// that is not asked for records without a key, and because it would be in the way
// of the one that the user has configured. Until a broker has told how many
// partitions there are, the caller keeps the records, and so their order.
static int destination(bk_sink *s, lane *l, stream *st, const bk_rec *r, int64_t *now, int32_t *partition) {
	topic *t = &s->topics[r->topic];
	if (r->flags & BK_PARTITION && r->partition < 0)
		return ERR_UNKNOWN_PARTITION;
	if (!*now)
		*now = now_ms();
	uint32_t n = __atomic_load_n(&t->partitions, __ATOMIC_RELAXED);
	int err = 0;
	if (n && !(r->flags & BK_PARTITION)) {
		*partition = (int32_t)(r->route % n);
		if (s->refresh > 0 && *now - __atomic_load_n(&t->counted_at, __ATOMIC_RELAXED) >= s->refresh &&
		    !__atomic_load_n(&t->ask, __ATOMIC_RELAXED)) {
			lock(s);
			want(s, l, t, *now);
			unlock(s);
		}
	} else if (n && (uint32_t)r->partition < n) {
		*partition = r->partition;
	} else {
		lock(s);
		err = missing(s, l, st, t, *now);
		unlock(s);
	}
	return err;
}

// produce gives one record to librdkafka, which copies it. Headers are ours until
// it has taken them: rd_kafka_produceva (2.11.1) frees twice those that it is
// given one by one, when it refuses a record for its topic.
static int produce(bk_sink *s, lane *l, rd_kafka_topic_t *rkt, const uint8_t *data, const bk_rec *r, int32_t partition, void *opaque) {
	static const char empty[1];
	void *key = NULL, *value = NULL;
	if (r->key_len)
		key = (void *)(data + r->key_off);
	else if (r->flags & BK_EMPTY_KEY)
		key = (void *)empty;
	uint32_t value_len = 0;
	if (!(r->flags & BK_NULL_VALUE)) {
		value = r->value_len ? (void *)(data + r->value_off) : (void *)empty;
		value_len = r->value_len;
	}
	if (!r->header_len && !r->more_len && r->timestamp <= 0) {
		if (rd_kafka_produce(rkt, partition, MSG_F_COPY, value, value_len, key, r->key_len, opaque) == 0)
			return 0;
		return rd_kafka_last_error();
	}
	rd_kafka_vu_t v[8] = {
		{.vtype = V_RKT, .u.rkt = rkt},
		{.vtype = V_PARTITION, .u.i32 = partition},
		{.vtype = V_MSGFLAGS, .u.i = MSG_F_COPY},
		{.vtype = V_VALUE, .u.mem = {value, value_len}},
		{.vtype = V_KEY, .u.mem = {key, r->key_len}},
		{.vtype = V_OPAQUE, .u.ptr = opaque},
	};
	size_t n = 6;
	if (r->timestamp > 0)
		v[n++] = (rd_kafka_vu_t){.vtype = V_TIMESTAMP, .u.i64 = r->timestamp};
	rd_kafka_headers_t *headers = NULL;
	if (r->header_len || r->more_len) {
		headers = rd_kafka_headers_new(8);
		const uint8_t *p = data + r->more_off, *end = p + r->more_len;
		const void *name, *val;
		uint32_t name_len, val_len;
		while (p < end && take_more(&p, end, &name, &name_len, &val, &val_len))
			rd_kafka_header_add(headers, name, name_len, val, val_len);
		if (r->header_len)
			rd_kafka_header_add(headers, s->header_name, (ssize_t)s->header_name_len, data + r->header_off, r->header_len);
		v[n++] = (rd_kafka_vu_t){.vtype = V_HEADERS, .u.headers = headers};
	}
	rd_kafka_error_t *e = rd_kafka_produceva(l->rk, v, n);
	if (!e)
		return 0;
	if (headers)
		rd_kafka_headers_destroy(headers);
	int err = rd_kafka_error_code(e);
	rd_kafka_error_destroy(e);
	return err;
}

static int inside(uint32_t off, uint32_t n, uint64_t len) { return (uint64_t)off + n <= len; }

// was_buried counts a record as arrived that was set aside when it went through
// this producer in a transaction that was aborted then, for that record.
static int was_buried(bk_sink *s, stream *st, uint64_t pos) {
	uint64_t i = pos & st->ring.mask;
	if (!(st->buried[i / 64] >> (i % 64) & 1))
		return 0;
	lock(s);
	bk_ring_mark(&st->ring, pos);
	leave(s, st, 1);
	unlock(s);
	return 1;
}

static void tend(bk_sink *s, lane *l);

bk_handed bk_hand(bk_sink *s, uint32_t id, uint64_t pos, const void *bytes, uint64_t len, const void *records, uint32_t n) {
	const uint8_t *data = bytes;
	const bk_rec *recs = records;
	lock(s);
	stream *st = find(s, id);
	int err = s->closed ? BK_CLOSED : !st ? BK_NO_STREAM : st->err ? BK_STOPPED : pos != st->ring.next ? BK_POSITION : BK_OK;
	if (err) {
		unlock(s);
		return (bk_handed){0, err};
	}
	const topic *t = n && recs[0].topic < s->topics_n ? &s->topics[recs[0].topic] : NULL;
	int to = pos < st->single_end ? BK_SINGLE : st->lane == BK_APART || (t && t->apart) ? BK_APART : BK_BULK;
	if (to != st->lane && st->in_producer + st->dead == 0) {
		if (to != BK_SINGLE) {
			free(st->buried);
			st->buried = NULL;
		}
		st->lane = to;
		s->lanes[to].wanted |= !s->lanes[to].rk && !s->lanes[to].dying;
	}
	if (to != st->lane)
		n = 0; // one producer could overtake the other
	if (to == BK_SINGLE && st->single_end - pos < n)
		n = (uint32_t)(st->single_end - pos);
	if (t && t->failures && now_ms() < t->retry_at)
		n = 0;
	lane *l = &s->lanes[st->lane];
	uint64_t room = s->window - s->stats.outstanding, own = st->in_producer + st->dead;
	uint64_t span = st->ring.mask + 1 - (st->ring.next - st->ring.base);
	if (s->stats.outstanding >= s->window || own >= s->share || !l->rk || l->fatal || l->renew)
		n = 0;
	if (s->txn_id && (l->txn != TXN_OPEN || l->abort || (l->hold_until && now_ms() < l->hold_until)))
		n = 0;
	n = room < n ? (uint32_t)room : n;
	n = s->share - own < n ? (uint32_t)(s->share - own) : n;
	n = span < n ? (uint32_t)span : n;
	if (n == 0) {
		unlock(s);
		return (bk_handed){0, BK_OK};
	}
	if (l->in_producer == 0 && s->txn_id)
		l->began = now_ms();
	l->handing++;
	// Reserve, so that what is acknowledged before we are back is accounted for.
	st->ring.next += n;
	enter(s, st, n);
	l->users++;
	unlock(s);

	uint32_t i, dead_n = 0;
	uint64_t handed_bytes = 0;
	bk_dead *dead = NULL, **dead_tail = &dead;
	int outcome = BK_OK; // of the call
	int failure = 0;     // of the stream
	int untold = 0;      // it is none that librdkafka found
	int64_t now = 0;
	for (i = 0; i < n; i++) {
		const bk_rec *r = &recs[i];
		if (__atomic_load_n(&st->err, __ATOMIC_RELAXED))
			break;
		if (!inside(r->key_off, r->key_len, len) || !inside(r->header_off, r->header_len, len) ||
		    !inside(r->value_off, r->value_len, len) || !inside(r->more_off, r->more_len, len) ||
		    (r->more_len && !good_more(data + r->more_off, r->more_len))) {
			outcome = BK_BAD_RECORD;
			break;
		}
		rd_kafka_topic_t **chunk = r->topic < BK_MAX_TOPICS ? l->topics[r->topic / 256] : NULL;
		rd_kafka_topic_t *rkt = chunk ? chunk[r->topic % 256] : NULL;
		if (!rkt) {
			outcome = BK_NO_TOPIC;
			break;
		}
		if (st->lane == BK_BULK && __atomic_load_n(&s->topics[r->topic].apart, __ATOMIC_RELAXED))
			break; // later, through another producer
		if (st->buried && was_buried(s, st, pos + i))
			continue;
		topic *rt = &s->topics[r->topic];
		int32_t partition = PARTITION_UA;
		int placed = r->flags & (BK_ROUTED | BK_PARTITION), hopeless = 0;
		err = 0;
		if (placed) {
			err = destination(s, l, st, r, &now, &partition);
			if (err == BK_LATER)
				break;
			hopeless = err == ERR_UNKNOWN_PARTITION;
			untold = err != 0;
		}
		if (!err) {
			if (!__atomic_load_n(&rt->used, __ATOMIC_RELAXED))
				__atomic_store_n(&rt->used, 1, __ATOMIC_RELAXED);
			if (to == BK_SINGLE && r->timestamp > 0) { // which no report of a failure tells
				if (!st->stamps)
					st->stamps = calloc(st->ring.mask + 1, sizeof *st->stamps);
				if (st->stamps)
					st->stamps[(pos + i) & st->ring.mask] = r->timestamp;
			}
			err = produce(s, l, rkt, data, r, partition, bk_opaque(id, pos + i, r->timestamp > 0));
		}
		if (err == 0) {
			handed_bytes += (uint64_t)r->key_len + r->header_len + r->value_len + r->more_len;
			continue;
		}
		if (err == ERR_QUEUE_FULL || err == ERR_FATAL || (s->txn_id && err == ERR_STATE))
			break; // no fault of the record: later
		if (placed && !untold && err == ERR_UNKNOWN_PARTITION) {
			__atomic_store_n(&rt->partitions, 0, __ATOMIC_RELAXED);
			break; // there are fewer now: later, when a broker has told
		}
		bk_dead *d = NULL;
		if (err == ERR_MSG_SIZE_TOO_LARGE || hopeless) {
			int has_value = !(r->flags & BK_NULL_VALUE);
			bk_dead about = {
				.stream = id, .topic = r->topic, .pos = pos + i, .err = err,
				.has_key = r->key_len || r->flags & BK_EMPTY_KEY, .has_value = has_value,
				.key_len = r->key_len, .header_len = r->header_len, .value_len = has_value ? r->value_len : 0,
				.more_len = r->more_len, .partition = r->flags & BK_PARTITION ? r->partition : partition,
				.timestamp = r->timestamp > 0 ? r->timestamp : 0,
			};
			d = new_dead(about, data + r->key_off, data + r->header_off, data + r->value_off, data + r->more_off);
			untold = 0;
		}
		if (!d) {
			failure = err;
			break;
		}
		*dead_tail = d;
		dead_tail = &d->next;
		dead_n++;
	}

	lock(s);
	leave(s, st, n - i);
	st->ring.next -= n - i;
	leave(s, st, dead_n);
	while (dead) {
		bk_dead *d = dead;
		dead = d->next;
		d->next = NULL;
		bury(s, st, d);
	}
	if (failure && untold)
		stop(s, st, failure, pos + i, recs[i].topic);
	else if (failure)
		fail(s, st, failure, pos + i, recs[i].topic);
	if (err == ERR_FATAL)
		condemn(l);
	if (st->err)
		moved(s, st); // its outstanding count has changed
	s->stats.handed += i;
	s->stats.bytes += handed_bytes;
	l->handing--;
	if (s->txn_id) {
		if (st->in_producer && !st->listed) {
			st->listed = 1;
			st->next_listed = l->listed;
			l->listed = st;
		}
		if (!st->in_producer && st->buried) {
			settle(s, st);
			moved(s, st);
		}
		if (l->handing == 0 && l->txn == TXN_ENDING)
			pthread_cond_broadcast(&s->wake);
	}
	if (--l->users == 0)
		pthread_cond_broadcast(&s->wake);
	if (l->recalled)
		tend(s, l); // it may have been kept waiting
	unlock(s);
	return (bk_handed){i, i ? BK_OK : outcome};
}

// tend takes out a producer that has failed for good or is to be made anew, once
// nothing is in it. It is called with the lock held.
//
// There is no purge when just a stream fails, although what is queued behind the
// failure will arrive twice: librdkafka purges later and by itself, and would
// take along what good streams are given meanwhile. Nor is there one while bk_hand
// produces: what it adds behind the purge would go out without those before.
static void tend(bk_sink *s, lane *l) {
	if (!l->rk || l->served || !(l->fatal || l->renew))
		return;
	if (l->fatal && l->in_producer && !l->handing && now_ms() >= l->purge_at) {
		l->purge_at = now_ms() + (l->recalled ? RECALL_PAUSE_MS : PURGE_PAUSE_MS);
		rd_kafka_purge(l->rk, PURGE_QUEUE | PURGE_INFLIGHT | PURGE_NON_BLOCKING);
	}
	if (!l->in_producer && !l->users) {
		l->dying = l->rk;
		memcpy(l->dying_topics, l->topics, sizeof l->topics);
		memset(l->topics, 0, sizeof l->topics);
		l->rk = NULL;
		l->wanted = 1;
		if (l->index == BK_BULK)
			s->stats.connected = 0;
	}
}

bk_polled bk_poll(bk_sink *s, int ms, bk_report *out, uint32_t cap) {
	rd_kafka_t *rk[BK_LANES];
	lock(s);
	if (s->moved_n || s->dead || (s->asks && !s->asking) || (s->txn_id && s->text))
		ms = 0;
	for (int i = 0; i < BK_LANES; i++) {
		rk[i] = s->txn_id ? NULL : s->lanes[i].rk; // bk_transact polls
		s->lanes[i].users += rk[i] != NULL;
	}
	int producers = 0, others_busy = 0;
	for (int i = 0; i < BK_LANES; i++) {
		producers += rk[i] != NULL;
		others_busy |= i != BK_BULK && s->lanes[i].in_producer > 0;
	}
	if (producers == 0 && ms > 0) {
		struct timespec until;
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_sec += ms / 1000;
		until.tv_nsec += (long)(ms % 1000) * 1000000;
		if (until.tv_nsec >= 1000000000) {
			until.tv_sec++;
			until.tv_nsec -= 1000000000;
		}
		pthread_cond_timedwait(&s->wake, &s->mu, &until);
	}
	unlock(s);

	// While another producer is at work, which is rare, all are asked in turns.
	if (producers > 1 && ms > 2 && (others_busy || !rk[BK_BULK]))
		ms = 2;
	int waited = 0;
	for (int i = 0; i < BK_LANES; i++)
		if (rk[i]) {
			rd_kafka_poll(rk[i], waited ? 0 : ms);
			waited = 1;
		}

	bk_polled p = {0, 0};
	lock(s);
	for (int i = 0; i < BK_LANES; i++)
		if (rk[i] && --s->lanes[i].users == 0)
			pthread_cond_broadcast(&s->wake);
	for (int i = 0; i < BK_LANES; i++)
		tend(s, &s->lanes[i]);
	while (s->moved_n && p.n < cap) {
		stream *st = s->streams[s->moved[--s->moved_n]];
		st->moved = 0;
		out[p.n++] = (bk_report){.stream = st->id, .outstanding = st->in_producer + st->dead, .acked = st->ring.base,
		                         .err = st->err, .topic = st->err_topic, .err_pos = st->err_pos,
		                         .again = st->err && st->lane != BK_SINGLE && st->single_end > st->ring.base};
	}
	p.flags = (s->dead ? BK_HAS_DEAD : 0) | (s->text ? BK_HAS_TEXT : 0) | (s->stats.connected ? BK_CONNECTED : 0);
	if (s->asks && !s->asking) {
		s->asking = 1; // until bk_ask is done
		p.flags |= BK_ASK;
	}
	for (int i = 0; i < BK_LANES; i++) {
		p.flags |= (s->lanes[i].wanted ? BK_WANT << i : 0) | (s->lanes[i].progress ? BK_PROGRESS << i : 0);
	}
	unlock(s);
	return p;
}

// Transactions. All of a lane's go through one call of bk_transact, which also
// serves the lane's callbacks, so that bk_poll need not. Nothing is given to
// librdkafka while a transaction ends: bk_hand takes nothing for that moment, and
// the caller keeps the records.

// txn_end takes all records of a lane's transaction out of the producer, as
// committed (err 0) or as failed. It is called with the lock held, once librdkafka
// has reported each of them.
static void txn_end(bk_sink *s, lane *l, int err) {
	while (l->listed) {
		stream *st = l->listed;
		l->listed = st->next_listed;
		st->listed = 0;
		if (err) {
			s->stats.failed += st->told;
			if (err == BK_FENCED)
				st->err = 0; // it says more than what the records were told
			stop(s, st, err, st->ring.base, 0);
			// Before a record that is still to be set aside moves base.
			memset(st->ring.bits, 0, (st->ring.mask + 1) / 8);
		} else {
			s->stats.acked += st->told;
			bk_ring_advance(&st->ring);
		}
		leave(s, st, st->told);
		st->told = 0;
		moved(s, st);
	}
	l->told = 0;
	l->abort = 0;
	l->stalled_at = l->still_at = 0;
}

// stranded tells whether a transaction that ends waits for records that librdkafka
// will not report. What it (2.11.1) was about to send again when their partition
// was taken out of its topic lies in that partition then, which is neither served
// nor purged, and which a transaction keeps from being destroyed. Where nothing says
// that the transaction has to be aborted, it waits as long as a broker keeps one open.
// It is called with the lock held, again and again.
static int stranded(bk_sink *s, lane *l, int64_t now) {
	int64_t passed = now - l->still_at;
	if (!l->still_at || l->told != l->still_told || !(s->stats.connected || l->fatal))
		l->still = 0; // without a broker nothing can be told
	else
		l->still += passed < 2 * TXN_SLICE_MS ? passed : 2 * TXN_SLICE_MS; // the process may have stood still
	l->still_at = now;
	l->still_told = l->told;
	return l->told < l->in_producer && l->still >= (l->abort ? STILL_MS : s->txn_timeout);
}

// over ends bk_transact. It is called with the lock held.
static int over(bk_sink *s, lane *l) {
	l->served = 0;
	l->txn = TXN_NONE;
	l->users--;
	pthread_cond_broadcast(&s->wake);
	unlock(s);
	return BK_OVER;
}

enum { DONE, AGAIN, ABORT, LOST };

// outcome tells what is to be done after a call of librdkafka's for transactions,
// whose error it frees.
static int outcome(bk_sink *s, lane *l, rd_kafka_error_t *e) {
	if (!e)
		return DONE;
	int what = rd_kafka_error_is_fatal(e)             ? LOST
	           : rd_kafka_error_txn_requires_abort(e) ? ABORT
	           : rd_kafka_error_is_retriable(e)       ? AGAIN
	                                                  : LOST;
	lock(s);
	if (what != AGAIN)
		say(s, 3, rd_kafka_error_code(e), "", rd_kafka_error_string(e));
	if (what == ABORT)
		l->abort = 1;
	if (what == LOST)
		condemn(l);
	unlock(s);
	rd_kafka_error_destroy(e);
	return what;
}

// ask_metadata returns whether a broker answered. It is also how librdkafka learns
// that a topic of a transaction is gone.
static int ask_metadata(rd_kafka_t *rk, int ms) {
	const struct rd_kafka_metadata *md = NULL;
	if (rd_kafka_metadata(rk, 0, NULL, &md, ms))
		return 0;
	rd_kafka_metadata_destroy(md);
	return 1;
}

// try_init initialises a transactional id, whose earlier owner is refused from
// then on. A broker is waited for first, for at most SLICE_MS each: librdkafka asks
// for the coordinator only every half second if none is connected, and the first
// answer is from a bootstrap connection, which it closes then. While the broker
// aborts the transaction of the earlier owner, it is to be asked again; by itself
// librdkafka does so every half second, and at once when it is called again. It
// keeps to one request at a time. tries is 0 before the first call.
static rd_kafka_error_t *try_init(rd_kafka_t *rk, int *tries, int *answered) {
	for (*answered = 1; *answered && *tries < 2; *tries += *answered)
		*answered = ask_metadata(rk, SLICE_MS);
	if (!*answered)
		return NULL;
	int ms = INIT_MIN_MS << (*tries - 2);
	*tries += ms < INIT_MAX_MS;
	return rd_kafka_init_transactions(rk, ms < INIT_MAX_MS ? ms : INIT_MAX_MS);
}

// txn_init initialises the id and begins the first transaction.
static void txn_init(bk_sink *s, lane *l, rd_kafka_t *rk, int *tries) {
	int answered;
	rd_kafka_poll(rk, 0);
	rd_kafka_error_t *e = try_init(rk, tries, &answered);
	if (!answered || outcome(s, l, e) != DONE || outcome(s, l, rd_kafka_begin_transaction(rk)) != DONE)
		return;
	lock(s);
	l->txn = TXN_OPEN;
	s->stats.connected = 1;
	rouse(s);
	unlock(s);
}

// txn_close commits or aborts, and begins the next transaction. It returns how far
// it came: once begun, a commit has to be asked for again until it is done, or to
// be aborted, or lost.
static int txn_close(bk_sink *s, lane *l, rd_kafka_t *rk, int abort) {
	int what;
	if (!abort) {
		what = outcome(s, l, rd_kafka_commit_transaction(rk, SLICE_MS));
		if (what == AGAIN) {
			int64_t now = now_ms();
			if (!l->stalled_at) {
				l->stalled_at = now;
			} else if (now - l->stalled_at >= STALL_MS) {
				l->stalled_at = now;
				ask_metadata(rk, SLICE_MS);
			}
		}
	} else {
		what = outcome(s, l, rd_kafka_abort_transaction(rk, TXN_SLICE_MS));
	}
	if (what != DONE)
		return what;
	for (lock(s); l->told < l->in_producer && !s->quit; lock(s)) {
		unlock(s); // librdkafka waits for that too
		rd_kafka_poll(rk, SLICE_MS);
	}
	unlock(s);
	int begun = outcome(s, l, rd_kafka_begin_transaction(rk)) == DONE;
	lock(s);
	txn_end(s, l, abort ? BK_ABORTED : 0);
	l->progress |= !abort;
	if (begun)
		l->txn = TXN_OPEN;
	rouse(s);
	unlock(s);
	return DONE;
}

// txn_lost ends the transaction of a producer that has failed for good. Those of its
// records that have no report until then are done with too: the producer is
// destroyed, and the next one aborts its transaction.
static int txn_lost(bk_sink *s, lane *l, rd_kafka_t *rk, int committing) {
	char why[512];
	int err = rd_kafka_fatal_error(rk, why, sizeof why);
	lock(s);
	int unsure = committing && l->told == l->in_producer; // else it still waits for them
	l->abort = 1;
	l->still_at = 0;
	for (int64_t purge_at = 0; l->told < l->in_producer && !s->quit; lock(s)) {
		if (stranded(s, l, now_ms())) {
			for (stream *st = l->listed; st; st = st->next_listed)
				st->told = st->in_producer;
			l->told = l->in_producer;
			break;
		}
		unlock(s);
		if (now_ms() >= purge_at) {
			purge_at = now_ms() + 1000;
			rd_kafka_purge(rk, PURGE_QUEUE | PURGE_INFLIGHT | PURGE_NON_BLOCKING);
		}
		rd_kafka_poll(rk, SLICE_MS);
	}
	int fenced = err == ERR_FENCED || err == ERR_INVALID_PRODUCER_EPOCH || err == ERR_PRODUCER_FENCED;
	s->stats.fenced += fenced;
	if (unsure)
		s->stats.unsure += l->told;
	txn_end(s, l, fenced ? BK_FENCED : BK_ABORTED);
	return over(s, l);
}

int bk_transact(bk_sink *s, int index) {
	lane *l = &s->lanes[index];
	lock(s);
	rd_kafka_t *rk = l->rk;
	if (!rk) {
		unlock(s);
		return BK_OVER;
	}
	if (!l->served) {
		l->served = 1;
		l->users++;
	}
	int committing = 0; // a commit has begun
	int tries = 0;
	for (;; lock(s)) {
		if (s->quit) {
			int open = l->in_producer && l->txn != TXN_NONE && !l->fatal && s->stats.connected;
			l->txn = TXN_ENDING;
			while (l->handing)
				pthread_cond_wait(&s->wake, &s->mu);
			unlock(s);
			if (open)
				outcome(s, l, rd_kafka_abort_transaction(rk, FAREWELL_MS));
			lock(s);
			return over(s, l);
		}
		if (l->fatal) {
			l->txn = TXN_ENDING;
			while (l->handing)
				pthread_cond_wait(&s->wake, &s->mu);
			unlock(s);
			return txn_lost(s, l, rk, committing);
		}
		if (l->txn == TXN_NONE) {
			unlock(s);
			txn_init(s, l, rk, &tries);
			continue;
		}
		if (l->txn == TXN_OPEN) {
			if (l->renew && !l->in_producer && !l->handing)
				return over(s, l);
			if (l->in_producer && l->unconfirmed && !l->abort) {
				unlock(s);
				return BK_CONFIRM;
			}
			int64_t left = l->in_producer ? l->began + s->commit_ms - now_ms() : SLICE_MS;
			if (!l->abort && left > 0 && !(l->in_producer && (s->closed || l->in_producer >= s->txn_size))) {
				unlock(s);
				rd_kafka_poll(rk, left < SLICE_MS ? (int)left : SLICE_MS);
				continue;
			}
			l->txn = TXN_ENDING;
			while (l->handing)
				pthread_cond_wait(&s->wake, &s->mu);
		}
		committing |= !l->abort;
		unlock(s);
		int what = txn_close(s, l, rk, !committing);
		if (what == DONE || what == ABORT)
			committing = 0;
		if (what != AGAIN)
			continue;
		lock(s);
		if (stranded(s, l, now_ms())) {
			char text[128];
			snprintf(text, sizeof text, "%u of a transaction's %u records have no report: they go again, through another producer",
			         l->in_producer - l->told, l->in_producer);
			say(s, 4, 0, "STRANDED", text);
			condemn(l);
		}
		unlock(s);
	}
}

void bk_confirm(bk_sink *s, int index, int ok) {
	lane *l = &s->lanes[index];
	lock(s);
	if (ok) {
		l->unconfirmed = l->refusals = 0;
		l->hold_until = 0;
	} else {
		int64_t wait = HOLD_MIN_MS << (l->refusals < 10 ? l->refusals : 10);
		l->refusals++;
		l->hold_until = now_ms() + (wait < HOLD_MAX_MS ? wait : HOLD_MAX_MS);
		l->abort = 1;
	}
	unlock(s);
}

void *bk_fence_new(bk_sink *s, const char *id, int index, char *errstr, size_t size) {
	rd_kafka_conf_t *conf = rd_kafka_conf_dup(s->conf);
	rd_kafka_conf_set_log_cb(conf, on_log); // which has no lane to tell
	rd_kafka_t *rk = NULL;
	// It lives for a moment: it connects to all brokers at once, instead of 50 ms
	// later to one of them, and has nothing to tell about itself.
	if (set_id(conf, id, index, errstr, size) == 0 &&
	    rd_kafka_conf_set(conf, "enable.sparse.connections", "false", errstr, size) == 0 &&
	    rd_kafka_conf_set(conf, "enable.metrics.push", "false", errstr, size) == 0)
		rk = rd_kafka_new(PRODUCER, conf, errstr, size);
	if (!rk)
		rd_kafka_conf_destroy(conf);
	return rk;
}

int bk_fence(void *producer, int *tries, char *errstr, size_t size) {
	int answered;
	rd_kafka_error_t *e = try_init(producer, tries, &answered);
	if (!answered) {
		snprintf(errstr, size, "no broker answers");
		return 1;
	}
	if (!e)
		return 0;
	int again = rd_kafka_error_is_retriable(e) && !rd_kafka_error_is_fatal(e);
	snprintf(errstr, size, "%s", rd_kafka_error_string(e));
	rd_kafka_error_destroy(e);
	return again ? 1 : -1;
}

void bk_fence_free(void *producer) { rd_kafka_destroy(producer); }

static int grow(bk_sink *s, uint32_t id) {
	uint32_t cap = s->streams_cap ? s->streams_cap : 64;
	while (cap <= id)
		cap *= 2;
	if (cap == s->streams_cap)
		return 0;
	stream **streams = realloc(s->streams, cap * sizeof *streams);
	if (!streams)
		return -1;
	memset(streams + s->streams_cap, 0, (cap - s->streams_cap) * sizeof *streams);
	s->streams = streams;
	s->streams_cap = cap;
	uint32_t *list = realloc(s->moved, cap * sizeof *list);
	if (!list)
		return -1;
	s->moved = list;
	s->moved_cap = cap;
	return 0;
}

static int reset(bk_sink *s, uint32_t id, uint64_t pos) {
	if (s->closed)
		return BK_CLOSED;
	if (id >= BK_MAX_STREAMS)
		return BK_NO_STREAM;
	if (grow(s, id) || s->moved_cap < s->streams_cap)
		return BK_NO_MEMORY;
	stream *st = s->streams[id];
	if (!st) {
		st = calloc(1, sizeof *st);
		if (!st || bk_ring_init(&st->ring, s->window)) {
			free(st);
			return BK_NO_MEMORY;
		}
		st->id = id;
		s->streams[id] = st;
	}
	if (st->in_producer + st->dead)
		return BK_BUSY;
	// Only a restart where the stream stopped concerns the same records.
	if (pos != st->ring.base || pos >= st->single_end) {
		st->single_end = 0;
		free(st->buried);
		st->buried = NULL;
	}
	st->lane = BK_BULK; // bk_hand chooses
	st->err = 0;
	bk_ring_reset(&st->ring, pos);
	return BK_OK;
}

int bk_reset(bk_sink *s, uint32_t id, uint64_t pos) {
	lock(s);
	int err = reset(s, id, pos);
	unlock(s);
	return err;
}

// remember_buried keeps the position of a record that was set aside, so that it is
// not sent again after the transaction was aborted because of it: else two of them
// in a stream, the first behind others, would come for ever.
static void remember_buried(stream *st, uint64_t pos) {
	if (!st->buried)
		st->buried = calloc((st->ring.mask + 1) / 64, sizeof *st->buried);
	uint64_t i = pos & st->ring.mask;
	if (st->buried)
		st->buried[i / 64] |= UINT64_C(1) << (i % 64);
}

// The purge is begun here, or by the last bk_hand at work, and its reports wake a
// bk_poll that waits. Each stream with records in a producer fails before, so that
// bk_hand stops at its next record; what it has reserved is counted in already.
uint32_t bk_recall(bk_sink *s) {
	uint32_t good = 0;
	lock(s);
	if (s->txn_id) {
		unlock(s);
		return 0;
	}
	s->stats.connected = 0;
	s->recalls++;
	for (uint32_t i = 0; i < s->streams_cap; i++) {
		stream *st = s->streams[i];
		if (!st || !st->in_producer)
			continue;
		st->err_pos = st->ring.base;
		__atomic_store_n(&st->err, BK_RECALLED, __ATOMIC_RELAXED); // says more than what was before
		moved(s, st);
	}
	for (int i = 0; i < BK_LANES; i++) {
		lane *l = &s->lanes[i];
		if (!l->recalled && (l->rk || l->dying || l->retiring)) {
			l->recalled = 1;
			s->recalling++;
		}
		int on_its_way = l->fatal || l->in_producer;
		if (l->rk) {
			good |= (uint32_t)!l->fatal << i;
			condemn(l);
			l->purge_at = 0;
			tend(s, l); // before librdkafka may try another connection
		}
		if (on_its_way)
			sever(l);
	}
	pthread_cond_broadcast(&s->wake);
	unlock(s);
	return good;
}

bk_dead *bk_take_dead(bk_sink *s) {
	lock(s);
	bk_dead *d = s->dead;
	s->dead = NULL;
	s->dead_tail = &s->dead;
	unlock(s);
	return d;
}

void bk_dead_done(bk_sink *s, bk_dead *d, int ok) {
	lock(s);
	stream *st = s->streams[d->stream];
	st->dead--;
	s->stats.outstanding--;
	if (ok) {
		s->stats.dead++;
		bk_ring_mark(&st->ring, d->pos);
		settle(s, st);
		if (s->txn_id && st->lane == BK_SINGLE)
			remember_buried(st, d->pos);
	} else {
		s->stats.failed += !d->told;
		fail(s, st, BK_DEAD_LETTER, d->pos, d->topic);
	}
	moved(s, st);
	unlock(s);
	free(d);
}

bk_text *bk_take_text(bk_sink *s) {
	lock(s);
	bk_text *t = s->text;
	s->text = NULL;
	s->text_tail = &s->text;
	s->text_n = 0;
	unlock(s);
	return t;
}

void bk_free_text(bk_text *t) { free(t); }

void bk_probe(bk_sink *s, int ms) {
	lane *l = &s->lanes[BK_BULK];
	lock(s);
	rd_kafka_t *rk = l->fatal ? NULL : l->rk;
	l->users += rk != NULL;
	uint64_t recalls = s->recalls;
	unlock(s);
	if (!rk)
		return;
	const struct rd_kafka_metadata *md = NULL;
	int err = rd_kafka_metadata(rk, 0, NULL, &md, ms);
	if (!err)
		rd_kafka_metadata_destroy(md);
	lock(s);
	if (!err && recalls == s->recalls)
		reached(s);
	if (--l->users == 0)
		pthread_cond_broadcast(&s->wake);
	unlock(s);
}

void bk_ask(bk_sink *s, int ms) {
	lock(s);
	for (uint32_t i = 0; s->asks && !s->closed; i = i + 1 < s->topics_n ? i + 1 : 0) {
		topic *t = &s->topics[i];
		if (t->ask != 1)
			continue;
		__atomic_store_n(&t->ask, 2, __ATOMIC_RELAXED);
		s->asks--;
		lane *l = &s->lanes[t->ask_lane];
		rd_kafka_topic_t *rkt = l->rk && l->topics[i / 256] ? l->topics[i / 256][i % 256] : NULL;
		if (!rkt || l->fatal || l->renew) {
			answered(l, t, 1, 0, 0);
			continue;
		}
		rd_kafka_t *rk = l->rk;
		l->users++;
		unlock(s);
		const struct rd_kafka_metadata *md = NULL;
		int failed = rd_kafka_metadata(rk, 0, rkt, &md, ms), err = 0;
		uint32_t n = 0;
		if (!failed) {
			failed = md->topic_cnt != 1;
			if (!failed) {
				err = md->topics[0].err;
				n = (uint32_t)md->topics[0].partition_cnt;
			}
			rd_kafka_metadata_destroy(md);
		}
		lock(s);
		if (--l->users == 0)
			pthread_cond_broadcast(&s->wake);
		answered(l, t, failed, err, n);
	}
	s->asking = 0;
	unlock(s);
}

void bk_get_stats(bk_sink *s, bk_stats *out) {
	lock(s);
	*out = s->stats;
	unlock(s);
}

void bk_stop(bk_sink *s) {
	lock(s);
	s->closed = 1;
	unlock(s);
}

void bk_quit(bk_sink *s) {
	lock(s);
	s->quit = 1;
	pthread_cond_broadcast(&s->wake);
	unlock(s);
}

void bk_free(bk_sink *s) {
	for (int i = 0; i < BK_LANES; i++) {
		lane *l = &s->lanes[i];
		bk_retire(s, i);
		if (l->rk) {
			if (l->in_producer)
				rd_kafka_purge(l->rk, PURGE_QUEUE | PURGE_INFLIGHT);
			destroy(l->rk, l->topics);
		}
	}
	for (uint32_t i = 0; i < s->streams_cap; i++)
		if (s->streams[i]) {
			bk_ring_free(&s->streams[i]->ring);
			free(s->streams[i]->stamps);
			free(s->streams[i]->buried);
			free(s->streams[i]);
		}
	free(s->streams);
	free(s->moved);
	for (uint32_t i = 0; i < s->topics_n; i++)
		free(s->topics[i].name);
	free(s->topics);
	while (s->dead) {
		bk_dead *d = s->dead;
		s->dead = d->next;
		free(d);
	}
	while (s->text) {
		bk_text *t = s->text;
		s->text = t->next;
		free(t);
	}
	if (s->conf)
		rd_kafka_conf_destroy(s->conf);
	free(s->header_name);
	free(s->txn_id);
	pthread_cond_destroy(&s->wake);
	for (int i = 0; i < BK_LANES; i++)
		free(s->lanes[i].sockets);
	pthread_mutex_destroy(&s->socket_mu);
	pthread_mutex_destroy(&s->mu);
	free(s);
}

#define _GNU_SOURCE
#include "handler.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

static int reader = -1;
static int writer = -1;
static int failed = 0;

// Async-signal-safe: one write to a pipe that never blocks. A full pipe (65,536
// requests that nobody read) drops the newest.
static void handle(int number) {
	int saved = errno;
	unsigned char byte = (unsigned char)number;
	while (write(writer, &byte, 1) < 0 && errno == EINTR) {
	}
	errno = saved;
}

static void four(sigset_t *set) {
	sigemptyset(set);
	for (int n = BMPHA_SIGNAL_FIRST; n <= BMPHA_SIGNAL_LAST; n++) {
		sigaddset(set, n);
	}
}

int bmpha_signal_install(void) {
	// SA_ONSTACK, because a thread of Go may be on a goroutine's small stack;
	// SA_RESTART, because Go and librdkafka expect their system calls to go on.
	struct sigaction action = {.sa_handler = handle, .sa_flags = SA_ONSTACK | SA_RESTART};
	sigfillset(&action.sa_mask);
	for (int n = BMPHA_SIGNAL_FIRST; n <= BMPHA_SIGNAL_LAST; n++) {
		if (sigaction(n, &action, NULL) != 0) {
			return errno;
		}
	}
	return 0;
}

int bmpha_signal_unblock(void) {
	sigset_t set;
	four(&set);
	return pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

static void *wait_for_signals(void *unused) {
	(void)unused;
	bmpha_signal_unblock();
	for (;;) {
		pause();
	}
	return NULL;
}

// Whatever Go's runtime and libraries do to the masks of their threads (os/signal
// blocks nearly everything on one that may be the first), this one accepts the
// four, and nothing else.
int bmpha_signal_start(void) {
	pthread_attr_t attributes;
	int err = pthread_attr_init(&attributes);
	if (err != 0) {
		return err;
	}
	sigset_t all, before;
	sigfillset(&all);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attributes, 64 << 10);
	err = pthread_sigmask(SIG_BLOCK, &all, &before);
	if (err == 0) {
		pthread_t thread;
		err = pthread_create(&thread, &attributes, wait_for_signals, NULL);
		if (err == 0) {
			pthread_setname_np(thread, "signals");
		}
		pthread_sigmask(SIG_SETMASK, &before, NULL);
	}
	pthread_attr_destroy(&attributes);
	return err;
}

int bmpha_signal_fd(void) { return reader; }

int bmpha_signal_error(void) { return failed; }

// Moves fd above the standard ones: a process that was started with stderr
// closed must not log into this pipe.
static int above_standard(int fd) {
	if (fd > 2) {
		return fd;
	}
	int moved = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	int saved = errno;
	close(fd);
	errno = saved;
	return moved;
}

// Runs before main and so before Go's runtime. The runtime will put its own
// handler in the place of ours for 35 to 37, and drops what that one gets until
// somebody asks. Blocked signals wait in the kernel meanwhile; the runtime honours
// the mask that it finds, except for 34, which it unblocks and whose handler it
// leaves alone. Package signal's init puts things right.
__attribute__((constructor(101))) static void before_main(void) {
	int ends[2];
	if (pipe2(ends, O_NONBLOCK | O_CLOEXEC) != 0) {
		failed = errno;
		return;
	}
	reader = above_standard(ends[0]);
	writer = above_standard(ends[1]);
	if (reader < 0 || writer < 0) {
		failed = errno;
		return;
	}
	sigset_t set;
	four(&set);
	failed = pthread_sigmask(SIG_BLOCK, &set, NULL);
	if (failed == 0) {
		failed = bmpha_signal_install();
	}
}

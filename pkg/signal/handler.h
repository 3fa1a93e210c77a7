// The four signals by their raw numbers, as pmacct uses them: with glibc the
// first is SIGRTMIN. They are numbers here and not SIGRTMIN+n, because it is the
// number that an operator's script sends.
#define BMPHA_SIGNAL_FIRST 34
#define BMPHA_SIGNAL_LAST 37

// Install the handler for all four. Returns 0 or an errno.
int bmpha_signal_install(void);

// Start the thread on which the four arrive, those that are pending first.
// Returns 0 or an errno.
int bmpha_signal_start(void);

// Take the four out of the calling thread's signal mask. Returns 0 or an errno.
int bmpha_signal_unblock(void);

// The reading end of the pipe that the handler writes to, or -1.
int bmpha_signal_fd(void);

// The errno of whatever failed before main, or 0.
int bmpha_signal_error(void);

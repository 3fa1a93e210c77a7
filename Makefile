# make demo    see the main job work, on embedded Redis and Kafka
# make test    everything that takes minutes; with CI=true real servers are required
# make e2e     what takes longer: long failovers, a thousand seeds, fuzzing, two minutes of faults
# make timelines   nine failovers of a pair, beside the figures of pmacct's own
# make chaos   ten minutes and 200 faults at three collectors; CHAOS=-seed=7 and the like
# make bench   the numbers; make bench-failover: pmacct alone and with bmpha
# make install into $(DESTDIR)$(PREFIX); by sudo what make has built

GO      ?= go
PREFIX  ?= /usr/local
DESTDIR ?=
VERSION ?=
RACE    ?= -race
UNITDIR ?= $(PREFIX)/lib/systemd/system
SYSUSERSDIR ?= $(PREFIX)/lib/sysusers.d

LDFLAGS = $(if $(VERSION),-X main.release=$(VERSION))
FUZZTIME ?= 6s
SIM_SEEDS ?= 10000

.PHONY: all build demo test lint parts e2e sim fuzz timelines chaos bench bench-failover install clean

all: build

build: bin/bmpha

bin/bmpha: FORCE
	$(GO) build -ldflags '$(LDFLAGS)' -o $@ ./cmd/bmpha

.PHONY: FORCE
FORCE:

demo: build
	./bin/bmpha demo

# In continuous integration what is missing is installed first, and then a
# missing real part fails the tests that need it.
parts:
ifeq ($(CI),true)
	./scripts/install-parts
endif
	@./scripts/parts

lint:
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); \
	if [ -n "$$unformatted" ]; then echo "gofmt would change: $$unformatted" >&2; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

# Tests in which collectors watch the clock have the machine to themselves.
TIMED = /pkg/collector$$|/pkg/demo$$|/cmd/bmpha$$

# These have no goroutines in which the race detector could find anything, and are ten
# times as slow with it.
PURE = /pkg/sim$$|/pkg/election$$

test: parts lint
	$(GO) test -timeout 9m $$($(GO) list ./... | grep -E '$(PURE)')
	$(GO) test $(RACE) -timeout 9m $$($(GO) list ./... | grep -vE '$(PURE)|$(TIMED)')
	$(GO) test $(RACE) -timeout 30m -p 1 $$($(GO) list ./... | grep -E '$(TIMED)')
	@./scripts/parts

sim:
	$(GO) test ./pkg/sim -count 1 -v -run 'TestSeeds$$' -timeout 60m -sim.seeds $(SIM_SEEDS) -sim.minutes 10
	$(GO) test ./pkg/sim -count 1 -run 'TestRedump$$' -timeout 30m -sim.seeds $$(( $(SIM_SEEDS) / 5 ))

fuzz:
	./scripts/fuzz $(FUZZTIME)

# The schedule of faults is always the same here, one that once found something; make
# chaos draws another each time.
e2e: build parts fuzz
	$(MAKE) sim SIM_SEEDS=1000
	BMPHA_LONG=1 $(GO) test -count 1 -timeout 40m -p 1 -v -run Long ./cmd/bmpha ./pkg/table
	./scripts/chaos faults -time 2m -faults 40 -seed 6001 $(CHAOS)

timelines: build parts
	./scripts/chaos timelines $(TIMELINES)

chaos: build parts
	./scripts/chaos faults -time 10m -faults 200 $(CHAOS)

bench: build parts
	./scripts/bench

bench-failover: build parts
	BENCH_ONLY=failover ./scripts/bench

# By sudo nothing is built again: root finds another go or none, and would own what it builds.
install: $(if $(and $(SUDO_USER),$(wildcard bin/bmpha)),,build)
	install -D -m 0755 bin/bmpha $(DESTDIR)$(PREFIX)/bin/bmpha
	install -D -m 0644 scripts/bmpha.yaml $(DESTDIR)$(PREFIX)/share/doc/bmpha/bmpha.yaml
	install -d $(DESTDIR)$(PREFIX)/share/man/man1
	./bin/bmpha man > $(DESTDIR)$(PREFIX)/share/man/man1/bmpha.1
	install -D -m 0644 scripts/completion.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/bmpha
	install -D -m 0644 systemd/bmpha.sysusers $(DESTDIR)$(SYSUSERSDIR)/bmpha.conf
	for unit in bmpha.service bmpha@.service; do \
		install -d $(DESTDIR)$(UNITDIR) && \
		sed 's|/usr/bin/bmpha|$(PREFIX)/bin/bmpha|g; s|/usr/local/bin/bmpha|$(PREFIX)/bin/bmpha|g' systemd/$$unit > $(DESTDIR)$(UNITDIR)/$$unit && \
		chmod 0644 $(DESTDIR)$(UNITDIR)/$$unit || exit 1; \
	done

clean:
	rm -rf bin

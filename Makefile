# make mount   build, make a ring of one, mount it on MNT and try it
# make install  build, and install under PREFIX
# make test    install what the tests need and run all of them
# make fuzz    the fuzzers of test/fuzz, T=1h each (MUTUALFS_SEED=N repeats a run)
# make torture two mounts, sixteen processes, peers killed; then sqlite databases on two mounts: T=10m each (MUTUALFS_SEED=N repeats a run of the first)
# make bench   the benchmarks of docs/benchmarks.md (BESIDE="-beside NAME=DIR …" measures other file systems, too)
# make pjdfstest PJD=DIR   pjdfstest on a mount; DIR has a built one
# make suites  tests of others on a mount: Go, CPython, stress-ng, dbench, fs_mark, bonnie++

MNT  ?= /mnt/mutual
DATA ?=
BIN  := bin/mutualfs
PREFIX ?= /usr/local
SUDO := $(shell [ $$(id -u) = 0 ] || echo sudo)
DATAFLAG := $(if $(DATA),--data $(DATA))
export CGO_ENABLED := 0

.PHONY: fuzz torture build install mount unmount test check race bench pjdfstest suites fuse-tools test-tools clean

build:
	go build -trimpath -ldflags "-s -w -X main.version=$$(git describe --tags --always --dirty 2>/dev/null || echo devel)" -o $(BIN) ./cmd/mutualfs

# apt-get only where something is missing.
fuse-tools:
	@command -v fusermount3 >/dev/null || { $(SUDO) apt-get update -q && $(SUDO) apt-get install -q -y fuse3; }

test-tools: fuse-tools
	@command -v rsync >/dev/null && command -v getfattr >/dev/null && python3 -c "import sqlite3" 2>/dev/null || { $(SUDO) apt-get update -q && $(SUDO) apt-get install -q -y rsync attr python3; }

mount: fuse-tools build
	@test/try-mount $(BIN) "$(MNT)" $(DATAFLAG)

# The link lets mount(8) and /etc/fstab know the file system.
install: build
	$(SUDO) install -m 755 $(BIN) $(PREFIX)/bin/mutualfs
	$(SUDO) ln -sf $(PREFIX)/bin/mutualfs /sbin/mount.mutualfs

unmount:
	$(BIN) unmount "$(MNT)"

check:
	@out=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "gofmt: $$out"; exit 1; }
	go vet ./...
	go tool staticcheck ./...

# The tests with real peers wait more than they compute, and take longest: they come first, the others run beside them.
test: test-tools build
	MUTUALFS_MODEL=full go test -timeout 40m -count=1 -p 2 ./test/cluster ./...

race:
	@command -v gcc >/dev/null || { $(SUDO) apt-get update -q && $(SUDO) apt-get install -q -y gcc libc6-dev; }
	@test/race ./blocks/... ./parity/... ./mux/... ./overlay/... ./fs/...

T ?= 10m
fuzz: test-tools
	MUTUALFS_FUZZ_TIME=$(T) go test -count=1 -v -timeout 0 ./test/fuzz

torture: test-tools
	MUTUALFS_FUZZ_TIME=$(T) go test -count=1 -v -timeout 0 -run 'TestTorture$$' ./test/fuzz
	MUTUALFS_FUZZ_TIME=$(T) go test -count=1 -v -timeout 0 -run 'TestSqlite$$' ./test/cluster

bench: test-tools build
	go test -run "^$$" -bench Table -benchtime 1x -timeout 60m ./test/bench -args -table $(CURDIR)/bin/benchmarks.md $(BESIDE)

pjdfstest: fuse-tools build
	@test/pjdfstest $(BIN) "$(PJD)"

suites: fuse-tools build
	@test/suites $(BIN) $(SUITES)

clean:
	rm -rf bin

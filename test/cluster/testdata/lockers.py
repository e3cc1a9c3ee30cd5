"""Processes that lock, for locks_test.go.

count DIR KIND N      increment DIR/counter N times under an exclusive lock
hold DIR KIND         take the lock, say so, keep it until standard input ends
wait DIR KIND LIMIT   wait for the lock, at most LIMIT seconds by an alarm; say "got SECONDS" or "interrupted"
same LOCAL MOUNT SEED STEPS
                      the same random calls by three processes in both directories, answers compared
"""
import errno, fcntl, os, random, signal, struct, sys, time

FILES, PROCESSES, RANGE = 2, 3, 12
FLOCK = "hhqqi"  # struct flock: type, whence, start, length, pid


def lock(fd, kind, how):
    fcntl.flock(fd, how) if kind == "flock" else fcntl.lockf(fd, how)


def count(directory, kind, n):
    fd = os.open(directory + "/counter", os.O_RDWR | os.O_CREAT)
    for _ in range(int(n)):
        lock(fd, kind, fcntl.LOCK_EX)
        value = int(os.pread(fd, 20, 0) or b"0")
        os.pwrite(fd, b"%020d" % (value + 1), 0)
        lock(fd, kind, fcntl.LOCK_UN)


def hold(directory, kind):
    fd = os.open(directory + "/held", os.O_RDWR | os.O_CREAT)
    lock(fd, kind, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()


class Alarm(Exception):
    pass


def on_alarm(*_):
    raise Alarm


def wait(directory, kind, limit):
    fd = os.open(directory + "/held", os.O_RDWR | os.O_CREAT)
    signal.signal(signal.SIGALRM, on_alarm)
    start = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, float(limit))
    try:
        lock(fd, kind, fcntl.LOCK_EX)
        print("got %.1f" % (time.monotonic() - start))
    except Alarm:
        print("interrupted %.1f" % (time.monotonic() - start))


class Worker:
    """A process with some descriptors that does what it is told."""

    def __init__(self, directory, others):
        down, up = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            for o in others:
                o.to.close(), o.back.close()
            os.close(down[1]), os.close(up[0])
            self.serve(directory, os.fdopen(down[0]), os.fdopen(up[1], "w"))
            os._exit(0)
        os.close(down[0]), os.close(up[1])
        self.to, self.back = os.fdopen(down[1], "w"), os.fdopen(up[0])

    def ask(self, *words):
        print(*words, file=self.to, flush=True)
        return self.back.readline().strip()

    def serve(self, directory, asked, answers):
        fds = {}
        for line in asked:
            try:
                answer = self.do(directory, fds, *line.split())
            except OSError as e:
                answer = errno.errorcode[e.errno]
            print(answer, file=answers, flush=True)

    def do(self, directory, fds, what, slot, *args):
        if what == "open":
            if slot in fds:
                os.close(fds.pop(slot))
            fds[slot] = os.open(directory + "/" + args[0], os.O_RDWR | os.O_CREAT)
        elif slot not in fds:
            return "none"
        elif what == "close":
            os.close(fds.pop(slot))
        elif what == "flock":
            fcntl.flock(fds[slot], int(args[0]))
        else:
            typ, start, length = map(int, args)
            flock = struct.pack(FLOCK, typ, os.SEEK_SET, start, length, 0)
            if what == "set":
                fcntl.fcntl(fds[slot], fcntl.F_SETLK, flock)
            else:
                return "%d" % (struct.unpack(FLOCK, fcntl.fcntl(fds[slot], fcntl.F_GETLK, flock))[0] == fcntl.F_UNLCK)
        return "ok"


def call(rng):
    slot = rng.choice("ab")
    kind = rng.choices(["open", "close", "flock", "set", "get"], [2, 1, 4, 8, 4])[0]
    if kind == "open":
        return kind, slot, "file%d" % rng.randrange(FILES)
    if kind == "close":
        return kind, slot
    if kind == "flock":
        return kind, slot, rng.choice([fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN, fcntl.LOCK_EX]) | fcntl.LOCK_NB
    types = [fcntl.F_RDLCK, fcntl.F_WRLCK] + ([fcntl.F_UNLCK] if kind == "set" else [])
    return kind, slot, rng.choice(types), rng.randrange(RANGE), rng.randrange(RANGE)  # length 0: to the end


def same(local, mount, seed, steps):
    rng = random.Random(int(seed))
    sides = []
    for directory in (local, mount):
        workers = []
        for _ in range(PROCESSES):
            workers.append(Worker(directory, [w for s in sides for w in s] + workers))
        sides.append(workers)
    tally = {}
    for step in range(int(steps)):
        who, what = rng.randrange(PROCESSES), call(rng)
        want, got = (side[who].ask(*what) for side in sides)
        if want != got:
            sys.exit("step %d: process %d: %s: %s, on a local file system %s" % (step, who, what, got, want))
        tally[what[0], got] = tally.get((what[0], got), 0) + 1
    print(tally)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])

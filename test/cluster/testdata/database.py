"""torture PATH WHO N SEED: N transactions on a sqlite database, each of which looks whether what it finds fits together; check PATH: its
integrity and what it has."""
import random, sqlite3, sys


def busy(e):
    return "locked" in str(e) or "busy" in str(e)


def attempt(db, who, i):
    """One transaction; false if it was rolled back."""
    try:
        db.execute("begin immediate")
        rows, n = db.execute("select count(*) from t").fetchone()[0], db.execute("select n from s").fetchone()[0]
        if rows != n:
            sys.exit("%d rows, and %d were counted" % (rows, n))
        db.execute("insert into t values (?, ?, ?)", (who, i, random.randbytes(random.randrange(3000))))
        db.execute("update s set n = n + 1")
        if random.random() < 0.2:
            db.execute("rollback")
            return False
        db.execute("commit")
        return True
    except sqlite3.OperationalError as e:
        if not busy(e):
            raise
        if db.in_transaction:
            db.execute("rollback")
        return False


def make(path, mode):
    db = sqlite3.connect(path, isolation_level=None)
    got = db.execute("pragma journal_mode = " + mode).fetchone()[0]
    if got != mode:
        sys.exit("journal mode %s instead of %s" % (got, mode))
    db.execute("create table t (who text, i integer, pad blob, primary key (who, i))")
    db.execute("create table s (n integer)")
    db.execute("insert into s values (0)")


def torture(path, who, n, seed):
    random.seed(seed + " " + who)
    db = sqlite3.connect(path, timeout=60, isolation_level=None)
    for i in range(int(n)):
        while not attempt(db, who, i):
            pass


def check(path):
    db = sqlite3.connect(path, timeout=60)
    print(db.execute("pragma integrity_check").fetchone()[0],
          db.execute("select count(*) from t").fetchone()[0], db.execute("select n from s").fetchone()[0])


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])

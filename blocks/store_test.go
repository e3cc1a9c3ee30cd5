package blocks

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// seeded returns a source whose seed is printed; MUTUALFS_SEED replays it.
func seeded(t testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("MUTUALFS_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("MUTUALFS_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("MUTUALFS_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// randReader makes an io.Reader of a source.
type randReader struct{ r *rand.Rand }

func (r randReader) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(r.r.Uint32())
	}
	return len(b), nil
}

func testVnode(n int) VnodeID { return VnodeID{HashID([]byte("vnode"), []byte{byte(n)})} }

func testStripe(n int) StripeID {
	return StripeID{HashID([]byte("stripe"), binary.BigEndian.AppendUint32(nil, uint32(n)))}
}

// memConfig is a store in memory: so many virtual disks on one drive.
func memConfig(m *MemFS, vnodes int, capacity int64) Config {
	c := Config{Ring: HashID([]byte("ring")), Peer: PeerID{HashID([]byte("peer"))}, FS: m, Indexes: m.Indexes(),
		Drives: []DriveConfig{{Dir: "/drive"}}}
	for i := range vnodes {
		c.Vnodes = append(c.Vnodes, VnodeConfig{ID: testVnode(i), Number: i, Capacity: capacity})
	}
	return c
}

func mustOpen(t testing.TB, c Config) *Store {
	t.Helper()
	s, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// testShard makes the one right shard of a stripe and index: its content follows
// from its name.
func testShard(stripe StripeID, index uint8, size uint32) Shard {
	var seed [32]byte
	copy(seed[:], stripe.ID[:])
	seed[31] = index
	data := make([]byte, size)
	rand.NewChaCha8(seed).Read(data)
	return Shard{
		Header: Header{Stripe: stripe, StripeLen: 4 * size, Index: index, K: 4, M: 2, Size: size, Unit: 16 << 10,
			Owner: Owner{Register: RegisterID{HashID([]byte("dir"))}, Ino: 7}, Written: 1_700_000_000},
		Data: data,
	}
}

func mustPut(t testing.TB, s *Store, v VnodeID, shard Shard) Epoch {
	t.Helper()
	e, err := s.Put(v, shard)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func wantShard(t testing.TB, s *Store, v VnodeID, want Shard) {
	t.Helper()
	got, err := s.Get(v, want.Stripe, int(want.Index), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got.Header != want.Header || !bytes.Equal(got.Data, want.Data) {
		t.Fatalf("got another shard than was put: %+v", got.Header)
	}
}

func wantError(t testing.TB, err, class error) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Fatalf("got error %v, want %v", err, class)
	}
}

func TestPutGetDelete(t *testing.T) {
	for name, config := range map[string]func() Config{
		"memory": func() Config { return memConfig(NewMemFS(), 2, 4<<20) },
		"host": func() Config {
			c := memConfig(NewMemFS(), 2, 4<<20)
			c.FS = nil
			c.Drives[0].Dir = filepath.Join(t.TempDir(), "drive")
			return c
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := config()
			s := mustOpen(t, c)
			ctx := context.Background()
			var all []Shard
			for i := range 20 {
				shard := testShard(testStripe(i), uint8(i%6), uint32(1+i*i*200))
				e := mustPut(t, s, testVnode(i%2), shard)
				all = append(all, shard)
				if i%3 == 0 {
					if err := s.Sync(ctx, 0, e); err != nil {
						t.Fatal(err)
					}
				}
			}
			for _, shard := range all {
				wantShard(t, s, testVnode(0), shard)
				if n := shard.Size; n > 100 {
					got, err := s.Get(testVnode(1), shard.Stripe, int(shard.Index), n/3, n/2)
					if err != nil || !bytes.Equal(got.Data, shard.Data[n/3:n/3+n/2]) || got.Off != n/3 {
						t.Fatalf("range of %d: %v", n, err)
					}
				}
			}
			if err := s.Delete(all[3].Stripe); err != nil {
				t.Fatal(err)
			}
			if err := s.DeleteShard(testVnode(0), all[4].Stripe, int(all[4].Index)); err != nil {
				t.Fatal(err)
			}
			checkPutGetDelete(t, s, all)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			_, err := s.Put(testVnode(0), all[0])
			wantError(t, err, ErrUnavailable)
			s = mustOpen(t, c)
			checkPutGetDelete(t, s, all)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// checkPutGetDelete finds all shards but the deleted ones, 3 and 4.
func checkPutGetDelete(t *testing.T, s *Store, all []Shard) {
	t.Helper()
	for i, shard := range all {
		have, err := s.Have(shard.Stripe)
		if err != nil {
			t.Fatal(err)
		}
		if i == 3 || i == 4 {
			_, err := s.Get(testVnode(0), shard.Stripe, int(shard.Index), 0, 0)
			wantError(t, err, ErrNotFound)
			if len(have) != 0 {
				t.Fatalf("deleted shard: have %v", have)
			}
			continue
		}
		wantShard(t, s, testVnode(0), shard)
		if len(have) != 1 || have[0].Header != shard.Header || have[0].Vnode != testVnode(i%2) {
			t.Fatalf("have %+v", have)
		}
		if err := s.Verify(have[0]); err != nil {
			t.Fatal(err)
		}
	}
	if u := s.Usage(); u.Shards != 18 {
		t.Fatalf("usage %+v", u)
	}
}

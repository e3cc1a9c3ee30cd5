package index

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/mutualfs/mutualfs/blocks"
)

// benchStore opens a store of so many virtual disks on one drive.
func benchStore(b *testing.B, vnodes int) (*blocks.Store, []blocks.VnodeID) {
	b.Helper()
	c := blocks.Config{
		Ring: blocks.HashID([]byte("ring")), Peer: blocks.PeerID{ID: blocks.HashID([]byte("peer"))}, Indexes: Pebble{},
		Drives: []blocks.DriveConfig{{Dir: filepath.Join(b.TempDir(), "drive")}},
	}
	var v []blocks.VnodeID
	for i := range vnodes {
		v = append(v, blocks.VnodeID{ID: blocks.HashID([]byte("vnode"), []byte{byte(i)})})
		c.Vnodes = append(c.Vnodes, blocks.VnodeConfig{ID: v[i], Number: i, Capacity: 64 << 30})
	}
	s, err := blocks.Open(c)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	return s, v
}

func benchShard(n uint64, data []byte) blocks.Shard {
	id := blocks.HashID(binary.BigEndian.AppendUint64(nil, n))
	return blocks.Shard{Data: data, Header: blocks.Header{Stripe: blocks.StripeID{ID: id}, StripeLen: 1 << 20, K: 4, M: 2,
		Size: uint32(len(data)), Unit: 16 << 10}}
}

func benchData(size int) []byte {
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(data)
	return data
}

// Every put is followed by a wait for its sync; writers at the same time share rounds.
func BenchmarkPutSync(b *testing.B) {
	for _, size := range []int{3 << 10, 64 << 10, 256 << 10} {
		for _, writers := range []int{2, 16, 64} {
			const disks = 8
			b.Run(fmt.Sprintf("%dKiB/%dwriters", size>>10, writers), func(b *testing.B) {
				s, v := benchStore(b, disks)
				data := benchData(size)
				var n atomic.Uint64
				b.SetBytes(int64(size))
				b.SetParallelism(max(1, writers/runtime.GOMAXPROCS(0)))
				b.ReportAllocs()
				b.ResetTimer()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						i := n.Add(1)
						e, err := s.Put(v[i%disks], benchShard(i, data))
						if err == nil {
							err = s.Sync(context.Background(), 0, e)
						}
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
			})
		}
	}
}

// Many puts and one sync: how a bulk write goes.
func BenchmarkPut(b *testing.B) {
	for _, size := range []int{3 << 10, 256 << 10} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			s, v := benchStore(b, 1)
			data := benchData(size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			var e blocks.Epoch
			n := uint64(0)
			for b.Loop() {
				var err error
				n++
				if e, err = s.Put(v[0], benchShard(n, data)); err != nil {
					b.Fatal(err)
				}
				if n%64 == 0 {
					if err := s.Sync(context.Background(), 0, e); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

func BenchmarkGet(b *testing.B) {
	const shards = 512
	for _, want := range []uint32{4 << 10, 256 << 10} {
		b.Run(fmt.Sprintf("%dKiB", want>>10), func(b *testing.B) {
			s, v := benchStore(b, 1)
			data := benchData(256 << 10)
			for i := range uint64(shards) {
				e, err := s.Put(v[0], benchShard(i, data))
				if err == nil && i == shards-1 {
					err = s.Sync(context.Background(), 0, e)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(int64(want))
			b.ReportAllocs()
			r := rand.New(rand.NewPCG(1, 1))
			for b.Loop() {
				id := benchShard(r.Uint64N(shards), nil).Stripe
				off := r.Uint32N(uint32(len(data))/want) * want
				if _, err := s.Get(v[0], id, 0, off, want); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRegisterSync(b *testing.B) {
	s, _ := benchStore(b, 1)
	kv := s.Registers()
	value := benchData(300)
	var n atomic.Uint64
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			key := binary.BigEndian.AppendUint64(nil, n.Add(1)%1000)
			if err := kv.Apply([]blocks.KVChange{{Key: key, Value: value}}, true); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

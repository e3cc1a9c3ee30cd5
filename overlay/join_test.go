package overlay_test

import (
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
	"github.com/mutualfs/mutualfs/overlay/overlaytest"
)

func TestSeedsAreTriedUntilOneAnswers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, func(cfg *overlay.Config) { cfg.Seeds = []string{"nobody:1", addrOf(0)} })
		defer c.stopAll()
		c.start(1)
		time.Sleep(20 * time.Second)
		c.start(0)
		c.eventually(time.Minute, counts(overlay.Alive, 2))
	})
}

func TestJoinSaysWhatIsWrong(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, nil)
		defer c.stopAll()
		p := c.start(0)
		c.tune = func(cfg *overlay.Config) { cfg.Ring = blocks.HashID([]byte("another ring")) }
		c.start(1)
		for _, bad := range []struct {
			addrs []string
			class error
		}{
			{nil, blocks.ErrUnavailable},
			{[]string{"nobody:1"}, blocks.ErrUnavailable},
			{[]string{addrOf(0)}, blocks.ErrUnavailable}, // itself
			{[]string{addrOf(1)}, blocks.ErrRefused},     // of another ring
			{[]string{"xyz@" + addrOf(1)}, blocks.ErrInvalid},
		} {
			if err := p.Join(t.Context(), bad.addrs); !errors.Is(err, bad.class) {
				t.Errorf("join at %v: %v, want %v", bad.addrs, err, bad.class)
			}
		}
		c.tune = nil
		if err := c.start(2).Join(t.Context(), []string{"nobody:1", fmt.Sprintf("%v@%s", peerID(0), addrOf(0))}); err != nil {
			t.Error(err)
		}
	})
}

func TestAClientIsNotOnTheRing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, nil)
		defer c.stopAll()
		c.startAll(3)
		c.tune = func(cfg *overlay.Config) { cfg.Capacity, cfg.Vnodes = 0, 0 }
		if err := c.start(3).Join(t.Context(), []string{addrOf(1)}); err != nil {
			t.Fatal(err)
		}
		c.eventually(10*time.Second, counts(overlay.Alive, 4))
		p := c.peers[3]
		if n := len(p.Table().Vnodes()); n != 24 || len(p.RingInfo()) != 0 {
			t.Errorf("%d virtual nodes, %d of the client", n, len(p.RingInfo()))
		}
		id := blocks.HashID([]byte("x"))
		want, _ := p.Table().Owner(id)
		if got, _, err := p.Lookup(t.Context(), id); err != nil || got != want {
			t.Errorf("a client's lookup: %v, %v, want %v", got, err, want)
		}
		if r, err := p.Check(t.Context()); err != nil || r.Failed > 0 || r.Routes != 24*23 {
			t.Errorf("a client's check: %+v, %v", r, err)
		}
		infos, err := p.PeerRingInfo(t.Context(), peerID(1))
		if err != nil || len(infos) != 8 || infos[2].Vnode.ID != overlay.VnodePosition(testRing, peerID(1), 2) || !infos[2].Member {
			t.Errorf("another peer's ring: %+v, %v", infos, err)
		}
	})
}

func TestUseAndAddressAreGossiped(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, nil)
		defer c.stopAll()
		c.startAll(3)
		c.eventually(10*time.Second, counts(overlay.Alive, 3))
		c.peers[1].SetUsed(1 << 19) // too little to be worth a word
		c.peers[2].SetUsed(1 << 38)
		used := func(id blocks.PeerID, want uint64) func(int, *overlay.Peer) string {
			return func(_ int, p *overlay.Peer) string {
				if got := p.Table().Peers[id].Used; got != want {
					return fmt.Sprintf("%d bytes used, want %d", got, want)
				}
				return ""
			}
		}
		c.eventually(10*time.Second, used(peerID(2), 1<<38))
		c.eventually(time.Second, used(peerID(1), 0))

		c.stop[2]()
		c.tune = func(cfg *overlay.Config) { cfg.Addr, cfg.Zone = "moved.example:1", "cellar" }
		c.start(2)
		c.eventually(30*time.Second, func(_ int, p *overlay.Peer) string {
			if info := p.Table().Peers[peerID(2)]; info.Addr != "moved.example:1" || info.Zone != "cellar" || info.Live != overlay.Alive {
				return fmt.Sprintf("%+v", info)
			}
			return ""
		})
	})
}

func TestAPeerThatLostItsDiskIsBelievedAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, nil)
		defer c.stopAll()
		c.startAll(3)
		c.eventually(10*time.Second, counts(overlay.Alive, 3))
		for i := range 5 { // its incarnation grows
			c.peers[2].SetUsed(uint64(i) << 38)
			time.Sleep(time.Second)
		}
		c.stop[2]()
		delete(c.stores, 2)
		c.tune = func(cfg *overlay.Config) { cfg.Vnodes = 4 }
		if err := c.start(2).Join(t.Context(), []string{addrOf(1)}); err != nil {
			t.Fatal(err)
		}
		c.eventually(30*time.Second, func(_ int, p *overlay.Peer) string {
			if info := p.Table().Peers[peerID(2)]; info.Vnodes != 4 || len(p.Table().Vnodes()) != 20 {
				return fmt.Sprintf("%d virtual nodes of it, %d in all", info.Vnodes, len(p.Table().Vnodes()))
			}
			return ""
		})
	})
}

func TestStreamsAreClosedIfNobodyTakesThem(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, nil)
		p := c.start(0)
		c.stop[0]()
		near, far := net.Pipe()
		p.AcceptStream(far)
		if _, err := near.Write([]byte("x")); err == nil {
			t.Error("a stream to a peer that has ended stays open")
		}
	})
}

// badStore fails to save.
type badStore struct{ memStore }

func (*badStore) Save([]byte) error { return errors.New("disk full") }

func TestAFullDiskDoesNotStopTheRing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, func(cfg *overlay.Config) { cfg.Store = &badStore{} })
		defer c.stopAll()
		c.startAll(2)
		c.eventually(10*time.Second, counts(overlay.Alive, 2))
	})
}

func TestADamagedListOfPeersIsSurvivedAForeignOneIsNot(t *testing.T) {
	end := overlaytest.NewWire(1).End(peerID(0), "a:1")
	for _, c := range []struct {
		state []byte
		class error
	}{{nil, nil}, {[]byte{9}, blocks.ErrInvalid}, {append([]byte{1}, make([]byte, blocks.IDSize)...), blocks.ErrInvalid}, {append([]byte{1}, testRing[:]...), nil}} {
		cfg := overlay.Config{Ring: testRing, Self: peerID(0), Addr: "a:1", K: 1, Store: &memStore{state: c.state}, Transport: end, Dial: end.Dial}
		if _, err := overlay.New(cfg); !errors.Is(err, c.class) {
			t.Errorf("%x: %v, want %v", c.state, err, c.class)
		}
	}
}

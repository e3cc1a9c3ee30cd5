package fs

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mutualfs/mutualfs/fs/tree"
)

// settled reports in which order an answer, an invalidation and a Settle that follows them come to their ends.
func TestSettleWaitsForAnswersAndInvalidations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNotices(nil, newAnswers())
		sent := make(chan struct{})
		n.send = func(notice) { <-sent }
		stop := make(chan struct{})
		go n.run(stop)
		turn := n.answers.begin()
		n.InvalidateEntry(7, "name")
		done := make(chan struct{})
		go func() { defer close(done); n.Settle(t.Context()) }()
		pending := func(what string) {
			t.Helper()
			synctest.Wait()
			select {
			case <-done:
				t.Fatalf("Settle did not wait for %s", what)
			default:
			}
		}
		pending("the answer")
		later := n.answers.begin() // not one that it must wait for
		n.answers.end(turn)
		pending("the invalidation")
		close(sent)
		<-done
		n.answers.end(later)
		close(stop)
	})
}

// An invalidation that the kernel does not let through holds up its own lane, and Settle no longer than its context.
func TestSettleIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNotices(nil, newAnswers())
		stuck, got := make(chan struct{}), make(chan tree.Ino, notifiers)
		n.send = func(x notice) {
			if x.ino == 4 {
				<-stuck
			}
			got <- x.ino
		}
		stop := make(chan struct{})
		go n.run(stop)
		n.InvalidateInode(4)
		n.InvalidateInode(5)
		if ino := <-got; ino != 5 {
			t.Fatalf("inode %d was invalidated first", ino)
		}
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		n.Settle(ctx)
		if waited := time.Since(begin); waited != time.Second {
			t.Errorf("Settle waited for %v", waited)
		}
		close(stuck)
		<-got
		n.Settle(t.Context())
		close(stop)
	})
}

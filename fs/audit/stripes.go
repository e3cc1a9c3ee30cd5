package audit

import (
	"fmt"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

func nlinks(says, has uint32) string { return fmt.Sprintf("it counts %d names and has %d", says, has) }

// owner is who needs a stripe.
type owner struct {
	in   blocks.RegisterID
	ino  tree.Ino // 0: a free list
	live bool     // in the tree, or a free list that is: what is not is a copy perhaps
}

// stripes compares what the registers name with what the disks have.
func (j *judge) stripes() {
	owners := map[blocks.StripeID]owner{}
	for id, f := range j.look.Registers {
		live := j.reached[id] || j.needed[id]
		for i := range f.Inodes {
			for _, ref := range f.Inodes[i].Stripes {
				j.own(owners, ref.ID, owner{id, f.Inodes[i].Ino, live})
				if j.reached[id] {
					j.protection(f, &f.Inodes[i], ref)
				}
			}
		}
		for _, s := range f.Free {
			j.own(owners, s, owner{id, 0, live})
		}
		for _, s := range f.Pending {
			if _, have := owners[s]; !have {
				owners[s] = owner{in: id}
			}
		}
	}
	if len(j.look.Unread) > 0 || !j.look.Listed {
		return // an owner may not have been seen
	}
	for id, s := range j.look.Before {
		if _, have := owners[id]; have || s.Dead {
			continue
		}
		j.find(Key{Kind: Unreferenced, Stripe: id}, "", "%d shards of a stripe of %d bytes that was written for inode %d of container %s",
			s.Shards, s.Ref.Len, s.Owner.Ino, s.Owner.Register.Short())
		j.out[len(j.out)-1].Age = s.Age
	}
}

// own notes an owner of a stripe. Two free lists may have it: a deletion may happen twice. Of two inodes the finding names the
// one with the smaller number.
func (j *judge) own(owners map[blocks.StripeID]owner, id blocks.StripeID, o owner) {
	was, have := owners[id]
	if !have || !was.live {
		owners[id] = o
		return
	}
	if !o.live || was == o || was.ino == 0 && o.ino == 0 {
		return
	}
	if was.ino == 0 || o.ino != 0 && (o.ino < was.ino || o.ino == was.ino && o.in.Compare(was.in.ID) < 0) {
		was, o = o, was
	}
	k := Key{Kind: Shared, Register: was.in, Ino: was.ino, Stripe: id}
	path := j.pathOf(j.look.Registers[was.in], was.ino)
	if o.ino == 0 {
		j.find(k, path, "it is on the free list of container %s", o.in.Short())
	} else {
		j.find(k, path, "inode %d of container %s has it, too", o.ino, o.in.Short())
	}
}

// protection judges a stripe of a file by the shards that are left.
func (j *judge) protection(f *tree.Facts, n *tree.InodeFacts, ref blocks.StripeRef) {
	s := j.look.After[ref.ID]
	all := int(ref.K) + int(ref.M)
	k := Key{Kind: UnderProtected, Register: f.ID, Ino: n.Ino, Stripe: ref.ID}
	switch {
	case s.Dead:
		k.Kind = Missing
		j.find(k, j.pathOf(f, n.Ino), "it was deleted")
	case !j.look.Counted:
	case s.Shards < int(ref.K):
		k.Kind = Missing
		j.find(k, j.pathOf(f, n.Ino), "%d of %d shards are left, %d are needed", s.Shards, all, ref.K)
	case s.Shards < all:
		j.find(k, j.pathOf(f, n.Ino), "%d of %d shards are there", s.Shards, all)
	}
}

// pathOf returns a path of an inode in the tree.
func (j *judge) pathOf(f *tree.Facts, ino tree.Ino) string {
	switch f.Kind {
	case tree.KindFile:
		return j.paths[f.ID]
	case tree.KindMap:
		return j.paths[f.Parent]
	}
	for _, n := range f.Names {
		if n.Ino == ino {
			return j.path(f.ID, n.Name)
		}
	}
	return ""
}

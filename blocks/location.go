package blocks

// Location is a block: which shard, and where it lies.
type Location struct {
	Vnode   VnodeID
	Header  Header
	Path    string // of the disk file
	Offset  int64  // of the block in the disk file, its header first
	Length  int64  // of the block's extent, bytes
	Damaged bool   // known to be corrupt; Put of the same shard repairs it
}

// Usage is how full a peer, a drive or a virtual disk is, in bytes.
type Usage struct {
	Capacity  int64 // of the virtual disks
	Used      int64 // by blocks, in whole units
	Free      int64 // Capacity - Used, or what the host has above the reserve if that is less
	Shards    int64
	HostFree  int64 // of the file systems below, as the host reports it
	HostTotal int64
	Damaged   int64 // blocks known to be corrupt
}

func (u *Usage) add(v Usage) {
	u.Capacity += v.Capacity
	u.Used += v.Used
	u.Free += v.Free
	u.Shards += v.Shards
	u.HostFree += v.HostFree
	u.HostTotal += v.HostTotal
	u.Damaged += v.Damaged
}

package tree

import (
	"encoding/binary"
	"slices"
	"syscall"
)

// POSIX access-control lists (withdrawn draft 1003.1e; acl(5)) as the kernel hands them over: extended attributes of these names.
// The kernel checks them; here they are kept in step with the mode bits.
const (
	ACLAccess  = "system.posix_acl_access"
	ACLDefault = "system.posix_acl_default"
)

// The value: the version (uint32), then entries of tag (uint16), permissions (uint16), user or group (uint32), all little-endian
// (linux/posix_acl_xattr.h).
const (
	aclVersion = 2
	aclHeader  = 4
	aclEntry   = 8

	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

// acl is a value that checkACL has let pass. Changes are made in place.
type acl []byte

func (a acl) entries() int     { return (len(a) - aclHeader) / aclEntry }
func (a acl) tag(i int) uint16 { return binary.LittleEndian.Uint16(a[aclHeader+i*aclEntry:]) }
func (a acl) perm(i int) uint32 {
	return uint32(binary.LittleEndian.Uint16(a[aclHeader+i*aclEntry+2:]))
}
func (a acl) setPerm(i int, p uint32) {
	binary.LittleEndian.PutUint16(a[aclHeader+i*aclEntry+2:], uint16(p))
}

// find returns where the entry with a tag is, -1 if there is none.
func (a acl) find(tag uint16) int {
	for i := range a.entries() {
		if a.tag(i) == tag {
			return i
		}
	}
	return -1
}

// group is the entry that the group's bits of the mode stand for: the mask, or without one the owning group.
func (a acl) group() int {
	if i := a.find(aclMask); i >= 0 {
		return i
	}
	return a.find(aclGroupObj)
}

// checkACL returns EINVAL for what is no list: it has one entry each for the owner, the owning group and others, at most one mask, and
// one if there are named users or groups.
func checkACL(v []byte) error {
	if len(v) < aclHeader || (len(v)-aclHeader)%aclEntry != 0 || binary.LittleEndian.Uint32(v) != aclVersion {
		return syscall.EINVAL
	}
	a, n := acl(v), map[uint16]int{}
	for i := range a.entries() {
		if a.perm(i) > 7 {
			return syscall.EINVAL
		}
		n[a.tag(i)]++
	}
	named := n[aclUser] + n[aclGroup]
	single := n[aclUserObj] == 1 && n[aclGroupObj] == 1 && n[aclOther] == 1 && n[aclMask] <= 1
	if !single || named > 0 && n[aclMask] == 0 || named+3+n[aclMask] != a.entries() {
		return syscall.EINVAL
	}
	return nil
}

// permissions returns the bits of the mode that the list stands for, and whether it says no more than they do.
func (a acl) permissions() (mode uint32, minimal bool) {
	mode = a.perm(a.find(aclUserObj))<<6 | a.perm(a.group())<<3 | a.perm(a.find(aclOther))
	return mode, a.entries() == 3
}

// withMode returns a copy of the list after chmod.
func (a acl) withMode(mode uint32) acl {
	c := slices.Clone(a)
	c.setPerm(c.find(aclUserObj), mode>>6&7)
	c.setPerm(c.group(), mode>>3&7)
	c.setPerm(c.find(aclOther), mode&7)
	return c
}

// inherit returns the mode of what is made with a mode, not masked by the umask, in a directory with this default list: what both permit.
func (a acl) inherit(mode uint32) uint32 {
	have, _ := a.permissions()
	return mode &^ (0o777 &^ have)
}

// inheritACL gives an inode that was made with the mode that it has the lists that its directory's default list makes.
func (n *Inode) inheritACL(deflt acl) {
	if len(deflt) == 0 {
		return
	}
	if _, minimal := deflt.permissions(); !minimal {
		n.setXattr(ACLAccess, deflt.withMode(n.Mode))
	}
	if isDir(n.Mode) {
		n.setXattr(ACLDefault, deflt)
	}
}

// defaultACL returns the default list of a directory, nil if it has none.
func (n *Inode) defaultACL() acl {
	if i, ok := n.xattr(ACLDefault); ok && checkACL(n.Xattrs[i].Value) == nil {
		return n.Xattrs[i].Value
	}
	return nil
}

// setPermissions sets the lower bits of the mode, and keeps an access list in step.
func (n *Inode) setPermissions(mode uint32) {
	n.Mode = n.Mode&syscall.S_IFMT | mode&^uint32(syscall.S_IFMT)
	if i, ok := n.xattr(ACLAccess); ok && checkACL(n.Xattrs[i].Value) == nil {
		n.Xattrs[i].Value = acl(n.Xattrs[i].Value).withMode(mode)
	}
}

// aclOp makes the operation that gives an inode an access list: a list that the mode can say is none.
func aclOp(n *Inode, value []byte, dropSetgid bool) *Op {
	perm, minimal := acl(value).permissions()
	o := &Op{Kind: OpSetXattr, Time: now(), Ino: n.Ino, Name: ACLAccess, Data: value, Set: setMode, Mode: n.Mode&0o7000 | perm}
	if dropSetgid {
		o.Mode &^= syscall.S_ISGID
	}
	if !minimal {
		return o
	}
	o.Data = nil
	if _, have := n.xattr(ACLAccess); have {
		o.Kind = OpRemoveXattr
	} else {
		o.Kind, o.Name = OpSetattr, ""
	}
	return o
}

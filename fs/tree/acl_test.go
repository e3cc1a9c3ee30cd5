package tree

import (
	"encoding/binary"
	"errors"
	"syscall"
	"testing"
)

func aclOf(entries ...[3]uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return b
}

func TestCheckACL(t *testing.T) {
	full := aclOf([3]uint32{aclUserObj, 7}, [3]uint32{aclUser, 5, 1000}, [3]uint32{aclGroupObj, 5}, [3]uint32{aclMask, 7}, [3]uint32{aclOther, 0})
	for what, c := range map[string]struct {
		value []byte
		want  error
	}{
		"with a named user": {full, nil},
		"minimal":           {aclOf([3]uint32{aclUserObj, 7}, [3]uint32{aclGroupObj, 5}, [3]uint32{aclOther, 0}), nil},
		"empty":             {nil, syscall.EINVAL},
		"a header":          {full[:aclHeader], syscall.EINVAL},
		"cut off":           {full[:len(full)-1], syscall.EINVAL},
		"without others":    {full[:len(full)-aclEntry], syscall.EINVAL},
		"a user, no mask":   {aclOf([3]uint32{aclUserObj, 7}, [3]uint32{aclUser, 7, 1}, [3]uint32{aclGroupObj, 5}, [3]uint32{aclOther, 0}), syscall.EINVAL},
		"two owners":        {aclOf([3]uint32{aclUserObj, 7}, [3]uint32{aclUserObj, 7}, [3]uint32{aclGroupObj, 5}, [3]uint32{aclOther, 0}), syscall.EINVAL},
		"permissions of 8":  {aclOf([3]uint32{aclUserObj, 8}, [3]uint32{aclGroupObj, 5}, [3]uint32{aclOther, 0}), syscall.EINVAL},
		"an unknown tag":    {aclOf([3]uint32{aclUserObj, 7}, [3]uint32{aclGroupObj, 5}, [3]uint32{aclOther, 0}, [3]uint32{0x40, 0}), syscall.EINVAL},
	} {
		if err := checkACL(c.value); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
	}
}

// FuzzACL: no value that somebody has put into a register makes an operation panic.
func FuzzACL(f *testing.F) {
	f.Add([]byte{}, uint32(0o640))
	f.Add(aclOf([3]uint32{aclUserObj, 7}, [3]uint32{aclUser, 5, 1000}, [3]uint32{aclGroupObj, 5}, [3]uint32{aclMask, 7}, [3]uint32{aclOther, 0}), uint32(0o750))
	f.Fuzz(func(t *testing.T, value []byte, mode uint32) {
		s := testDir()
		s.Self.setXattr(ACLAccess, value)
		s.Self.setXattr(ACLDefault, value)
		for _, o := range []*Op{
			{Kind: OpSetattr, Ino: 10, Set: setMode, Mode: mode},
			{Kind: OpMake, Ino: 11, Name: "f", Mode: syscall.S_IFREG | mode&0o777, Data: s.Self.defaultACL()},
			{Kind: OpMake, Ino: 12, Name: "g", Mode: syscall.S_IFREG | mode&0o777, Data: value},
			{Kind: OpSetXattr, Ino: 11, Name: ACLAccess, Data: value, Set: setMode, Mode: mode},
			{Kind: OpRemoveXattr, Ino: 11, Name: ACLAccess},
		} {
			_, _ = Apply(s, o)
		}
		if s.Self.Mode&0o777 != mode&0o777 {
			t.Errorf("mode %o after chmod %o", s.Self.Mode, mode)
		}
	})
}

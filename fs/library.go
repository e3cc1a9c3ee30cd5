package fs

import (
	"encoding/binary"
	"fmt"
	"os"
	"reflect"
	"syscall"
	"unsafe"

	"bazil.org/fuse"

	"github.com/mutualfs/mutualfs/fs/tree"
)

// The library keeps to itself four things that this face needs: the init flags
// of a mount, the device of a connection, the message of a request. Their
// places are looked up once by reflection; if the library has another shape
// than expected, libraryErr says so and no mount is made.
var (
	libraryErr     error
	connDev        uintptr // of Conn.dev, *os.File
	headerMsg      uintptr // of Header.msg, *message
	messageBuf     uintptr // of message.buf, []byte
	mountInitFlags uintptr // of mountConfig.initFlags
)

func init() {
	connDev = fieldOffset(reflect.TypeFor[fuse.Conn](), "dev", reflect.TypeFor[*os.File]())
	headerMsg = fieldOffset(reflect.TypeFor[fuse.Header](), "msg", nil)
	if f, ok := reflect.TypeFor[fuse.Header]().FieldByName("msg"); ok && f.Type.Kind() == reflect.Pointer {
		messageBuf = fieldOffset(f.Type.Elem(), "buf", reflect.TypeFor[[]byte]())
	}
	conf := reflect.TypeFor[fuse.MountOption]().In(0).Elem()
	mountInitFlags = fieldOffset(conf, "initFlags", reflect.TypeFor[fuse.InitFlags]())
}

func fieldOffset(in reflect.Type, name string, want reflect.Type) uintptr {
	f, ok := in.FieldByName(name)
	if !ok || want != nil && f.Type != want {
		libraryErr = fmt.Errorf("the FUSE library has changed: %s has no field %s of the expected type", in, name)
		return 0
	}
	return f.Offset
}

// initFlags is a mount option that asks the kernel for protocol features that the library has no option for.
func initFlags(flags fuse.InitFlags) fuse.MountOption {
	opt := reflect.MakeFunc(reflect.TypeFor[fuse.MountOption](), func(args []reflect.Value) []reflect.Value {
		*(*fuse.InitFlags)(unsafe.Add(args[0].UnsafePointer(), mountInitFlags)) |= flags
		return []reflect.Value{reflect.Zero(reflect.TypeFor[error]())}
	})
	return opt.Interface().(fuse.MountOption)
}

// device returns the connection's /dev/fuse file.
func device(c *fuse.Conn) *os.File {
	return *(**os.File)(unsafe.Add(unsafe.Pointer(c), connDev))
}

// inHeader is the length of the header that begins every request.
const inHeader = 40

// requestBytes returns what follows the header of a request; it is valid until recycle.
func requestBytes(h *fuse.Header) []byte {
	msg := *(*unsafe.Pointer)(unsafe.Add(unsafe.Pointer(h), headerMsg))
	if msg == nil {
		return nil
	}
	buf := *(*[]byte)(unsafe.Add(msg, messageBuf))
	if len(buf) < inHeader {
		return nil
	}
	return buf[inHeader:]
}

// recycle gives the request's buffer back to the library without a reply: that
// is what responding to a forget does.
func recycle(h *fuse.Header) {
	(&fuse.ForgetRequest{Header: *h}).Respond()
}

// What the library does not know of FUSE_NOTIFY_INVAL_ENTRY (linux/fuse.h): a kernel from 6.2 on keeps the entry until it is asked for the
// name. An older one does not know the flag, and drops the entry: who has that directory as its working directory then
// cannot tell its path any more.
const (
	notifyInvalEntry = 3
	expireOnly       = 1
)

// expireEntry tells the kernel to ask again for a name. Errors mean that it had nothing cached, or that the mount is gone.
func expireEntry(dev *os.File, dir tree.Ino, name string) {
	r := &reply{buf: make([]byte, outHeader, outHeader+16+len(name)+1)}
	r.u64(uint64(dir))
	r.u32(uint32(len(name)))
	r.u32(expireOnly)
	r.bytes(append([]byte(name), 0))
	b := r.seal(0, 0)
	binary.NativeEndian.PutUint32(b[4:], notifyInvalEntry)
	_, _ = syscall.Write(int(dev.Fd()), b)
}

package posix

import (
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// notHere are tests that are left out, with the reason. docs/posix.md says more.
var notHere = map[string]string{
	"FcntlFlockLocksFile": "a process is never in the way of its own fcntl locks",
}

// What go-fuse tests its own file systems with.
func TestGoFuse(t *testing.T) {
	p := mount(t)
	for name, test := range posixtest.All {
		if notHere[name] == "" {
			t.Run(name, func(t *testing.T) { test(t, folder(t, p)) })
		}
	}
}

package layout

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/loratool/loratool/finding"
)

// A fault is an operation on an output that the system refused: a finding for the user, and the
// system's own error for errors.Is.
type fault struct {
	*finding.Finding
	err error
}

func (f *fault) Unwrap() []error { return []error{f.Finding, f.err} }

// kinds are the refusals that a user can do something about, each with its own code.
var kinds = []struct {
	errno syscall.Errno
	code  string
	text  string
	hint  string
}{
	{syscall.ENOSPC, "output.disk_full", "the disk is full", "free some space or choose another folder; nothing was left behind"},
	{syscall.EDQUOT, "output.quota", "the disk quota is used up", "free some space or choose another folder; nothing was left behind"},
	{syscall.EROFS, "output.read_only", "the file system is read-only", "choose another folder"},
	{syscall.EFBIG, "output.too_large", "the file is larger than the file system or the process limit allows", "choose another file system, raise ulimit -f, or write smaller shards"},
	{syscall.EIO, "output.io", "the device reported an input/output error", "check the disk before you write again"},
}

// failed turns an error of the system into a finding about an output file.
func failed(file, doing string, err error) error {
	if err == nil {
		return nil
	}
	if f := finding.Of(err); f != nil {
		return err
	}
	for _, k := range kinds {
		if errors.Is(err, k.errno) || (k.errno == syscall.ENOSPC && isDiskFull(err)) {
			return &fault{finding.Errorf(k.code, file, "%s: %s", doing, k.text).Hinted(k.hint), err}
		}
	}
	if errors.Is(err, fs.ErrPermission) {
		return &fault{finding.Errorf("output.permission", file, "%s: permission denied", doing), err}
	}
	var path *fs.PathError
	cause := err
	if errors.As(err, &path) {
		cause = path.Err
	}
	return &fault{finding.Errorf("output.failed", file, "%s: %s", doing, fmt.Sprint(cause)), err}
}

package layout

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// reserve gives a file its final size and the space for it, so that a full disk shows now.
func reserve(f *os.File, size int64) error {
	err := retry(func() error { return unix.Fallocate(int(f.Fd()), 0, 0, size) })
	if err == unix.EOPNOTSUPP || err == unix.ENOSYS {
		return errors.ErrUnsupported
	}
	return err
}

func startWrite(f *os.File, off, n int64) error {
	return syncRange(f, off, n, unix.SYNC_FILE_RANGE_WRITE)
}

func finishWrite(f *os.File, off, n int64) error {
	const wait = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	if err := syncRange(f, off, n, wait); err != nil {
		return err
	}
	return hint(retry(func() error { return unix.Fadvise(int(f.Fd()), off, n, unix.FADV_DONTNEED) }))
}

func syncRange(f *os.File, off, n int64, flags int) error {
	return hint(retry(func() error { return unix.SyncFileRange(int(f.Fd()), off, n, flags) }))
}

// hint forgives a system that does not know the call; a real write error stays one.
func hint(err error) error {
	switch err {
	case unix.ENOSYS, unix.EINVAL, unix.EOPNOTSUPP, unix.ESPIPE:
		return nil
	}
	return err
}

// exchange swaps two names in one step, so that there is no moment without an output.
func exchange(a, b string) error {
	err := retry(func() error { return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE) })
	switch err {
	case unix.ENOSYS, unix.EINVAL, unix.EOPNOTSUPP:
		return errors.ErrUnsupported
	}
	return err
}

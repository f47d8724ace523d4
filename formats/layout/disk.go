package layout

import (
	"errors"
	"io/fs"
	"os"
	"sync"
	"syscall"
)

// A disk does everything that changes an output. Tests replace it by one that fails on demand.
type disk interface {
	Free(dir string) (int64, error) // errors.ErrUnsupported where unknown
	Create(name string) (handle, error)
	Reopen(name string) (handle, error)
	Mkdir(name string) error
	Chmod(name string, mode fs.FileMode) error
	Rename(from, to string) error
	Exchange(a, b string) error // errors.ErrUnsupported where the system cannot
	RemoveAll(name string) error
	SyncDir(name string) error
}

// A handle is an open output file.
type handle interface {
	Reserve(size int64) error
	WriteAt(p []byte, off int64) (int, error)
	Sync() error
	Size() (int64, error)
	Close() error
}

type realDisk struct{}

func (realDisk) Free(dir string) (int64, error) { return freeSpace(dir) }

func (realDisk) Create(name string) (handle, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return nil, err
	}
	return &realFile{f: f}, nil
}

func (realDisk) Reopen(name string) (handle, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &realFile{f: f}, nil
}

func (realDisk) Mkdir(name string) error                   { return os.Mkdir(name, 0o777) }
func (realDisk) Chmod(name string, mode fs.FileMode) error { return os.Chmod(name, mode) }
func (realDisk) Rename(from, to string) error              { return os.Rename(from, to) }
func (realDisk) Exchange(a, b string) error                { return exchange(a, b) }
func (realDisk) RemoveAll(name string) error               { return os.RemoveAll(name) }
func (realDisk) SyncDir(name string) error                 { return syncDir(name) }

// behindMin is the smallest write that is worth a write-behind hint.
const behindMin = 1 << 20

type realFile struct {
	f    *os.File
	mu   sync.Mutex
	prev [2]int64 // offset and length of the last large write
}

func (r *realFile) Reserve(size int64) error {
	if size == 0 {
		return nil
	}
	err := reserve(r.f, size)
	if errors.Is(err, errors.ErrUnsupported) {
		return r.f.Truncate(size)
	}
	return err
}

// WriteAt writes p and starts its way to the disk; the large write before it is waited for and then
// dropped from the page cache. So there are never more dirty pages than two writes a worker, and the
// system never has to stop the writer to get rid of them.
func (r *realFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := r.f.WriteAt(p, off)
	if err != nil || len(p) < behindMin {
		return n, err
	}
	if err := startWrite(r.f, off, int64(len(p))); err != nil {
		return n, err
	}
	r.mu.Lock()
	prev := r.prev
	r.prev = [2]int64{off, int64(len(p))}
	r.mu.Unlock()
	if prev[1] > 0 {
		err = finishWrite(r.f, prev[0], prev[1])
	}
	return n, err
}

// Sync tolerates file systems that cannot sync; any other failure means that data may be lost.
func (r *realFile) Sync() error {
	err := r.f.Sync()
	if errors.Is(err, syscall.ENOTSUP) {
		return nil
	}
	return err
}

func (r *realFile) Size() (int64, error) {
	fi, err := r.f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

func (r *realFile) Close() error { return r.f.Close() }

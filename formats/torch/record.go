package torch

import (
	"bufio"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/loratool/loratool/finding"
)

// A record is a stretch of bytes in the file: an entry of a zip, or the data of a legacy storage.
// Before the first byte is handed out, all of it is read once and its checksum compared.
type record struct {
	file     io.ReaderAt
	path     string
	name     string
	off      int64
	stored   int64 // bytes in the file
	size     int64 // bytes of content
	crc      uint32
	checked  bool // there is a checksum to compare
	deflated bool

	once    sync.Once
	err     error
	content []byte // of a deflated record
}

// ReadAt reads the content.
func (r *record) ReadAt(p []byte, off int64) (int, error) {
	if err := r.check(); err != nil {
		return 0, err
	}
	if off < 0 || off > r.size {
		return 0, io.EOF
	}
	n := min(int64(len(p)), r.size-off)
	var err error
	if n < int64(len(p)) {
		err = io.EOF
	}
	if r.deflated {
		return copy(p, r.content[off:]), err
	}
	if got, e := r.file.ReadAt(p[:n], r.off+off); int64(got) < n {
		return got, e
	}
	return int(n), err
}

func (r *record) check() error {
	r.once.Do(func() { r.err = r.load() })
	return r.err
}

// load reads the record to its end, and keeps the content if it was compressed.
func (r *record) load() error {
	if !r.checked && !r.deflated {
		return nil
	}
	var in io.Reader = io.NewSectionReader(r.file, r.off, r.stored)
	if !r.deflated {
		sum := crc32.NewIEEE()
		n, err := io.CopyBuffer(sum, in, make([]byte, min(r.size, 1<<20)+1))
		if err == nil && n < r.size {
			err = io.ErrUnexpectedEOF
		}
		return r.verdict(sum.Sum32(), err)
	}
	inflate := flate.NewReader(bufio.NewReader(in))
	content := make([]byte, r.size)
	if n, err := io.ReadFull(inflate, content); err != nil {
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return finding.Errorf("container.size_mismatch", r.path, "entry %q inflates to fewer bytes than it declares", r.name).Expected(n, r.size)
		}
		return finding.Errorf("container.bad_zip", r.path, "entry %q cannot be inflated: %v", r.name, err)
	}
	if n, _ := inflate.Read(make([]byte, 1)); n > 0 {
		return finding.Errorf("container.size_mismatch", r.path, "entry %q inflates to more than the %d bytes it declares", r.name, r.size)
	}
	r.content = content
	return r.verdict(crc32.ChecksumIEEE(content), nil)
}

func (r *record) verdict(sum uint32, err error) error {
	if err != nil {
		return finding.Errorf("files.unreadable", r.path, "entry %q: %v", r.name, err)
	}
	if sum != r.crc {
		f := finding.Errorf("container.bad_crc", r.path, "entry %q does not have the checksum the archive gives for it", r.name)
		return f.Expected(fmt.Sprintf("%08x", sum), fmt.Sprintf("%08x", r.crc)).Hinted("the file is damaged; fetch it again")
	}
	return nil
}

package onnxruntime

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/gzip"

	"github.com/loratool/loratool/finding"
)

// The most bytes a file of the runtime may have: the CUDA provider has hundreds of megabytes.
const maxMember = 4 << 30

// extract takes the runtime's files from an archive, or from the library itself, and writes them to
// dir under the names they are installed by. It returns their SHA-256 by name; the library is among
// them. The kind of archive is told from its first bytes.
func (p platform) extract(ctx context.Context, from, dir string) (map[string]string, error) {
	f, err := os.Open(from)
	if err != nil {
		return nil, installError(from, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, installError(from, err)
	}
	if !st.Mode().IsRegular() {
		return nil, finding.Errorf("runtime.bad_archive", from, "not a regular file")
	}
	head := make([]byte, 4)
	n, err := f.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return nil, installError(from, err)
	}
	head = head[:n]
	x := extraction{platform: p, ctx: ctx, dir: dir, hashes: map[string]string{}}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		err = x.tgz(f)
	case bytes.HasPrefix(head, []byte("PK\x03\x04")):
		err = x.zip(f, st.Size())
	case isLibrary(head):
		err = x.write(p.names[0], io.NewSectionReader(f, 0, st.Size()))
	default:
		return nil, finding.Errorf("runtime.bad_archive", from, "neither a .tgz, a .zip, a wheel nor a shared library").Expected(fmt.Sprintf("% x", head), "")
	}
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.As(err, new(*os.PathError)):
		return nil, installError(dir, err)
	case err != nil:
		return nil, finding.Errorf("runtime.bad_archive", from, "the archive is damaged: %v", err).Hinted("fetch it again")
	case x.hashes[p.names[0]] == "":
		return nil, finding.Errorf("runtime.not_in_archive", from, "the archive holds no ONNX Runtime library for %s", p.npmDir)
	}
	return x.hashes, nil
}

// isLibrary recognises ELF, Mach-O (thin and fat) and PE files.
func isLibrary(head []byte) bool {
	for _, magic := range []string{"\x7fELF", "\xcf\xfa\xed\xfe", "\xca\xfe\xba\xbe", "MZ"} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return true
		}
	}
	return false
}

type extraction struct {
	platform
	ctx    context.Context
	dir    string
	hashes map[string]string
}

// tgz reads the archive to its end, so that a truncated one is noticed wherever it breaks off.
func (x *extraction) tgz(r io.Reader) error {
	gz, err := gzip.NewReader(interruptible{x.ctx, r})
	if err != nil {
		return err
	}
	defer gz.Close()
	t := tar.NewReader(gz)
	for {
		h, err := t.Next()
		if err == io.EOF {
			// The end of the tar is not the end of the stream, which carries a checksum.
			_, err = io.Copy(io.Discard, gz)
			return err
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if err := x.member(h.Name, t); err != nil {
			return err
		}
	}
}

func (x *extraction) zip(r io.ReaderAt, size int64) error {
	z, err := zip.NewReader(r, size)
	if err != nil {
		return err
	}
	for _, f := range z.File {
		if !f.Mode().IsRegular() {
			continue
		}
		if _, ok := x.wants(f.Name); !ok {
			continue
		}
		m, err := f.Open()
		if err != nil {
			return err
		}
		if err := errors.Join(x.member(f.Name, m), m.Close()); err != nil {
			return err
		}
	}
	return nil
}

// member writes an archive's member if it is wanted. Of several libraries, such as one name with and
// one without version, the first counts.
func (x *extraction) member(path string, r io.Reader) error {
	name, ok := x.wants(path)
	if !ok || x.hashes[name] != "" {
		return nil
	}
	return x.write(name, r)
}

func (x *extraction) write(name string, r io.Reader) error {
	f, err := os.OpenFile(filepath.Join(x.dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(interruptible{x.ctx, r}, maxMember+1))
	if err == nil && n > maxMember {
		err = errors.New(name + " is larger than 4 GiB")
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	x.hashes[name] = hex.EncodeToString(h.Sum(nil))
	return nil
}

// An interruptible reader fails once its context has ended.
type interruptible struct {
	ctx context.Context
	r   io.Reader
}

func (i interruptible) Read(p []byte) (int, error) {
	if err := i.ctx.Err(); err != nil {
		return 0, err
	}
	return i.r.Read(p)
}

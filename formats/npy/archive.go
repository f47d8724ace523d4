package npy

import (
	"archive/zip"
	"bytes"
	"io"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// An Array is an array in memory.
type Array struct {
	tensor.Spec
	Data []byte // little-endian, in C order
}

// ReadArchive reads an .npz file: a zip archive of .npy files, whose names without the ending are the arrays'. The
// arrays together may have at most limit bytes. Errors are findings with the code container.<reason>.
func ReadArchive(path string, limit int64) ([]Array, error) {
	fail := func(reason, name, format string, a ...any) ([]Array, error) {
		return nil, finding.Errorf("container."+reason, path, format, a...).In(name)
	}
	z, err := zip.OpenReader(path)
	if err != nil {
		return fail("bad_zip", "", "not an archive of NumPy arrays: %v", err)
	}
	defer z.Close()
	var out []Array
	seen := map[string]bool{}
	for _, e := range z.File {
		name, ok := strings.CutSuffix(e.Name, ".npy")
		switch {
		case !ok:
			return fail("unexpected_entry", e.Name, "the archive holds something that is no .npy file")
		case seen[name]:
			return fail("duplicate_entry", name, "the archive holds the array twice")
		case e.Flags&1 != 0:
			return fail("encrypted", name, "the array is encrypted")
		case e.UncompressedSize64 > uint64(limit):
			return fail("too_large", name, "the arrays are larger than %d bytes", limit)
		}
		seen[name] = true
		r, err := e.Open()
		if err != nil {
			return fail("bad_zip", name, "%v", err)
		}
		// Read to the end and one byte beyond what is allowed: only then is the checksum compared.
		b, err := io.ReadAll(io.LimitReader(r, limit+1))
		r.Close()
		switch {
		case err != nil:
			return fail("bad_zip", name, "%v", err)
		case int64(len(b)) > limit:
			return fail("too_large", name, "the arrays are larger than %d bytes", limit)
		}
		limit -= int64(len(b))
		t, err := parse(path, bytes.NewReader(b), int64(len(b)))
		if err != nil {
			if f := finding.Of(err); f != nil {
				return nil, f.In(name)
			}
			return nil, err
		}
		t.Name = name
		out = append(out, Array{t.Spec, b[t.Off:]})
	}
	return out, nil
}

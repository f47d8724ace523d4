package verify

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"

	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/formats/torch"
	"github.com/loratool/loratool/tensor"
)

// FileOptions say how much of a file is read.
type FileOptions struct {
	// Digests reads and hashes every tensor. Otherwise the values are read when they are at most Small bytes
	// in all, and the check is of the header alone for bigger files.
	Digests bool
	Small   int64
	Formats formats.Options
}

// File says whether a file or model folder is sound: its header, and what reading the values shows, such
// as checksums that do not match, NaN and infinity. A file that cannot be opened for what it holds gives a
// report of verdict Reject; the error is for what kept the check from being made.
func File(ctx context.Context, path string, opt FileOptions) (*Report, error) {
	r := &Report{}
	m, err := formats.OpenWith(path, opt.Formats)
	if err != nil {
		f := finding.Of(err)
		if f == nil {
			return nil, err
		}
		r.add(f)
		return r.conclude(), nil
	}
	defer m.Close()
	r.Findings = append(r.Findings, m.Findings()...)
	if err := deeper(r, m); err != nil {
		return nil, err
	}
	var size int64
	for _, t := range m.Tensors() {
		size += t.Size
	}
	if !opt.Digests && (size > opt.Small || r.conclude().Verdict == Reject) {
		return r.conclude(), nil
	}
	if opt.Digests {
		r.Tensors = map[string]Digest{}
	}
	for _, t := range m.Tensors() {
		d, odd, err := read(ctx, &t)
		if err != nil {
			f := finding.Of(err)
			if f == nil {
				return nil, err
			}
			r.add(f)
			continue
		}
		if odd {
			r.add(finding.Warnf("numeric.nan_inf", path, "the tensor holds NaN or infinity").In(t.Name))
		}
		if opt.Digests {
			r.Tensors[t.Name] = d
		}
	}
	return r.conclude(), nil
}

// deeper adds what a format can check beyond its header: checksums of data.
func deeper(r *Report, m formats.Model) error {
	switch m := m.(type) {
	case *torch.Model:
		if err := m.CheckData(); err != nil {
			f := finding.Of(err)
			if f == nil {
				return err
			}
			r.add(f)
		}
	case *onnx.Model:
		found, err := m.Checksums()
		r.Findings = append(r.Findings, found...)
		return err
	}
	return nil
}

// read hashes a tensor and looks for values that are not finite.
func read(ctx context.Context, t *tensor.Tensor) (d Digest, odd bool, err error) {
	h := sha256.New()
	buf := make([]byte, min(t.Size, 4<<20))
	for off := int64(0); off < t.Size; off += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return Digest{}, false, err
		}
		p := buf[:min(int64(len(buf)), t.Size-off)]
		if _, err := t.ReadAt(p, off); err != nil && err != io.EOF {
			return Digest{}, false, err
		}
		h.Write(p)
		odd = odd || notFinite(t.DType, p)
	}
	shape := t.Shape
	if shape == nil {
		shape = tensor.Shape{}
	}
	return Digest{DType: t.DType.String(), Shape: shape, SHA256: hex.EncodeToString(h.Sum(nil))}, odd, nil
}

// notFinite reports whether little-endian values of a float type have an exponent of all ones, which is
// NaN or infinity.
func notFinite(t tensor.DType, p []byte) bool {
	le := binary.LittleEndian
	switch t {
	case tensor.F64:
		for ; len(p) >= 8; p = p[8:] {
			if le.Uint64(p)>>52&0x7ff == 0x7ff {
				return true
			}
		}
	case tensor.F32:
		for ; len(p) >= 4; p = p[4:] {
			if le.Uint32(p)>>23&0xff == 0xff {
				return true
			}
		}
	case tensor.BF16:
		for ; len(p) >= 2; p = p[2:] {
			if le.Uint16(p)>>7&0xff == 0xff {
				return true
			}
		}
	case tensor.F16:
		for ; len(p) >= 2; p = p[2:] {
			if le.Uint16(p)>>10&0x1f == 0x1f {
				return true
			}
		}
	}
	return false
}

// Rejected is the report on something that could not be opened for what it holds.
func Rejected(f *finding.Finding) *Report {
	r := &Report{}
	r.add(f)
	return r.conclude()
}

// Found is the report of these findings.
func Found(findings []finding.Finding) *Report {
	r := &Report{Findings: findings}
	return r.conclude()
}

// AdapterFile adds to a report what decoding an adapter finds: its configuration, pairs and shapes. Those of
// a dialect whose names mean something only beside a base are not decoded without one, which the report says.
func AdapterFile(r *Report, path string, opt dialect.Options) error {
	a, err := dialect.Open(path, opt)
	if err != nil {
		f := finding.Of(err)
		if f == nil {
			return err
		}
		if f.Code == "convert.needs_base" {
			f.Level, f.Message = finding.Info, "pairs and shapes were not checked: "+f.Message
		}
		r.add(f)
		r.conclude()
		return nil
	}
	defer a.Close()
	r.Findings = append(r.Findings, a.Findings...)
	r.conclude()
	return nil
}

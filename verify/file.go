package verify

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
	"strings"

	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/formats/safetensors"
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
	whole := sha256.New()
	for _, t := range m.Tensors() {
		d, v, err := read(ctx, &t, whole)
		if err != nil {
			f := finding.Of(err)
			if f == nil {
				return nil, err
			}
			r.add(f)
			continue
		}
		if v.odd > 0 {
			r.add(finding.Warnf("numeric.nan_inf", path, "the tensor holds NaN or infinity").In(t.Name))
		}
		if v.subnormal > v.normal {
			r.add(finding.Warnf("numeric.subnormal", path, "%d of %d values are subnormal, which have few digits left and which some devices take for zero", v.subnormal, v.subnormal+v.normal).In(t.Name).
				Hinted("store the tensor in a type with a larger range"))
		}
		if opt.Digests {
			r.Tensors[t.Name] = d
		}
	}
	if s, ok := m.(*safetensors.Model); ok && !s.IsFolder() {
		r.Findings = append(r.Findings, statedHashes(s, hex.EncodeToString(whole.Sum(nil)))...)
	}
	return r.conclude(), nil
}

// statedHashes compares what a file's metadata says of its data with the data: ModelSpec's hash_sha256 and kohya's
// sshs_model_hash are both the SHA-256 of all that stands behind the header. (sshs_legacy_hash is of 64 KiB of a file
// with another header, and says nothing that these do not.)
func statedHashes(m *safetensors.Model, sum string) (found []finding.Finding) {
	for _, kv := range m.Metadata() {
		if kv[0] != "modelspec.hash_sha256" && kv[0] != "sshs_model_hash" {
			continue
		}
		said := strings.ToLower(strings.TrimPrefix(strings.TrimPrefix(kv[1], "0x"), "0X"))
		if said != "" && said != sum {
			found = append(found, *finding.Warnf("files.hash_mismatch", m.Path(), "the data is not what the file's metadata says (%s)", kv[0]).Expected(sum, said).
				Hinted("the file was changed after its metadata was written; download it again, or ask where it comes from"))
		}
	}
	return found
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

// read hashes a tensor, for itself and as a part of the whole, and sorts its values.
func read(ctx context.Context, t *tensor.Tensor, whole io.Writer) (d Digest, v sorts, err error) {
	h := sha256.New()
	buf := make([]byte, min(t.Size, 4<<20))
	for off := int64(0); off < t.Size; off += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return Digest{}, v, err
		}
		p := buf[:min(int64(len(buf)), t.Size-off)]
		if _, err := t.ReadAt(p, off); err != nil && err != io.EOF {
			return Digest{}, v, err
		}
		h.Write(p)
		whole.Write(p)
		v.add(t.DType, p)
	}
	shape := t.Shape
	if shape == nil {
		shape = tensor.Shape{}
	}
	return Digest{DType: t.DType.String(), Shape: shape, SHA256: hex.EncodeToString(h.Sum(nil))}, v, nil
}

// sorts counts values of a float type by their exponent: all ones are NaN and infinity, all zeros subnormal numbers and
// zero, which counts as nothing here.
type sorts struct{ odd, normal, subnormal int64 }

// add counts little-endian values; those of other types are not looked at.
func (s *sorts) add(t tensor.DType, p []byte) {
	le := binary.LittleEndian
	switch t {
	case tensor.F64:
		for ; len(p) >= 8; p = p[8:] {
			x := le.Uint64(p)
			s.value(x>>52&0x7ff, 0x7ff, x<<12)
		}
	case tensor.F32:
		for ; len(p) >= 4; p = p[4:] {
			x := le.Uint32(p)
			s.value(uint64(x>>23&0xff), 0xff, uint64(x<<9))
		}
	case tensor.BF16:
		for ; len(p) >= 2; p = p[2:] {
			x := le.Uint16(p)
			s.value(uint64(x>>7&0xff), 0xff, uint64(x&0x7f))
		}
	case tensor.F16:
		for ; len(p) >= 2; p = p[2:] {
			x := le.Uint16(p)
			s.value(uint64(x>>10&0x1f), 0x1f, uint64(x&0x3ff))
		}
	}
}

func (s *sorts) value(exponent, all, mantissa uint64) {
	switch exponent {
	case all:
		s.odd++
	case 0:
		if mantissa != 0 {
			s.subnormal++
		}
	default:
		s.normal++
	}
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

package verify

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"

	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/formats/torch"
	"github.com/loratool/loratool/tensor"
)

// File says whether a file or model folder is sound. With digests, every tensor is read and hashed.
// A file that cannot be opened for what it holds gives a report of verdict Reject; the error is for
// what kept the check from being made.
func File(ctx context.Context, path string, digests bool) (*Report, error) {
	r := &Report{}
	m, err := formats.Open(path)
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
	if digests {
		r.Tensors = map[string]Digest{}
		for _, t := range m.Tensors() {
			d, err := digest(ctx, &t)
			if err != nil {
				if f := finding.Of(err); f != nil {
					r.add(f)
					continue
				}
				return nil, err
			}
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

func digest(ctx context.Context, t *tensor.Tensor) (Digest, error) {
	h := sha256.New()
	buf := make([]byte, min(t.Size, 4<<20))
	for off := int64(0); off < t.Size; off += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return Digest{}, err
		}
		p := buf[:min(int64(len(buf)), t.Size-off)]
		if _, err := t.ReadAt(p, off); err != nil && err != io.EOF {
			return Digest{}, err
		}
		h.Write(p)
	}
	shape := t.Shape
	if shape == nil {
		shape = tensor.Shape{}
	}
	return Digest{DType: t.DType.String(), Shape: shape, SHA256: hex.EncodeToString(h.Sum(nil))}, nil
}

// Rejected is the report on something that could not be opened for what it holds.
func Rejected(f *finding.Finding) *Report {
	r := &Report{}
	r.add(f)
	return r.conclude()
}

// AdapterFile adds to a report what decoding an adapter finds: its configuration, pairs and shapes.
func AdapterFile(r *Report, path string, opt dialect.Options) error {
	a, err := dialect.Open(path, opt)
	if err != nil {
		f := finding.Of(err)
		if f == nil {
			return err
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

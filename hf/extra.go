package hf

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/hf/config"
	"github.com/loratool/loratool/tensor"
)

// longFactors are the architectures whose folders may hold rotary factors for long contexts as lists.
var longFactors = []string{"phi3", "phimoe", "minicpm"}

// scaledFactors are those whose rotary factors llama.cpp reads from a tensor, so that Llama 3's have to be
// computed.
var scaledFactors = []string{"llama", "smollm3", "arcee", "granite", "granitemoe"}

// ropeFactors appends the rotary factors that a GGUF stores as tensors, but a folder in its configuration.
func (b *builder) ropeFactors() error {
	rope := b.config.FullRope()
	if slices.Contains(longFactors, b.arch) {
		for _, which := range []string{"long", "short"} {
			list, ok := rope[which+"_factor"].([]any)
			if !ok {
				continue
			}
			factors := make([]float32, len(list))
			for i, x := range list {
				f, ok := config.Float(x)
				if !ok {
					return b.config.Bad(which+"_factor", x, "a list of numbers")
				}
				factors[i] = float32(f)
			}
			if err := b.constant("rope_factors_"+which+".weight", factors); err != nil {
				return err
			}
		}
	}
	if slices.Contains(scaledFactors, b.arch) && rope["rope_type"] == "llama3" {
		dim := b.hp.HeadDim
		if dim <= 0 || dim > 1<<16 {
			return b.config.Bad("head_dim", b.config.Get("head_dim"), "the size of a head, which the rope scaling depends on")
		}
		return b.constant("rope_freqs.weight", llama3Factors(dim, rope))
	}
	return nil
}

// constant appends a vector that is computed from the configuration.
func (b *builder) constant(name string, x []float32) error {
	if len(x) == 0 {
		return finding.Errorf("config.bad_value", b.config.File, "the rotary factors are empty").In(name)
	}
	data := make([]byte, 4*len(x))
	putF32(data, x)
	return b.emit("config.json", name, source{bytes.NewReader(data), tensor.F32, tensor.Shape{int64(len(x))}})
}

// llama3Factors are what Llama 3 divides each rotary frequency by to reach contexts longer than it was
// trained on: 1 for short wavelengths, the full factor for long ones, and a blend between. All
// arithmetic is float32, and a number divided by a tensor is the tensor's reciprocal times the number, as
// in the converter.
func llama3Factors(dim int64, rope map[string]any) []float32 {
	get := func(key string, otherwise float64) float32 {
		if x, ok := config.Float(rope[key]); ok {
			return float32(x)
		}
		return float32(otherwise)
	}
	theta, factor, low, high := get("rope_theta", 10000), get("factor", 8), get("low_freq_factor", 1), get("high_freq_factor", 4)
	old := get("original_max_position_embeddings", 8192)
	out := make([]float32, dim/2)
	for i := range out {
		exponent := float32(2*i) / float32(dim)
		power := float32(math.Pow(float64(theta), float64(exponent)))
		wavelength := 1 / (1 / power) * float32(2*math.Pi)
		switch {
		case wavelength < old/high:
			out[i] = 1
		case wavelength > old/low:
			out[i] = factor
		default:
			smooth := (float32(1/wavelength*old) - low) / (high - low)
			out[i] = 1 / (float32((1-smooth)/factor) + smooth)
		}
	}
	return out
}

// packedExperts appends the experts that a folder holds in MXFP4, and returns the names of their tensors.
func (b *builder) packedExperts(folder []*tensor.Tensor) (map[string]bool, error) {
	if b.arch != "gpt-oss" {
		return nil, nil
	}
	scales := map[string]*tensor.Tensor{}
	for _, t := range folder {
		if base, ok := strings.CutSuffix(t.Name, "_scales"); ok {
			scales[base] = t
		}
	}
	done := map[string]bool{}
	for _, t := range folder {
		base, ok := strings.CutSuffix(t.Name, "_blocks")
		if !ok || left(b.arch, t.Name) {
			continue
		}
		sc := scales[base]
		if sc == nil {
			return nil, finding.Errorf("base.missing_tensor", b.dir, "the blocks have no scales").In(t.Name)
		}
		d := t.Shape
		if positive(d) != nil || len(d) != 4 || d[3] != mxCodes || t.DType != tensor.U8 || sc.DType != tensor.U8 || !slices.Equal(sc.Shape, d[:3]) {
			return nil, finding.Errorf("base.bad_shape", b.dir, "blocks %s%v and scales %s%v are not MXFP4", t.DType, d, sc.DType, sc.Shape).In(t.Name).
				Expected(fmt.Sprint(d), "U8 [experts, rows, columns/32, 16] and one scale for 16 bytes")
		}
		name := renamed(b.arch, base)
		at := strings.LastIndexByte(name, '.')
		if at < 0 {
			continue
		}
		places, err := b.places(name[:at], name[at+1:])
		if err != nil {
			return nil, finding.Of(err).In(t.Name)
		}
		s := mxfp4(t, sc, tensor.Shape{d[0], d[1], 32 * d[2]})
		if err := b.place(t.Name, name[:at], name[at+1:]+"_blocks", s, places); err != nil {
			f := finding.Of(err)
			if f == nil {
				f = finding.Errorf("base.unsupported", b.dir, "%v", err)
			}
			return nil, f.In(t.Name)
		}
		done[t.Name], done[sc.Name] = true, true
	}
	return done, nil
}

// stackedBias reports whether a GGUF tensor holds the biases of all experts.
func (b *builder) stackedBias(name string) bool { return strings.HasSuffix(name, "_exps.bias") }

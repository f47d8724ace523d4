package scheme_test

import (
	"fmt"
	"testing"

	"github.com/loratool/loratool/quant/scheme"
	"github.com/loratool/loratool/tensor"
)

// BenchmarkDecode decodes a weight of 4096 × 4096 in slabs of 16 MiB, as a merge does, from memory. MB are
// of float32.
func BenchmarkDecode(b *testing.B) {
	const n = 4096
	part := func(name string, d tensor.DType, shape ...int64) tensor.Tensor {
		t := tensor.Tensor{Spec: tensor.Spec{Name: name, DType: d, Shape: shape}}
		size, err := t.Spec.Bytes()
		if err != nil {
			b.Fatal(err)
		}
		return with(t, make([]byte, size))
	}
	state := []byte(`{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [4096, 4096], "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0}`)
	text := with(part("x.weight.quant_state.bitsandbytes__nf4", tensor.U8, int64(len(state))), state)
	for _, c := range []struct {
		name  string
		parts []tensor.Tensor
	}{
		{"NF4", []tensor.Tensor{
			part("x.weight", tensor.U8, n*n/2, 1), part("x.weight.absmax", tensor.U8, n*n/64), part("x.weight.quant_map", tensor.F32, 16),
			part("x.weight.nested_absmax", tensor.F32, n*n/64/256), part("x.weight.nested_quant_map", tensor.F32, 256), text,
		}},
		{"int8", []tensor.Tensor{part("x.weight", tensor.I8, n, n), part("x.SCB", tensor.F32, n)}},
		{"GPTQ", []tensor.Tensor{part("x.qweight", tensor.I32, n/8, n), part("x.qzeros", tensor.I32, 32, n/8), part("x.scales", tensor.F16, 32, n)}},
		{"AWQ", []tensor.Tensor{part("x.qweight", tensor.I32, n, n/8), part("x.qzeros", tensor.I32, 32, n/8), part("x.scales", tensor.F16, 32, n)}},
		{"HQQ", []tensor.Tensor{part("x.W_q", tensor.U8, n*n/128, 64), part("x.scale", tensor.F16, n*n/64, 1), part("x.zero", tensor.F16, n*n/64, 1), with(part("x.shape", tensor.I64, 2), []byte{0, 16, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0})}},
		{"FP8", []tensor.Tensor{part("x.weight", tensor.F8E4M3, n, n), part("x.weight_scale_inv", tensor.F32, n/128, n/128)}},
		{"int4", []tensor.Tensor{part("x.weight_packed", tensor.I32, n, n/8), with(part("x.weight_shape", tensor.I64, 2), []byte{0, 16, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0}), part("x.weight_scale", tensor.BF16, n, 32)}},
		{"NVFP4", []tensor.Tensor{part("x.weight_packed", tensor.U8, n, n/2), part("x.weight_scale", tensor.F8E4M3, n, n/16), part("x.weight_global_scale", tensor.F32, 1)}},
		{"MXFP4 experts", []tensor.Tensor{part("x.proj_blocks", tensor.U8, 1, n, n/32, 16), part("x.proj_scales", tensor.U8, 1, n, n/32)}},
	} {
		b.Run(c.name, func(b *testing.B) {
			v, err := scheme.Open("model", c.parts, map[string]any{"torch_dtype": "bfloat16"})
			if err != nil || v == nil || len(v.Tensors) != 1 {
				b.Fatal(fmt.Sprint(v, err))
			}
			x := v.Tensors[0]
			p := make([]byte, 16<<20)
			b.SetBytes(4 * n * n)
			for b.Loop() {
				for off := int64(0); off < x.Size; off += int64(len(p)) {
					if _, err := x.ReadAt(p[:min(int64(len(p)), x.Size-off)], off); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

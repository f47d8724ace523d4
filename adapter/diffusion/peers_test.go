package diffusion

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/internal/applied"
	"github.com/loratool/loratool/tensor"
)

// A matrix is one of a test's own arithmetic.
type matrix struct {
	rows, cols int
	v          []float64
}

func (m matrix) at(i, j int) float64 { return m.v[i*m.cols+j] }

func made(rows, cols int, at func(i, j int) float64) matrix {
	m := matrix{rows, cols, nil}
	for i := range rows {
		for j := range cols {
			m.v = append(m.v, at(i, j))
		}
	}
	return m
}

func (m matrix) times(n matrix) matrix {
	return made(m.rows, n.cols, func(i, j int) (sum float64) {
		for k := range m.cols {
			sum += m.at(i, k) * n.at(k, j)
		}
		return sum
	})
}

func (m matrix) by(x float64) matrix {
	return made(m.rows, m.cols, func(i, j int) float64 { return m.at(i, j) * x })
}

func (m matrix) plus(n matrix) matrix {
	return made(m.rows, m.cols, func(i, j int) float64 { return m.at(i, j) + n.at(i, j) })
}

func (m matrix) minus(n matrix) matrix { return m.plus(n.by(-1)) }

func (m matrix) transposed() matrix {
	return made(m.cols, m.rows, func(i, j int) float64 { return m.at(j, i) })
}

// swapped has its halves of rows exchanged.
func (m matrix) swapped() matrix {
	return made(m.rows, m.cols, func(i, j int) float64 { return m.at((i+m.rows/2)%m.rows, j) })
}

func hadamard(m, n matrix) matrix {
	return made(m.rows, m.cols, func(i, j int) float64 { return m.at(i, j) * n.at(i, j) })
}

func kronecker(m, n matrix) matrix {
	return made(m.rows*n.rows, m.cols*n.cols, func(i, j int) float64 { return m.at(i/n.rows, j/n.cols) * n.at(i%n.rows, j%n.cols) })
}

// lengths are the norms of the rows.
func (m matrix) lengths() []float64 {
	out := make([]float64, m.rows)
	for i := range out {
		for j := range m.cols {
			out[i] += m.at(i, j) * m.at(i, j)
		}
		out[i] = math.Sqrt(out[i])
	}
	return out
}

// A scene is the tensors of a file and a base's weight.
type scene struct {
	t       *testing.T
	tensors []tensor.Tensor
	w       matrix
}

// of is a tensor of the file by the end of its name, with all but the first dimension as columns.
func (s scene) of(suffix string) matrix {
	for _, x := range s.tensors {
		if strings.HasSuffix(x.Name, suffix) {
			v := floats(s.t, x)
			rows := 1
			if len(x.Shape) > 1 {
				rows = int(x.Shape[0])
			}
			return made(rows, len(v)/rows, func(i, j int) float64 { return float64(v[i*len(v)/rows+j]) })
		}
	}
	s.t.Fatalf("no %s", suffix)
	return matrix{}
}

// rotations are the Cayley transforms of the skew parts of blocks of two, shrunk by a factor, as one matrix.
func (s scene) rotations(suffix string, shrink float64) matrix {
	v := s.of(suffix)
	out := made(v.rows*2, v.rows*2, func(int, int) float64 { return 0 })
	for k := range v.rows {
		q := shrink * (v.at(k, 1) - v.at(k, 2)) // (I + Q)·(I − Q)⁻¹ of Q = [0 q; −q 0]
		c, d := (1-q*q)/(1+q*q), 2*q/(1+q*q)
		for i, x := range []float64{c, d, -d, c} {
			out.v[(2*k+i/2)*out.cols+2*k+i%2] = x
		}
	}
	return out
}

// skew is the common norm of the skew parts of blocks of two.
func (s scene) skew(suffix string) float64 {
	v, sum := s.of(suffix), 0.0
	for k := range v.rows {
		q := v.at(k, 1) - v.at(k, 2)
		sum += 2 * q * q
	}
	return math.Sqrt(sum)
}

func fuller(w, target matrix, m float64) matrix { return target.minus(w).by(m) }

// TestPeerFormulas are differences that other programs compute wrongly. Each case has the right formula and the wrong
// one, of the tensors alone: what an adapter makes of a base must be the first, and not the second, as it was read
// and in every dialect that takes it.
func TestPeerFormulas(t *testing.T) {
	const (
		proj, fused, modulation = "double_blocks.0.img_attn.proj.weight", "double_blocks.0.img_attn.qkv.weight", "final_layer.adaLN_modulation.1.weight"
		kernel                  = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
	)
	lora := func(module string, out string, more ...string) []string {
		return append([]string{module + ".lora_down.weight [2 4]", module + ".lora_up.weight [" + out + " 2]"}, more...)
	}
	product := func(s scene) matrix { return s.of("lora_up.weight").times(s.of("lora_down.weight")) }
	loha := func(s scene) matrix {
		return hadamard(s.of("hada_w1_a").times(s.of("hada_w1_b")), s.of("hada_w2_a").times(s.of("hada_w2_b")))
	}
	whole := func(s scene) matrix { return kronecker(s.of("lokr_w1"), s.of("lokr_w2")) }
	lokr := func(s scene) matrix { return kronecker(s.of("lokr_w1"), s.of("lokr_w2_a").times(s.of("lokr_w2_b"))) }
	// tucker is Σ core[m, n, tap]·up[o, m]·down[n, i] over the taps of a kernel.
	tucker := func(up, core, down matrix) matrix {
		taps := core.cols / down.rows
		return made(up.rows, down.cols*taps, func(o, c int) (sum float64) {
			for m := range up.cols {
				for n := range down.rows {
					sum += up.at(o, m) * core.at(m, n*taps+c%taps) * down.at(n, c/taps)
				}
			}
			return sum
		})
	}
	blocks := func(s scene) []matrix { // the three parts of qkv
		var out []matrix
		for _, p := range []string{"q", "k", "v"} {
			out = append(out, s.of("to_"+p+".lora_up.weight").times(s.of("to_"+p+".lora_down.weight")))
		}
		return out
	}
	stack := func(parts ...matrix) matrix {
		out := matrix{0, parts[0].cols, nil}
		for _, p := range parts {
			out.rows, out.v = out.rows+p.rows, append(out.v, p.v...)
		}
		return out
	}
	zeros := func(rows, cols int) matrix { return made(rows, cols, func(int, int) float64 { return 0 }) }
	dora := func(s scene, v matrix, norms []float64) matrix {
		m := s.of("dora_scale")
		return made(v.rows, v.cols, func(i, j int) float64 { return m.at(i, 0) / norms[i] * v.at(i, j) })
	}
	turned := func(s scene, shrink float64) matrix { return s.rotations("oft_blocks", shrink).transposed().times(s.w) }
	shrink := func(s scene, bound float64) float64 { return min(1, bound/s.skew("oft_blocks")) }

	for name, c := range map[string]struct {
		specs        []string
		base         applied.Base
		tensor       string
		strength     float64 // 0: 1
		right, wrong func(s scene) matrix
	}{
		"the core of a kernel is left out, and the product spread over the taps (sd-scripts merge)": {
			[]string{applied.Conv + ".lora_down.weight [3 2 1 1]", applied.Conv + ".lora_up.weight [4 3 1 1]", applied.Conv + ".lora_mid.weight [3 3 3 3]", applied.Conv + ".alpha =1"}, applied.SDXL, kernel, 0,
			func(s scene) matrix {
				return tucker(s.of("lora_up.weight"), s.of("lora_mid.weight"), s.of("lora_down.weight")).by(1.0 / 3)
			},
			func(s scene) matrix {
				p := product(s)
				return made(4, 18, func(i, j int) float64 { return p.at(i, j/9) / 3 })
			}},
		"the scale of a LoHa is taken twice (LyCORIS merge)": {
			[]string{applied.Proj + ".hada_w1_a [4 2]", applied.Proj + ".hada_w1_b [2 4]", applied.Proj + ".hada_w2_a [4 2]", applied.Proj + ".hada_w2_b [2 4]", applied.Proj + ".alpha =1"}, applied.Flux, proj, 0,
			func(s scene) matrix { return loha(s).by(0.5) }, func(s scene) matrix { return loha(s).by(0.25) }},
		"the scale of a LoKr is taken twice (LyCORIS merge)": {
			[]string{applied.Proj + ".lokr_w1 [2 2]", applied.Proj + ".lokr_w2_a [2 2]", applied.Proj + ".lokr_w2_b [2 2]", applied.Proj + ".alpha =1"}, applied.Flux, proj, 0,
			func(s scene) matrix { return lokr(s).by(0.5) }, func(s scene) matrix { return lokr(s).by(0.25) }},
		"a LoKr of rank 1 has the scale 1 (stable-diffusion.cpp)": {
			[]string{applied.Proj + ".lokr_w1 [2 2]", applied.Proj + ".lokr_w2_a [2 1]", applied.Proj + ".lokr_w2_b [1 2]", applied.Proj + ".alpha =4"}, applied.Flux, proj, 0,
			func(s scene) matrix { return lokr(s).by(4) }, lokr},
		"the rank of a decomposed LoKr is taken from its outputs (LyCORIS)": {
			[]string{applied.Conv + ".lokr_w1 [1 1]", applied.Conv + ".lokr_w2_a [3 4]", applied.Conv + ".lokr_w2_b [3 2]", applied.Conv + ".lokr_t2 [3 3 3 3]", applied.Conv + ".alpha =1"}, applied.SDXL, kernel, 0,
			func(s scene) matrix {
				return tucker(s.of("lokr_w2_a").transposed(), s.of("lokr_t2"), s.of("lokr_w2_b")).by(s.of("lokr_w1").v[0] / 3)
			},
			func(s scene) matrix {
				return tucker(s.of("lokr_w2_a").transposed(), s.of("lokr_t2"), s.of("lokr_w2_b")).by(s.of("lokr_w1").v[0] / 4)
			}},
		"the alpha of a LoKr of whole matrices counts (10¹⁰ of ai-toolkit)": {
			[]string{applied.Proj + ".lokr_w1 [2 2]", applied.Proj + ".lokr_w2 [2 2]", applied.Proj + ".alpha =1e10"}, applied.Flux, proj, 0,
			whole, func(s scene) matrix { return whole(s).by(1e10 / 2) }},
		"the infinite alpha of a LoKr of whole matrices counts (ai-toolkit in half precision)": {
			[]string{applied.Proj + ".lokr_w1 [2 2]", applied.Proj + ".lokr_w2 [2 2]", applied.Proj + ".alpha =inf"}, applied.Flux, proj, 0,
			whole, func(s scene) matrix { return whole(s).by(math.Inf(1)) }},
		"the halves of A change places, too (diffusers, BFL control and HunyuanVideo)": {
			lora(applied.Final, "8", applied.Final+".alpha =2"), applied.Flux, modulation, 0, product,
			func(s scene) matrix { return s.of("lora_up.weight").times(s.of("lora_down.weight").swapped()) }},
		"the halves stay where they are (diffusers, Flux.2)": {
			lora(applied.Final, "8", applied.Final+".alpha =2"), applied.Flux, modulation, 0, product, func(s scene) matrix { return product(s).swapped() }},
		"the final layer loses its alpha (diffusers)": {
			lora(applied.Final, "8", applied.Final+".alpha =1"), applied.Flux, modulation, 0, func(s scene) matrix { return product(s).by(0.5) }, product},
		"alpha becomes the rank (diffusers, convert_state_dict_to_kohya)": {
			lora(applied.Proj, "4", applied.Proj+".alpha =1"), applied.Flux, proj, 0, func(s scene) matrix { return product(s).by(0.5) }, product},
		"a fused module is lost where q is missing (stable-diffusion.cpp, sd-scripts)": {
			append(lora(applied.Part+"k", "4"), lora(applied.Part+"v", "4")...), applied.Flux, fused, 0,
			func(s scene) matrix {
				return stack(zeros(4, 4), s.of("to_k.lora_up.weight").times(s.of("to_k.lora_down.weight")), s.of("to_v.lora_up.weight").times(s.of("to_v.lora_down.weight")))
			},
			func(scene) matrix { return zeros(12, 4) }},
		"alpha stays where the rank is tripled (sd-scripts, split_qkv)": {
			slices.Concat(lora(applied.Part+"q", "4", applied.Part+"q.alpha =2"), lora(applied.Part+"k", "4", applied.Part+"k.alpha =2"), lora(applied.Part+"v", "4", applied.Part+"v.alpha =2")), applied.Flux, fused, 0,
			func(s scene) matrix { return stack(blocks(s)...) }, func(s scene) matrix { return stack(blocks(s)...).by(1.0 / 3) }},
		"a shared A is cut by its rank (mflux)": {
			[]string{applied.QKV + ".lora_down.weight [3 4]", applied.QKV + ".lora_up.weight [12 3]"}, applied.Flux, fused, 0, product,
			func(s scene) matrix {
				a, b := s.of("lora_down.weight"), s.of("lora_up.weight")
				return made(12, 4, func(i, j int) float64 { return b.at(i, i/4) * a.at(i/4, j) })
			}},
		"the strength is squared (x-flux; sd-scripts' and supermerger's merges of adapters)": {
			lora(applied.Proj, "4"), applied.Flux, proj, 0.5, func(s scene) matrix { return product(s).by(0.5) }, func(s scene) matrix { return product(s).by(0.25) }},
		"the strength of OFT is squared (ComfyUI)": {
			[]string{applied.Proj + ".oft_blocks [2 2 2]"}, applied.Flux, proj, 0.5,
			func(s scene) matrix { return fuller(s.w, turned(s, 1), 0.5) }, func(s scene) matrix { return fuller(s.w, turned(s, 1), 0.25) }},
		"the bound of OFT is alpha alone (ComfyUI)": {
			[]string{applied.Proj + ".oft_blocks [2 2 2]", applied.Proj + ".alpha =0.01"}, applied.Flux, proj, 0,
			func(s scene) matrix { return fuller(s.w, turned(s, shrink(s, 4*0.01)), 1) }, func(s scene) matrix { return fuller(s.w, turned(s, shrink(s, 0.01)), 1) }},
		"the factors of OFT are left out (ComfyUI)": {
			[]string{applied.Proj + ".oft_blocks [2 2 2]", applied.Proj + ".rescale [4 1]"}, applied.Flux, proj, 0,
			func(s scene) matrix {
				r, f := turned(s, 1), s.of("rescale")
				return fuller(s.w, made(4, 4, func(i, j int) float64 { return f.at(i, 0) * r.at(i, j) }), 1)
			},
			func(s scene) matrix { return fuller(s.w, turned(s, 1), 1) }},
		"OFT turns with R (loaders of the other side)": {
			[]string{applied.Proj + ".oft_blocks [2 2 2]"}, applied.Flux, proj, 0,
			func(s scene) matrix { return fuller(s.w, turned(s, 1), 1) }, func(s scene) matrix { return fuller(s.w, s.rotations("oft_blocks", 1).times(s.w), 1) }},
		"the norms of DoRA are those of the base (ComfyUI)": {
			lora(applied.Proj, "4", applied.Proj+".dora_scale [4 1]"), applied.Flux, proj, 0,
			func(s scene) matrix { v := s.w.plus(product(s)); return fuller(s.w, dora(s, v, v.lengths()), 1) },
			func(s scene) matrix { return fuller(s.w, dora(s, s.w.plus(product(s)), s.w.lengths()), 1) }},
		"the whole difference of DoRA counts at any strength (LyCORIS)": {
			lora(applied.Proj, "4", applied.Proj+".dora_scale [4 1]"), applied.Flux, proj, 0.25,
			func(s scene) matrix { v := s.w.plus(product(s)); return fuller(s.w, dora(s, v, v.lengths()), 0.25) },
			func(s scene) matrix {
				v := s.w.plus(product(s))
				norms, m := v.lengths(), s.of("dora_scale")
				return fuller(s.w, made(4, 4, func(i, j int) float64 { return (1 + 0.25*(m.at(i, 0)/norms[i]-1)) * v.at(i, j) }), 1)
			}},
		"the magnitudes of DoRA are dropped (diffusers, stable-diffusion.cpp)": {
			lora(applied.Proj, "4", applied.Proj+".dora_scale [4 1]"), applied.Flux, proj, 0,
			func(s scene) matrix { v := s.w.plus(product(s)); return fuller(s.w, dora(s, v, v.lengths()), 1) }, product},
		"the scale of GLoRA is taken twice (LyCORIS, bypass)": {
			[]string{applied.Proj + ".a1.weight [4 2]", applied.Proj + ".a2.weight [2 4]", applied.Proj + ".b1.weight [4 2]", applied.Proj + ".b2.weight [2 4]", applied.Proj + ".alpha =1"}, applied.Flux, proj, 0,
			func(s scene) matrix {
				return s.w.times(s.of("a1.weight")).times(s.of("a2.weight")).plus(s.of("b1.weight").times(s.of("b2.weight"))).by(0.5)
			},
			func(s scene) matrix {
				return s.w.times(s.of("a1.weight")).times(s.of("a2.weight")).plus(s.of("b1.weight").times(s.of("b2.weight"))).by(0.25)
			}},
	} {
		t.Run(name, func(t *testing.T) {
			family := "flux1"
			if len(c.base[kernel]) > 0 {
				family = "sdxl"
			}
			read := func(ts []tensor.Tensor, metadata [][2]string) *adapter.Adapter {
				a, err := Decode("file", "file", ts, metadata, Options{})
				if err != nil {
					t.Fatal(err)
				}
				a.Arch = family // a few modules might be those of several families
				return a
			}
			before := applied.To(t, &adapter.Adapter{Arch: family}, c.base)[c.tensor]
			rows := int(c.base[c.tensor][0])
			s := scene{t, tensors(t, c.specs...), matrix{rows, len(before) / rows, before}}
			right, wrong := c.right(s), c.wrong(s)
			if !apart(right, wrong) {
				t.Fatal("the two formulas agree")
			}
			a := read(s.tensors, nil)
			check := func(dialect string, a *adapter.Adapter) {
				strong := *a
				strong.Updates = slices.Clone(a.Updates)
				for i := range strong.Updates {
					if c.strength != 0 {
						strong.Updates[i].Scale = strong.Updates[i].Scale.Times(c.strength)
					}
				}
				after := applied.To(t, &strong, c.base)[c.tensor]
				got := made(s.w.rows, s.w.cols, func(i, j int) float64 { return after[i*s.w.cols+j] - s.w.at(i, j) })
				if apart(got, right) {
					t.Errorf("%s: %v, expected %v", dialect, got.v, right.v)
				}
				if !apart(got, wrong) {
					t.Errorf("%s: the wrong difference", dialect)
				}
			}
			check("as read", a)
			written := 0
			for _, d := range Dialects {
				f, err := Encode(a, d.Name, EncodeOptions{})
				if finding.Of(err) != nil {
					continue
				} else if err != nil {
					t.Fatal(err)
				}
				written++
				check(d.Name, read(applied.Stored(t, f.Weights), f.Metadata))
			}
			if written < 2 {
				t.Errorf("only %d dialects take it", written)
			}
		})
	}
}

// apart reports whether two matrices differ by more than roundings.
func apart(x, y matrix) bool {
	for i, a := range x.v {
		if !(math.Abs(a-y.v[i]) <= 1e-5) {
			return true
		}
	}
	return false
}

// TestPeerCombinations applies two adapters at strengths of their own: the sum of both differences, and neither the
// squares of the strengths nor products of one's A with the other's B, as where factors are added, nor a share by
// rank, as where they are stacked and alpha stays (sd-scripts, merge_lora.py with and without --concat).
func TestPeerCombinations(t *testing.T) {
	const module, name = "lora_unet_double_blocks_0_img_attn_proj", "double_blocks.0.img_attn.proj.weight"
	one := tensors(t, module+".lora_down.weight [2 4]", module+".lora_up.weight [4 2]", module+".alpha =2")
	two := tensors(t, module+".lora_up.weight [4 2]", module+".lora_down.weight [2 4]", module+".alpha =1")
	var all adapter.Adapter
	var b, a, delta []matrix
	for i, ts := range [][]tensor.Tensor{one, two} {
		x, err := Decode("file", "file", ts, nil, Options{})
		if err != nil {
			t.Fatal(err)
		}
		s := scene{t, ts, matrix{}}
		b, a = append(b, s.of("lora_up.weight")), append(a, s.of("lora_down.weight"))
		delta = append(delta, b[i].times(a[i]).by([]float64{1, 0.5}[i]))
		x.Updates[0].Scale = x.Updates[0].Scale.Times([]float64{0.5, 2}[i])
		all.Updates = append(all.Updates, x.Updates...)
	}
	all.Arch = "flux1"
	before, after := applied.To(t, &adapter.Adapter{Arch: "flux1"}, applied.Flux)[name], applied.To(t, &all, applied.Flux)[name]
	got := made(4, 4, func(i, j int) float64 { return after[i*4+j] - before[i*4+j] })
	if apart(got, delta[0].by(0.5).plus(delta[1].by(2))) {
		t.Errorf("got %v", got.v)
	}
	r := math.Sqrt(0.5)
	for what, wrong := range map[string]matrix{
		"factors added":   b[0].by(0.5).plus(b[1].by(2 * r)).times(a[0].by(0.5).plus(a[1].by(2 * r))),
		"squares":         delta[0].by(0.25).plus(delta[1].by(4)),
		"shares by ranks": delta[0].by(0.25 * 0.5).plus(delta[1].by(4 * 0.5)),
		"roots":           delta[0].by(r).plus(delta[1].by(math.Sqrt2)),
	} {
		if !apart(got, wrong) {
			t.Errorf("%s", what)
		}
	}
}

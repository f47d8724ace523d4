package merge_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/trained"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/quant/onnxquant"
	"github.com/loratool/loratool/tensor"
)

// A fidelity is what a merge of an adapter at a strength into a quantized base keeps.
type fidelity struct {
	Type     string  `json:"type"`
	Adapter  string  `json:"adapter"`
	Strength float64 `json:"strength"`
	Matched  keeping `json:"matched"`
	Nearest  keeping `json:"nearest"`
	Floats   float64 `json:"error_from_floats"`
}

// A keeping is what one way of rounding keeps: of the update, as the mean over matrices and in the worst, and of what
// the adapter does for the loss beside the quantized base. The error is relative, from the float model's merge.
type keeping struct {
	Retention float64 `json:"retention"`
	Worst     float64 `json:"worst"`
	Loss      float64 `json:"loss"`
	Error     float64 `json:"error"`
	Changed   float64 `json:"changed"`
}

// A storage is a way to quantize the trained model.
type storage struct {
	name  string
	base  func(*testing.T) formats.Writable
	round func(t *testing.T, w []float32, out, in int64) []float32 // from floats
}

func ggufStorage(name string) storage {
	return storage{name, func(t *testing.T) formats.Writable { return quantizedTo(t, trained.GGUF(t), name).(formats.Writable) },
		func(t *testing.T, w []float32, _, _ int64) []float32 {
			d, _ := tensor.ParseDType(name)
			c, _ := quant.Of(d)
			n, err := d.Bytes(int64(len(w)))
			if err != nil {
				t.Fatal(err)
			}
			b, v := make([]byte, n), make([]float32, len(w))
			if err := c.Encode(b, w); err != nil {
				t.Fatal(err)
			}
			c.Decode(v, b)
			return v
		}}
}

func packedStorage(p packing) storage {
	return storage{p.name, func(t *testing.T) formats.Writable {
		quantized, _ := p.writeOf(t, trained.Path(t, "base"))
		return packedModel(t, quantized)
	}, func(t *testing.T, w []float32, out, in int64) []float32 {
		return p.pack(t, &folder{}, "", w, out, in)
	}}
}

// nbitsStorage is a graph of independent MatMulNBits nodes of four bits.
func nbitsStorage(block int64) storage {
	pack := func(t *testing.T, w []float32, out, in int64) (*onnxquant.Encoding, [][]byte) {
		stored := func(d tensor.DType, n int64) *tensor.Tensor {
			b := make([]byte, n*int64(d.BlockBytes()))
			return &tensor.Tensor{Spec: tensor.Spec{DType: d, Shape: tensor.Shape{n}}, Src: bytes.NewReader(b), Size: int64(len(b))}
		}
		x, err := onnxquant.NBits{K: in, N: out, Bits: 4, Block: block, Codes: stored(tensor.U8, out*in/2), Scale: stored(tensor.F32, out*in/block)}.Open()
		if err != nil {
			t.Fatal(err)
		}
		e, err := x.Encoding()
		parts := [][]byte{make([]byte, out*in/2), make([]byte, 4*out*in/block)}
		if err == nil {
			err = e.Encode(parts, w, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		return e, parts
	}
	s := storage{name: fmt.Sprintf("MatMulNBits, blocks of %d", block)}
	s.round = func(t *testing.T, w []float32, out, in int64) []float32 {
		e, parts := pack(t, w, out, in)
		v := make([]float32, len(w))
		e.Decode(v, parts, 0)
		return v
	}
	s.base = func(t *testing.T) formats.Writable {
		g := message{}.text(2, "g")
		attribute := func(name string, v int64) []byte { return message{}.text(1, name).int(3, uint64(v)).int(20, 2) }
		value := func(name string) []byte { return message{}.text(1, name).sub(2, message{}.sub(1, message{}.int(1, 1))) }
		specs, values := trained.Tensors(t)
		for i, x := range specs {
			module, ok := strings.CutSuffix(x.Name, "_proj.weight")
			if !ok {
				continue
			}
			out, in := x.Shape[0], x.Shape[1]
			_, parts := pack(t, values[i], out, in)
			n := message{}.text(1, fmt.Sprintf("x%d", in)).text(1, x.Name).text(1, x.Name+"_scales").text(2, x.Name+".y").text(3, "/"+strings.ReplaceAll(module, ".", "/")+"_proj/MatMul_Q4").
				text(4, "MatMulNBits").text(7, "com.microsoft")
			for name, v := range map[string]int64{"K": in, "N": out, "bits": 4, "block_size": block} {
				n = n.sub(5, attribute(name, v))
			}
			g = g.sub(1, n).sub(12, value(x.Name+".y")).
				sub(5, message{}.int(1, uint64(out)).int(1, uint64(in/block)).int(1, uint64(block/2)).int(2, 2).text(8, x.Name).sub(9, parts[0])).
				sub(5, message{}.int(1, uint64(out*in/block)).int(2, 1).text(8, x.Name+"_scales").sub(9, parts[1]))
		}
		g = g.sub(11, value("x256")).sub(11, value("x768"))
		path := filepath.Join(t.TempDir(), "base.onnx")
		model := message{}.int(1, 10).sub(7, g).sub(8, message{}.int(2, 21)).sub(8, message{}.text(1, "com.microsoft").int(2, 1))
		if err := os.WriteFile(path, model, 0o600); err != nil {
			t.Fatal(err)
		}
		return reopened(t, path)
	}
	return s
}

// reopened is a model with its quantized weights.
func reopened(t *testing.T, path string) formats.Writable {
	t.Helper()
	m, err := formats.Open(path)
	if err == nil {
		m, err = formats.Decode(m)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	if d, ok := m.(*formats.Decoded); ok {
		return d.Packed()
	}
	return m.(formats.Writable)
}

// A study is what all measurements have in common.
type study struct {
	text    []byte
	weights map[string][]float32
	shapes  map[string]tensor.Shape
}

// beside adds the adapter to weights.
func (s *study) beside(t *testing.T, weights map[string][]float32, in merge.Input) map[string][]float32 {
	t.Helper()
	sum := map[string][]float32{}
	for name, w := range weights {
		sum[name] = w
	}
	for _, u := range in.Adapter.Updates {
		down, err := u.A.Load()
		if err != nil {
			t.Fatal(err)
		}
		up, err := u.B.Load()
		if err != nil {
			t.Fatal(err)
		}
		w := append([]float32(nil), weights[u.Module+".weight"]...)
		kernel.NewLowRank(up, down, int(u.B.Rows), int(u.A.Cols), u.Rank, float32(u.Scale.Value*in.Scale)).Apply(w, int(u.A.Cols), 0, int(u.B.Rows))
		sum[u.Module+".weight"] = w
	}
	return sum
}

func (s *study) loss(weights map[string][]float32) float64 {
	return trained.NewLlama(weights).Loss(s.text, 256, 1)
}

// distance is the relative distance of the linears of a model from another's.
func (s *study) distance(from, to map[string][]float32) float64 {
	var noise, whole float64
	for _, name := range slices.Sorted(maps.Keys(s.shapes)) { // sums depend on the order in their last bits
		for i, x := range to[name] {
			d := float64(from[name][i]) - float64(x)
			noise, whole = noise+d*d, whole+float64(x)*float64(x)
		}
	}
	return math.Sqrt(noise / whole)
}

func (s *study) measure(t *testing.T, of storage, base formats.Writable, in merge.Input) fidelity {
	t.Helper()
	plain := trained.With(t, base.Tensors())
	want := s.beside(t, s.weights, in)
	without, beside := s.loss(plain), s.loss(s.beside(t, plain, in))
	keep := func(how merge.Requant) (k keeping) {
		plan, err := merge.NewPlan(base, []merge.Input{in}, merge.Options{Resolve: merge.Resolvers(base), Requant: how})
		if err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(t.TempDir(), "merged"+filepath.Ext(base.Path()))
		k.Worst = math.Inf(1)
		for _, x := range writePlan(t, plan, base, out) {
			k.Retention += x.Retention / 28
			k.Changed += x.Changed / 28
			k.Worst = min(k.Worst, x.Retention)
		}
		merged := trained.With(t, reopened(t, out).Tensors())
		k.Loss, k.Error = (without-s.loss(merged))/(without-beside), s.distance(merged, want)
		return k
	}
	f := fidelity{Type: of.name, Strength: in.Scale, Matched: keep(merge.RequantMatch), Nearest: keep(merge.RequantNearest)}
	fresh := map[string][]float32{}
	for name, shape := range s.shapes {
		fresh[name] = of.round(t, want[name], shape[0], shape[1])
	}
	f.Floats = s.distance(fresh, want)
	return f
}

// fidelityPoints are those of the plot: adapters that were trained at two rates, at strengths up to their own. Beyond,
// more of an adapter does not do more, and what is kept means nothing.
var fidelityPoints = []struct {
	adapter  string
	strength float64
	ratio    float64 // std(Δ)/std(W), the median over matrices
}{
	{"python-r8-small", 0.1, 0.004}, {"python-r8-small", 0.25, 0.01}, {"python-r8-small", 0.5, 0.02}, {"python-r8-small", 1, 0.04},
	{"python-r8", 0.5, 0.083}, {"python-r8", 1, 0.166},
}

// own reports whether a point, or what was measured at one, is the adapter of testdata as it was trained.
func (f fidelity) own() bool { return f.Adapter == "python-r8-small" && f.Strength == 1 }

// plotted reports whether the storage is a line of the plot.
func (s storage) plotted() bool { return slices.Contains(fidelityPlot, s.name) }

var fidelityPlot = []string{"Q3_K", "Q4_0", "Q4_K", "Q6_K", "Q8_0"}

// measureFidelity measures all types at strength 1, and those of the plot at others.
func measureFidelity(t *testing.T) (all []fidelity) {
	text, err := os.ReadFile(corpus.Path(t, "trained", "eval", "python.bin"))
	if err != nil {
		t.Fatal(err)
	}
	s := study{text: text[:8*256], weights: trained.Weights(t), shapes: map[string]tensor.Shape{}}
	specs, _ := trained.Tensors(t)
	for _, x := range specs {
		if strings.HasSuffix(x.Name, "_proj.weight") {
			s.shapes[x.Name] = x.Shape
		}
	}
	adapters := map[string]merge.Input{
		"python-r8-small": input(t, trained.Adapter(t), 1, dialect.Options{}),
		"python-r8":       input(t, corpus.Path(t, "trained", "adapters", "python-r8"), 1, dialect.Options{}),
	}
	var storages []storage
	for _, name := range []string{"Q2_K", "Q3_K", "Q4_0", "IQ4_XS", "IQ4_NL", "MXFP4", "Q4_K", "NVFP4", "Q4_1", "Q5_0", "Q5_K", "Q6_K", "Q8_0"} {
		storages = append(storages, ggufStorage(name))
	}
	storages = append(storages, nbitsStorage(32), nbitsStorage(128),
		packedStorage(packing{name: "NF4, double-quantized", config: `"quant_method": "bitsandbytes", "load_in_4bit": true`, pack: packBnb("nf4", true)}))
	for _, of := range storages {
		base := of.base(t)
		for _, p := range fidelityPoints {
			if !of.plotted() && !(fidelity{Adapter: p.adapter, Strength: p.strength}).own() {
				continue
			}
			in := adapters[p.adapter]
			in.Scale = p.strength
			f := s.measure(t, of, base, in)
			f.Adapter = p.adapter
			t.Logf("%s, %s × %g: α %.4f (%.4f), nearest %.4f; loss kept %.3f, nearest %.3f; error %.4f, %.4f, %.4f", f.Type, p.adapter, p.strength, f.Matched.Retention, f.Matched.Worst,
				f.Nearest.Retention, f.Matched.Loss, f.Nearest.Loss, f.Matched.Error, f.Nearest.Error, f.Floats)
			all = append(all, f)
		}
	}
	return all
}

// fidelityTable is the table of docs/fidelity.md.
func fidelityTable(all []fidelity) string {
	var b strings.Builder
	b.WriteString("| stored as | α, matched | worst | α, nearest | loss kept, matched | nearest | elements changed | error, matched | nearest | from float weights |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for _, f := range all {
		if !f.own() {
			continue
		}
		bold := func(format string, x, limit float64) string {
			s := fmt.Sprintf(format, x)
			if x < limit {
				return "**" + s + "**"
			}
			return s
		}
		m, n := f.Matched, f.Nearest
		fmt.Fprintf(&b, "| %s | %.3f | %.3f | %s | %.1f %% | %s | %.0f %% | %.3f | %.3f | %.3f |\n", f.Type, m.Retention, m.Worst, bold("%.2f", n.Retention, 0.5),
			100*m.Loss, bold("%.0f %%", 100*n.Loss, 50), 100*m.Changed, m.Error, n.Error, f.Floats)
	}
	return b.String()
}

// fidelityChart draws the loss that is kept against the ratio of the update to the weight, as SVG: matched rounding in
// full lines, the nearest codes in broken ones.
func fidelityChart(all []fidelity) string {
	const width, height, left, right, top, bottom = 760, 420, 60, 110, 20, 50
	colours := []string{"#c0392b", "#d68910", "#1e8449", "#2471a3", "#7d3c98"}
	least, most := math.Log(fidelityPoints[0].ratio), math.Log(fidelityPoints[len(fidelityPoints)-1].ratio)
	x := func(ratio float64) float64 {
		return left + float64((math.Log(ratio)-least)/(most-least)*(width-left-right))
	}
	y := func(kept float64) float64 { return top + float64((1.1-kept)/1.15*(height-top-bottom)) }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	for _, kept := range []float64{0, 0.25, 0.5, 0.75, 1} {
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%.0f %%</text>`+"\n", left, y(kept), width-right, left-6, y(kept)+4, 100*kept)
	}
	for _, p := range fidelityPoints {
		fmt.Fprintf(&b, `<path d="M%.1f %dV%d" stroke="#ddd"/><text x="%.1f" y="%d" text-anchor="middle">%.3g</text>`+"\n", x(p.ratio), top, height-bottom, x(p.ratio), height-bottom+18, p.ratio)
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">std(Δ)/std(W), median over matrices</text>`+"\n", (left+width-right)/2, height-10)
	fmt.Fprintf(&b, `<text x="14" y="%d" text-anchor="middle" transform="rotate(-90 14 %d)">effect on the loss that is kept</text>`+"\n", (top+height-bottom)/2, (top+height-bottom)/2)
	for i, name := range fidelityPlot {
		for _, matched := range []bool{true, false} {
			var points []string
			at := 0
			for _, f := range all {
				if f.Type == name {
					k := f.Nearest.Loss
					if matched {
						k = f.Matched.Loss
					}
					points = append(points, fmt.Sprintf("%.1f,%.1f", x(fidelityPoints[at].ratio), y(k)))
					at++
				}
			}
			dash := ""
			if !matched {
				dash = ` stroke-dasharray="6 4"`
			}
			fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"%s/>`+"\n", strings.Join(points, " "), colours[i], dash)
		}
		fmt.Fprintf(&b, `<path d="M%d %dh24" stroke="%s" stroke-width="2"/><text x="%d" y="%d">%s</text>`+"\n", width-right+12, top+20+20*i, colours[i], width-right+42, top+24+20*i, name)
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d">full: matched</text><text x="%d" y="%d">broken: nearest</text>`+"\n</svg>\n", width-right+12, top+130, width-right+12, top+146)
	return b.String()
}

// TestFidelity holds the table and the plot of docs/fidelity.md to docs/fidelity.json, which it measures anew where
// LORATOOL_MEASURE is set (make fidelity).
func TestFidelity(t *testing.T) {
	numbers, page, plot := filepath.Join("..", "docs", "fidelity.json"), filepath.Join("..", "docs", "fidelity.md"), filepath.Join("..", "docs", "fidelity.svg")
	measure := os.Getenv("LORATOOL_MEASURE") != ""
	if measure {
		b, err := json.MarshalIndent(measureFidelity(t), "", " ")
		if err == nil {
			err = os.WriteFile(numbers, append(b, '\n'), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var all []fidelity
	corpus.ReadJSON(t, numbers, &all)
	for _, f := range all {
		least := 0.97
		if f.Type == "Q2_K" {
			least = 0.92 // two bits are not enough
		}
		if m := f.Matched; f.own() && (m.Worst < 0.9 || math.Abs(m.Retention-1) > 0.02 || m.Loss < least) {
			t.Errorf("%s: %+v", f.Type, m)
		}
	}
	before, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(before), "| stored as |")
	_, tail, more := strings.Cut(rest, "\n\n")
	if !ok || !more {
		t.Fatal("docs/fidelity.md holds no table")
	}
	for path, want := range map[string]string{page: head + fidelityTable(all) + "\n" + tail, plot: fidelityChart(all)} {
		if measure {
			if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s is not made of docs/fidelity.json (%v): run make fidelity", path, err)
		}
	}
}

package dialect

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/diffusion"
	"github.com/loratool/loratool/adapter/lowrank"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/internal/applied"
	"github.com/loratool/loratool/naming"
)

// pipelineDialects are the dialects of pipelines.
func pipelineDialects() []string {
	var out []string
	for _, d := range diffusion.Dialects {
		out = append(out, d.Name)
	}
	return out
}

// updatesOf makes a low-rank update for each of some modules of diffusers, in a model that is a small part of the
// real one's size, with ranks and alphas of all kinds.
func updatesOf(name string, modules ...string) *adapter.Adapter {
	family := naming.DiffusionFamilyNamed(name)
	a := &adapter.Adapter{Path: "synthetic", Space: naming.Diffusers, Arch: name}
	for i, path := range modules {
		n, ok := family.Find(path)
		if !ok {
			panic(path)
		}
		m := n.Module
		rows, in := m.Parts[n.Part].Rows, int64(4)
		for _, p := range m.Parts {
			rows = min(rows, p.Rows)
		}
		rows = 6 * m.Parts[n.Part].Rows / rows
		u := adapter.Update{Target: adapter.Target{Module: path, Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear, Rank: 4}
		if len(m.Shape) == 4 {
			in *= m.Shape[2] * m.Shape[3]
			u.Layer = adapter.Conv
		}
		u.A, u.B = values(int64(2*i+1), 4, in), values(int64(2*i+2), rows, 4)
		alpha := []float64{0.7, 3, 16}[i%3]
		resize(&u, int64(1+i%5), alpha, alpha/float64(1+i%5))
		a.Updates = append(a.Updates, u)
	}
	return a
}

// even gives all updates one rank and one alpha.
func even(a *adapter.Adapter) *adapter.Adapter {
	for i := range a.Updates {
		resize(&a.Updates[i], 4, 8, 2)
	}
	return a
}

// attention are the modules of Flux.1 that every dialect has names for.
var attention = []string{
	"transformer.transformer_blocks.3.attn.to_q", "transformer.transformer_blocks.3.attn.to_k", "transformer.transformer_blocks.3.attn.to_v", "transformer.transformer_blocks.3.attn.to_out.0",
	"transformer.transformer_blocks.3.attn.add_q_proj", "transformer.transformer_blocks.3.attn.add_v_proj", "transformer.transformer_blocks.3.attn.to_add_out",
	"transformer.single_transformer_blocks.37.attn.to_q", "transformer.single_transformer_blocks.37.attn.to_k", "transformer.single_transformer_blocks.37.attn.to_v",
	"transformer.single_transformer_blocks.37.proj_out",
}

// denoiserOf are modules of a family's denoiser: of its first and last blocks, and outside of them.
func denoiserOf(f *naming.DiffusionFamily) []string {
	if f.Name == "flux1" {
		return attention
	}
	c := f.Denoiser()
	var out []string
	seen := map[string]bool{}
	for i := range c.Modules {
		m := &c.Modules[i]
		if m.Kind == "norm" {
			continue
		}
		// One of each name without its numbers, as the first block has it, and what is fused or swapped.
		kind := strings.Map(func(r rune) rune {
			if r >= '0' && r <= '9' {
				return '#'
			}
			return r
		}, m.Original)
		if seen[kind] {
			continue
		}
		seen[kind] = true
		for _, p := range m.Parts {
			out = append(out, c.Folder+"."+p.Module)
		}
	}
	return out
}

// notes number the reasons of refusals.
type notes []string

func (n *notes) number(reason string) int {
	i := slices.Index(*n, reason)
	if i < 0 {
		i = len(*n)
		*n = append(*n, reason)
	}
	return i + 1
}

// refusal is the cell for a refused conversion. The reason leaves out what the dialect is called.
func (n *notes) refusal(t *testing.T, to string, err error) string {
	t.Helper()
	found := finding.Of(err)
	if found == nil || !strings.HasPrefix(found.Code, "adapter.") || found.Hint == "" {
		t.Errorf("to %s: the refusal %v is no finding with a hint", to, err)
		return "?"
	}
	i := slices.IndexFunc(diffusion.Dialects, func(d diffusion.Dialect) bool { return d.Name == to })
	return fmt.Sprintf("refused [%d]", n.number(strings.TrimPrefix(found.Message, diffusion.Dialects[i].Title+" ")))
}

func (n notes) write(doc *bytes.Buffer) {
	doc.WriteString("\n")
	for i, s := range n {
		fmt.Fprintf(doc, "%d. %s\n", i+1, s)
	}
}

// unets are the families that old diffusers served.
var unets = []string{"sd15", "sd2", "sdxl", "sdxl-refiner"}

// held reports whether a dialect has names for a family's denoiser, by what the tools were made for.
func held(dialect, family string) bool {
	switch dialect {
	case "xlabs", "bfl-control":
		return family == "flux1"
	case "diffusers-old":
		return slices.Contains(unets, family)
	}
	return true
}

// pipelinePairs writes what becomes of ΔW between every two dialects, for families with equal results at once. It
// returns the number of journeys.
func pipelinePairs(t *testing.T, doc *bytes.Buffer) (trips int) {
	var tables []string
	families := map[string][]string{}
	for _, f := range naming.DiffusionFamilies() {
		a := updatesOf(f.Name, denoiserOf(f)...)
		var dialects []string
		for _, d := range pipelineDialects() {
			if held(d, f.Name) {
				dialects = append(dialects, d)
			} else if _, err := Encode(a, d, Target{Name: "out.safetensors"}); err == nil {
				t.Errorf("%s is written as %s", f.Name, d)
			}
		}
		var b strings.Builder
		fmt.Fprintf(&b, "| from \\ to | %s |\n|---|%s\n", strings.Join(dialects, " | "), strings.Repeat("---|", len(dialects)))
		for _, from := range dialects {
			fmt.Fprintf(&b, "| **%s** |", from)
			first := memoryPass(t, a, from)
			verdict(t, difference(t, present(changes(t, first, "")), changes(t, a, "")), 1)
			for _, to := range dialects {
				if from == to {
					b.WriteString(" – |")
					continue
				}
				there := memoryPass(t, first, to)
				want := present(changes(t, first, ""))
				verdict(t, difference(t, present(changes(t, memoryPass(t, there, from), "")), want), 2)
				fmt.Fprintf(&b, " %s |", verdict(t, difference(t, present(changes(t, there, "")), want), 1))
				trips++
			}
			b.WriteString("\n")
		}
		if families[b.String()] == nil {
			tables = append(tables, b.String())
		}
		families[b.String()] = append(families[b.String()], f.Name)
	}
	for _, table := range tables {
		fmt.Fprintf(doc, "\n%s:\n\n%s", strings.Join(families[table], ", "), table)
	}
	return trips
}

// TestComponents takes adapters of one component from every dialect to a PEFT folder, and back.
func TestComponents(t *testing.T) {
	for _, f := range naming.DiffusionFamilies() {
		a := updatesOf(f.Name, denoiserOf(f)...)
		for _, from := range pipelineDialects() {
			if !held(from, f.Name) || from != "kohya" && f.Name != "flux1" && f.Name != "sdxl" {
				continue // one more is enough of the others
			}
			first := memoryPass(t, a, from)
			want := present(changes(t, first, ""))
			folder, err := pass(t, first, "peft", "")
			if err != nil {
				t.Fatalf("%s: %v", f.Name, err)
			}
			back := memoryPass(t, folder, from)
			verdict(t, difference(t, present(changes(t, back, "")), want), 2)
		}
	}
	whole := updatesOf("flux1", append(slices.Clone(attention), "text_encoder.text_model.encoder.layers.3.self_attn.q_proj")...)
	if _, err := Encode(whole, "peft", Target{Name: "out"}); finding.Of(err) == nil || !strings.Contains(err.Error(), "text_encoder") {
		t.Errorf("two components: got %v", err)
	}
	// A bias has a scale of its own in other files, and that of the product in PEFT's.
	a := decoded(t, kind{"bias", nil, []string{"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight [2 4]", "lora_unet_double_blocks_0_img_attn_proj.lora_up.weight [4 2]",
		"lora_unet_double_blocks_0_img_attn_proj.alpha =1", "lora_unet_double_blocks_0_img_attn_proj.diff_b [4]"}, applied.Flux})
	folder, err := pass(t, a, "peft", "")
	if err != nil {
		t.Fatal(err)
	}
	there, ok := diffusion.Canonical(folder)
	if !ok {
		t.Fatal("no family")
	}
	there.Arch = "flux1"
	kind{"bias", nil, nil, applied.Flux}.verdict(t, there, a)
}

// A kind is something that adapters of pipelines have.
type kind struct {
	name string
	a    *adapter.Adapter // compared by its factors, or else
	from []string         // tensors of a file, compared by their effect
	base applied.Base
}

// in is the kind in a pipeline that a dialect has names for, where it needs none of its own modules.
func (k kind) in(dialect string) kind {
	const flux, sdxl = "lora_unet_double_blocks_0_img_attn_proj", "lora_unet_input_blocks_4_1_proj_in"
	if dialect != "diffusers-old" || len(k.from) == 0 || !strings.HasPrefix(k.from[0], flux) {
		return k
	}
	k.from, k.base = slices.Clone(k.from), applied.SDXL
	for i, x := range k.from {
		k.from[i] = strings.Replace(x, flux, sdxl, 1)
	}
	return k
}

// pipelineKinds are the rows of the table of what each dialect holds.
var pipelineKinds = func() []kind {
	flux := func(name string, tensors ...string) kind { return kind{name, nil, tensors, applied.Flux} }
	sdxl := func(name string, tensors ...string) kind { return kind{name, nil, tensors, applied.SDXL} }
	lora := func(name, family string, modules ...string) kind {
		return kind{name, even(updatesOf(family, modules...)), nil, nil}
	}
	of := func(module string, tensors ...string) (out []string) {
		for _, x := range tensors {
			out = append(out, module+x)
		}
		return out
	}
	parts := func(tensors ...string) []string {
		return slices.Concat(of(applied.Part+"q", tensors...), of(applied.Part+"k", tensors...), of(applied.Part+"v", tensors...))
	}
	loha := func(out string) []string {
		return []string{".hada_w1_a [" + out + " 2]", ".hada_w1_b [2 4]", ".hada_w2_a [" + out + " 2]", ".hada_w2_b [2 4]", ".alpha =1"}
	}
	return []kind{
		lora("LoRA of attention", "flux1", attention...),
		{"ranks and alphas of all kinds", updatesOf("flux1", attention...), nil, nil},
		lora("LoRA of all modules of Flux.1", "flux1", append(slices.Clone(attention), "transformer.transformer_blocks.3.ff_context.net.2", "transformer.single_transformer_blocks.37.proj_mlp",
			"transformer.norm_out.linear", "transformer.x_embedder")...),
		lora("text encoders of Flux.1", "flux1", append(slices.Clone(attention), "text_encoder.text_model.encoder.layers.3.self_attn.q_proj", "text_encoder_2.encoder.block.3.layer.1.DenseReluDense.wo")...),
		lora("text encoders of SDXL", "sdxl", "unet.add_embedding.linear_1", "text_encoder.text_model.encoder.layers.11.mlp.fc1", "text_encoder_2.text_model.encoder.layers.31.self_attn.v_proj", "text_encoder_2.text_projection"),
		lora("convolutions of SDXL (LoCon)", "sdxl", "unet.down_blocks.1.resnets.0.conv_shortcut", "unet.mid_block.resnets.1.conv2", "unet.up_blocks.0.upsamplers.0.conv"),
		sdxl("LoCon, decomposed kernel (Tucker)", of(applied.Conv, ".lora_down.weight [3 2 1 1]", ".lora_up.weight [4 3 1 1]", ".lora_mid.weight [3 3 3 3]", ".alpha =1")...),
		flux("bias of a LoRA", of(applied.Proj, ".lora_down.weight [2 4]", ".lora_up.weight [4 2]", ".diff_b [4]")...),
		flux("LoHa of a small rank", of(applied.Proj, ".hada_w1_a [4 1]", ".hada_w1_b [1 4]", ".hada_w2_a [4 1]", ".hada_w2_b [1 4]", ".alpha =0.5")...),
		flux("LoHa", of(applied.Proj, loha("4")...)...),
		flux("LoHa of a fused module", of(applied.QKV, loha("12")...)...),
		flux("LoHa of its parts", parts(loha("4")...)...),
		sdxl("LoHa, decomposed kernel", of(applied.Conv, ".hada_w1_a [3 4]", ".hada_w1_b [3 2]", ".hada_t1 [3 3 3 3]", ".hada_w2_a [3 4]", ".hada_w2_b [3 2]", ".hada_t2 [3 3 3 3]", ".alpha =2")...),
		flux("LoKr", of(applied.Proj, ".lokr_w1 [2 2]", ".lokr_w2_a [2 1]", ".lokr_w2_b [1 2]", ".alpha =0.5")...),
		flux("LoKr of whole matrices (alpha 10¹⁰)", of(applied.Proj, ".lokr_w1 [2 2]", ".lokr_w2 [2 2]", ".alpha =1e10")...),
		flux("LoKr of a fused module", of(applied.QKV, ".lokr_w1 [2 2]", ".lokr_w2_a [6 1]", ".lokr_w2_b [1 2]", ".alpha =0.5")...),
		flux("LoKr of its parts", parts(".lokr_w1 [2 2]", ".lokr_w2_a [2 1]", ".lokr_w2_b [1 2]", ".alpha =0.5")...),
		sdxl("LoKr, decomposed kernel", of(applied.Conv, ".lokr_w1 [2 2]", ".lokr_w2_a [3 2]", ".lokr_w2_b [3 1]", ".lokr_t2 [3 3 3 3]", ".alpha =1")...),
		flux("whole difference (full)", of(applied.Proj, ".diff [4 4]")...),
		flux("whole difference of a fused module", of(applied.QKV, ".diff [12 4]")...),
		flux("whole difference of a swapped module", of(applied.Final, ".diff [8 4]")...),
		sdxl("norms", of(applied.Norm, ".w_norm [6]", ".b_norm [6]")...),
		flux("replaced norms", "double_blocks.0.img_attn.norm.query_norm.scale [4]", "double_blocks.0.img_attn.proj.lora_A.weight [2 4]", "double_blocks.0.img_attn.proj.lora_B.weight [4 2]"),
		flux("(IA)³ of inputs", of(applied.QKV, ".weight [4]", ".on_input =1")...),
		flux("(IA)³ of outputs", of(applied.QKV, ".weight [12]", ".on_input =0")...),
		flux("GLoRA", of(applied.Proj, ".a1.weight [4 2]", ".a2.weight [2 4]", ".b1.weight [4 2]", ".b2.weight [2 4]", ".alpha =1")...),
		flux("GLoRA, old files", of(applied.Proj, ".a2.weight [4 2]", ".a1.weight [2 4]", ".b2.weight [4 2]", ".b1.weight [2 4]", ".alpha =1")...),
		flux("OFT", of(applied.Proj, ".oft_blocks [2 2 2]", ".alpha =0.01")...),
		flux("OFT with factors (rescale)", of(applied.Proj, ".oft_blocks [2 2 2]", ".rescale [4 1]")...),
		flux("OFT of a fused module, blocks within its parts", of(applied.QKV, ".oft_blocks [6 2 2]")...),
		flux("OFT of a fused module, blocks across", of(applied.QKV, ".oft_blocks [2 6 6]")...),
		flux("BOFT", of(applied.Proj, ".oft_blocks [2 2 2 2]")...),
		flux("BOFT of a fused module", of(applied.QKV, ".oft_blocks [2 6 2 2]")...),
		flux("OFT of inputs (oft_R)", parts(".oft_R.weight [2 1]", ".oft_R.scaled_oft =1")...),
		flux("DoRA of outputs", of(applied.QKV, ".lora_down.weight [2 4]", ".lora_up.weight [12 2]", ".dora_scale [12 1]")...),
		flux("DoRA of inputs", of(applied.Proj, ".lora_down.weight [2 4]", ".lora_up.weight [4 2]", ".dora_scale [1 4]")...),
		flux("DoRA of inputs of a fused module", of(applied.QKV, ".lora_down.weight [2 4]", ".lora_up.weight [12 2]", ".dora_scale [1 4]")...),
		flux("DoRA of inputs of its parts", parts(".lora_down.weight [2 4]", ".lora_up.weight [4 2]", ".dora_scale [1 4]")...),
		flux("DoRA over a LoHa", of(applied.Proj, append(loha("4"), ".dora_scale [4 1]")...)...),
		flux("DoRA over a LoKr", of(applied.Proj, ".lokr_w1 [2 2]", ".lokr_w2 [2 2]", ".dora_scale [1 4]")...),
	}
}()

// pipelineTable writes what each dialect can hold.
func pipelineTable(t *testing.T, doc *bytes.Buffer) {
	dialects := pipelineDialects()
	fmt.Fprintf(doc, "| | %s |\n|---|%s\n", strings.Join(dialects, " | "), strings.Repeat("---|", len(dialects)))
	var n notes
	for _, k := range pipelineKinds {
		fmt.Fprintf(doc, "| %s |", k.name)
		for _, to := range dialects {
			k, a, cell := k.in(to), k.a, ""
			if a == nil {
				a = decoded(t, k)
			}
			if there, err := k.pass(t, a, to); err == nil {
				cell = k.verdict(t, there, a)
			} else if low, _, e := lowrank.Convert(t.Context(), a, lowrank.Options{Limits: lowrank.Limits{Rank: 2}}); e != nil {
				cell = n.refusal(t, to, err)
			} else if _, err := k.pass(t, low, to); err != nil {
				cell = n.refusal(t, to, err)
			} else {
				cell = "lossy"
			}
			fmt.Fprintf(doc, " %s |", cell)
		}
		doc.WriteString("\n")
	}
	n.write(doc)
}

// decoded is the adapter of a kind's file. A few modules might be those of several families.
func decoded(t *testing.T, k kind) *adapter.Adapter {
	t.Helper()
	a, err := diffusion.Decode("file", "file", applied.Precise(t, k.from...), nil, diffusion.Options{})
	if err != nil {
		t.Fatalf("%s: %v", k.name, err)
	}
	k.name = "sdxl"
	if k.base["double_blocks.0.img_attn.qkv.weight"] != nil {
		k.name = "flux1"
	}
	a.Arch = k.name
	return a
}

// pass takes an adapter through a dialect: one that is compared by its factors by way of a file.
func (k kind) pass(t *testing.T, a *adapter.Adapter, to string) (*adapter.Adapter, error) {
	t.Helper()
	if k.base == nil {
		return pass(t, a, to, "")
	}
	return encoded(t, a, to)
}

// encoded takes an adapter through a dialect in memory.
func encoded(t *testing.T, a *adapter.Adapter, to string) (*adapter.Adapter, error) {
	t.Helper()
	f, err := diffusion.Encode(a, to, diffusion.EncodeOptions{})
	if err != nil {
		return nil, err
	}
	there, err := diffusion.Decode("file", "file", applied.Stored(t, f.Weights), f.Metadata, diffusion.Options{})
	if err != nil {
		t.Fatalf("%s: %v", to, err)
	}
	there.Arch = a.Arch // a few modules might be those of several families
	return there, nil
}

// memoryPass is encoded for what no dialect refuses.
func memoryPass(t *testing.T, a *adapter.Adapter, to string) *adapter.Adapter {
	t.Helper()
	there, err := encoded(t, a, to)
	if err != nil {
		t.Fatalf("%s to %s: %v", a.Arch, to, err)
	}
	return there
}

// verdict compares an adapter with what it was made from, and with itself after the way back.
func (k kind) verdict(t *testing.T, there, a *adapter.Adapter) string {
	t.Helper()
	if k.base == nil {
		return verdict(t, difference(t, present(changes(t, there, "")), changes(t, a, "")), 1)
	}
	want := applied.To(t, a, k.base)
	back := there
	if slices.Contains(pipelineDialects(), a.Dialect) {
		var err error
		if back, err = k.pass(t, there, a.Dialect); err != nil {
			t.Errorf("%s: %s does not go back to %s: %v", k.name, there.Dialect, a.Dialect, err)
			return "?"
		}
	}
	worst := 0.0
	for i, x := range []*adapter.Adapter{there, back} {
		got := applied.To(t, x, k.base)
		for name, w := range want {
			for j := range w {
				d := math.Abs(got[name][j] - w[j])
				if d > 4e-6 || math.IsNaN(d) {
					t.Fatalf("%s as %s: %s[%d] is %v, expected %v", k.name, there.Dialect, name, j, got[name][j], w[j])
				}
				if i == 0 {
					worst = max(worst, d)
				}
			}
		}
	}
	if worst < 1e-12 {
		return "exact"
	}
	return "rounded"
}

// present leaves out changes of nothing, which fill up what a tool loads as a whole.
func present(all map[string]change) map[string]change {
	for name, c := range all {
		if !slices.ContainsFunc(c.delta, func(x float64) bool { return x != 0 }) {
			delete(all, name)
		}
	}
	return all
}

const pipelinePreamble = `
## Diffusion pipelines

- **kohya**: sd-scripts, musubi-tuner and LyCORIS; the names are those that each family's trainers use.
- **diffusers**: the current form, with PEFT's configurations in the metadata. **diffusers-old**: attention
  processors and layers nested in them, up to version 0.21.
- **onetrainer**: its "legacy" output. Of a unet it is a kohya file in the names of diffusers.
- **lycoris**: a LyCORIS wrapper of one model, as SimpleTuner and old versions of ai-toolkit write it.
- **xlabs**: for x-flux, which has one rank for a file and all projections of a block or none: the rest is filled
  up with zeros. x-flux multiplies both factors by the strength, so that other strengths than 1 act squared.
- **bfl-control**: names without a prefix, differences of biases, and replaced norms.
- PEFT folders hold one component, and go to and from all of these.

### From any to any

An adapter of the denoiser with fused, swapped and plain modules or convolutions, ranks and alphas of all kinds
(of Flux.1, its attention), from the dialect of the row to that of the column. Other dialects have no names for
the family.
`

const holdsPreamble = `Compared by what becomes of a base's weights. **lossy**: there is no exact form, and with --rank or --energy the largest
singular values are kept; what each module loses is printed. (IA)³, OFT, GLoRA and DoRA depend on the base's weights,
so that no rank helps them. Modules that are fused, cut or swapped on the way show where an algorithm can follow.

`

package peft

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// f32 makes a float32 tensor with the values 1, 2, 3, … of a shape.
func f32(name string, shape ...int64) tensor.Tensor {
	n, _ := tensor.Shape(shape).Elements()
	b := make([]byte, 4*n)
	for i := range n {
		binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(float32(i+1)))
	}
	return tensor.Tensor{Spec: tensor.Spec{Name: name, DType: tensor.F32, Shape: shape}, Src: bytes.NewReader(b), Size: int64(len(b))}
}

// pairOf are the factors of a module of 4 outputs and 6 inputs.
func pairOf(module string, rank int64) []tensor.Tensor {
	return []tensor.Tensor{f32("base_model.model."+module+".lora_A.weight", rank, 6), f32("base_model.model."+module+".lora_B.weight", 4, rank)}
}

func decode(cfg string, opt Options, ts ...tensor.Tensor) (*adapter.Adapter, error) {
	if !strings.HasPrefix(strings.TrimPrefix(cfg, "\ufeff"), "{") {
		cfg = `{"peft_type": "LORA", "base_model_name_or_path": "x/y"` + cfg + `}`
	}
	return Decode("a", "a/adapter_config.json", []byte(cfg), "a/adapter_model.safetensors", ts, opt)
}

func TestScaleSources(t *testing.T) {
	for _, c := range []struct {
		cfg, module string
		rank        int64
		value       float64
		source      string
	}{
		{`, "r": 8, "lora_alpha": 16`, "m.q_proj", 8, 2, "lora_alpha 16 / r 8"},
		{`, "r": 16, "lora_alpha": 8, "use_rslora": true`, "m.q_proj", 16, 2, "lora_alpha 8 / sqrt(r 16), use_rslora"},
		{`, "r": 3, "lora_alpha": 2.5`, "m.q_proj", 3, 2.5 / 3, "lora_alpha 2.5 / r 3"},
		{`, "r": 8, "lora_alpha": 16, "alpha_pattern": {"q_proj": 4}`, "m.q_proj", 8, 0.5, `alpha_pattern "q_proj" 4 / r 8`},
		{`, "r": 8, "lora_alpha": 16, "alpha_pattern": {"proj": 4}`, "m.q_proj", 8, 2, "lora_alpha 16 / r 8"},
		{`, "r": 8, "lora_alpha": 16, "alpha_pattern": {"m\\.[kq]_proj": 4, "q_proj": 1}`, "m.q_proj", 8, 0.5, `alpha_pattern "m\\.[kq]_proj" 4 / r 8`},
		{`, "r": 8, "lora_alpha": 16, "alpha_pattern": {"^q_proj": 4}`, "m.q_proj", 8, 2, "lora_alpha 16 / r 8"},
		{`, "r": 8, "lora_alpha": 16, "alpha_pattern": {"^m.q_proj": 4}`, "m.q_proj", 8, 0.5, `alpha_pattern "^m.q_proj" 4 / r 8`},
		{`, "r": 8, "lora_alpha": 16, "rank_pattern": {"q_proj": 2}`, "m.q_proj", 2, 8, "lora_alpha 16 / r 2"},
		{`, "lora_alpha": 16`, "m.q_proj", 2, 8, "lora_alpha 16 / r 2"},
	} {
		a, err := decode(c.cfg, Options{}, pairOf(c.module, c.rank)...)
		if err != nil {
			t.Errorf("%s: %v", c.cfg, err)
			continue
		}
		if s := a.Updates[0].Scale; s.Value != c.value || s.Source != c.source || s.Rank != int(c.rank) {
			t.Errorf("%s: got %+v, expected %v from %s", c.cfg, s, c.value, c.source)
		}
	}
}

func TestRefusedConfigurations(t *testing.T) {
	const ok = `, "r": 2, "lora_alpha": 4`
	for cfg, code := range map[string]string{
		`{"peft_type": "GLORA"}`:                      "adapter.unsupported_feature",
		`{"peft_type": "PROMPT_TUNING"}`:              "adapter.unsupported_feature",
		`{"fine_tune_type": "lora"}`:                  "adapter.wrong_ecosystem",
		`{"peft_type": 1}`:                            "adapter.bad_config",
		`{"r": 1, "r": 1}`:                            "adapter.duplicate_key",
		`{"r": 1} x`:                                  "adapter.bad_json",
		`{"r": NaN}`:                                  "adapter.bad_json",
		`{"a":` + strings.Repeat("[", 500):            "adapter.bad_json",
		`, "r": 2`:                                    "adapter.missing_alpha",
		`, "r": 2, "lora_alpha": "4"`:                 "adapter.bad_alpha",
		`, "r": 2, "lora_alpha": true`:                "adapter.bad_alpha",
		`, "r": 2, "lora_alpha": 1e309`:               "adapter.bad_alpha",
		`, "r": 0, "lora_alpha": 4`:                   "adapter.bad_rank",
		`, "r": 2.5, "lora_alpha": 4`:                 "adapter.bad_rank",
		`, "r": "2", "lora_alpha": 4`:                 "adapter.bad_rank",
		`, "r": 3, "lora_alpha": 4`:                   "adapter.rank_mismatch",
		`, "r": 1e400, "lora_alpha": 4`:               "adapter.bad_rank",
		ok + `, "rank_pattern": {"q": -1}`:            "adapter.bad_rank",
		ok + `, "alpha_pattern": {"q": "x"}`:          "adapter.bad_alpha",
		ok + `, "alpha_pattern": {"(?=q)":1}`:         "adapter.bad_regex",
		ok + `, "target_modules": "(?<!a)q"`:          "adapter.bad_regex",
		ok + `, "target_modules": {"a": 1}`:           "adapter.bad_config",
		ok + `, "use_dora": "yes"`:                    "adapter.bad_config",
		ok + `, "use_dora": true`:                     "adapter.missing_magnitude",
		ok + `, "layer_replication": [[0,1]]`:         "adapter.unsupported_feature",
		ok + `, "use_qalora": true`:                   "adapter.unsupported_feature",
		ok + `, "arrow_config": {"k": 1}`:             "adapter.unsupported_feature",
		ok + `, "kasa_config": {"k": 1}`:              "adapter.unsupported_feature",
		ok + `, "modules_to_save": ["head"]`:          "adapter.missing_target",
		ok + `, "init_lora_weights": "pissa_niter_4"`: "adapter.unsupported_feature",
		ok + `, "init_lora_weights": "corda"`:         "adapter.unsupported_feature",
		ok + `, "init_lora_weights": "loftq"`:         "adapter.unsupported_feature",
		ok + `, "trainable_token_indices": [1]`:       "adapter.missing_target",
		ok + `, "trainable_token_indices": [-1]`:      "adapter.bad_config",
		ok + `, "use_bdlora": {"nblocks": 0}`:         "adapter.bad_config",
	} {
		_, err := decode(cfg, Options{}, pairOf("m.q", 2)...)
		if f := finding.Of(err); f == nil || f.Code != code {
			t.Errorf("%.60s: got %v, expected %s", cfg, err, code)
		}
	}
}

func TestWarnings(t *testing.T) {
	const ok = `, "r": 2, "lora_alpha": 4`
	for cfg, code := range map[string]string{
		`, "lora_alpha": 4`:                                                         "adapter.missing_rank",
		`, "r": 2, "lora_alpha": 0`:                                                 "adapter.alpha_zero",
		`, "r": 2, "lora_alpha": -4`:                                                "adapter.alpha_negative",
		`, "r": 2, "lora_alpha": 4, "use_new": 1`:                                   "adapter.unknown_config_key",
		`{"r": 2, "lora_alpha": 4, "peft_type": "LORA"}`:                            "adapter.base_mismatch",
		`{"r": 2, "lora_alpha": 4, "base_model_name_or_path": "x/y"}`:               "adapter.missing_peft_type",
		"\ufeff{\"r\": 2, \"lora_alpha\": 4}":                                       "adapter.bad_json",
		ok + `, "target_modules": ["q", "gone"]`:                                    "adapter.missing_target",
		ok + `, "target_modules": "(a+)+q"`:                                         "adapter.slow_regex",
		ok + `, "bias": "all"`:                                                      "adapter.missing_target",
		ok + `, "init_lora_weights": "lora_ga"`:                                     "adapter.residual_base",
		ok + `, "rank_pattern": {"m.*": 3, "q": 2}`:                                 "adapter.pattern_order",
		ok + `, "auto_mapping": {"parent_library": "transformers_modules.a.model"}`: "adapter.remote_code",
	} {
		a, err := decode(cfg, Options{}, pairOf("m.q", 2)...)
		if err != nil {
			t.Errorf("%.60s: %v", cfg, err)
			continue
		}
		if !slices.ContainsFunc(a.Findings, func(f finding.Finding) bool { return f.Code == code && f.Level == finding.Warning }) {
			t.Errorf("%.60s: findings %v, expected %s", cfg, a.Findings, code)
		}
	}
	a, err := decode(ok+`, "use_new": false, "newer": null, "list": []`, Options{}, pairOf("m.q", 2)...)
	if err != nil || len(a.Findings) != 0 {
		t.Errorf("switched-off keys: %v, %v", err, a.Findings)
	}
}

func TestTensorErrors(t *testing.T) {
	const cfg = `, "r": 2, "lora_alpha": 4`
	ints := pairOf("m", 2)
	ints[0].DType = tensor.I32
	for name, c := range map[string]struct {
		ts   []tensor.Tensor
		code string
	}{
		"nothing":           {nil, "adapter.empty_adapter"},
		"A alone":           {pairOf("m", 2)[:1], "adapter.missing_pair"},
		"B alone":           {pairOf("m", 2)[1:], "adapter.missing_pair"},
		"bias alone":        {[]tensor.Tensor{f32("m.lora_B.bias", 4)}, "adapter.missing_pair"},
		"transposed A":      {[]tensor.Tensor{f32("m.lora_A.weight", 6, 2), f32("m.lora_B.weight", 4, 2)}, "adapter.shape_mismatch"},
		"other ranks":       {[]tensor.Tensor{f32("m.lora_A.weight", 2, 6), f32("m.lora_B.weight", 4, 3)}, "adapter.rank_mismatch"},
		"vector A":          {[]tensor.Tensor{f32("m.lora_A.weight", 2), f32("m.lora_B.weight", 4, 2)}, "adapter.shape_mismatch"},
		"rank 0":            {[]tensor.Tensor{f32("m.lora_A.weight", 0, 6), f32("m.lora_B.weight", 4, 0)}, "adapter.rank_zero"},
		"no outputs":        {[]tensor.Tensor{f32("m.lora_A.weight", 2, 6), f32("m.lora_B.weight", 0, 2)}, "adapter.shape_mismatch"},
		"integers":          {ints, "adapter.bad_dtype"},
		"twice":             {append(pairOf("m", 2), f32("m.lora_A.default.weight", 2, 6)), "adapter.duplicate_target"},
		"two adapters":      {[]tensor.Tensor{f32("m.lora_A.x.weight", 2, 6), f32("m.lora_B.y.weight", 4, 2)}, "adapter.unexpected_tensor"},
		"kohya":             {[]tensor.Tensor{f32("lora_unet_x.lora_down.weight", 2, 6)}, "adapter.wrong_ecosystem"},
		"MLX":               {[]tensor.Tensor{f32("m.lora_a", 6, 2)}, "adapter.wrong_ecosystem"},
		"stray":             {append(pairOf("m", 2), f32("base_model.model.foo.bar", 1)), "adapter.unexpected_tensor"},
		"stray weight":      {append(pairOf("m", 2), f32("base_model.model.m2.weight", 4, 6)), "adapter.unexpected_tensor"},
		"magnitude":         {append(pairOf("m", 2), f32("m.lora_magnitude_vector", 4)), "adapter.unsupported_feature"},
		"KaSA":              {append(pairOf("m", 2), f32("m.lora_diag", 2)), "adapter.unsupported_feature"},
		"wrapped twice":     {[]tensor.Tensor{f32("m.base_layer.lora_A.weight", 2, 6), f32("m.base_layer.lora_B.weight", 4, 2)}, "adapter.unexpected_tensor"},
		"inner part":        {[]tensor.Tensor{f32("m.base_layer.x.lora_A.weight", 2, 6), f32("m.base_layer.x.lora_B.weight", 4, 2)}, "adapter.unexpected_tensor"},
		"conv kernel of B":  {[]tensor.Tensor{f32("m.lora_A.weight", 2, 3, 3, 3), f32("m.lora_B.weight", 4, 2, 3, 3)}, "adapter.shape_mismatch"},
		"grouped conv":      {[]tensor.Tensor{f32("m.lora_A.weight", 2, 3, 3, 3), f32("m.lora_B.weight", 4, 1, 1, 1)}, "adapter.unsupported_feature"},
		"alpha of nothing":  {append(pairOf("m", 2), f32("n.alpha")), "adapter.unexpected_tensor"},
		"alpha of two":      {append(pairOf("m", 2), f32("m.alpha", 2)), "adapter.bad_alpha"},
		"tokens, no ids":    {[]tensor.Tensor{f32("e.token_adapter.trainable_tokens_delta", 2, 3)}, "adapter.missing_target"},
		"short bias":        {append(pairOf("m", 2), f32("m.lora_B.bias", 3)), "adapter.shape_mismatch"},
		"nameless":          {[]tensor.Tensor{f32("lora_A.weight", 2, 6)}, "adapter.unexpected_tensor"},
		"odd end of a name": {[]tensor.Tensor{f32("m.lora_A.a.b.weight", 2, 6)}, "adapter.unexpected_tensor"},
	} {
		_, err := decode(cfg, Options{}, c.ts...)
		if f := finding.Of(err); f == nil || f.Code != c.code {
			t.Errorf("%s: got %v, expected %s", name, err, c.code)
		}
	}
}

// TestNames checks that old and new spellings of a name end at the same module.
func TestNames(t *testing.T) {
	for name, want := range map[string]key{
		"base_model.model.a.b.lora_A.weight":                      {module: "a.b", role: roleA},
		"base_model.model.base_model.model.a.lora_B.weight":       {module: "a", role: roleB},
		"a.lora_B.default.weight":                                 {module: "a", role: roleB, name: "default"},
		"a.lora_B.default.bias":                                   {module: "a", role: roleBias, name: "default"},
		"a.lora_embedding_A":                                      {module: "a", role: roleEmbedA},
		"a.lora_embedding_B.default":                              {module: "a", role: roleEmbedB, name: "default"},
		"a.lora_magnitude_vector":                                 {module: "a", role: roleMagnitude},
		"a.lora_magnitude_vector.default.weight":                  {module: "a", role: roleMagnitude, name: "default"},
		"a.base_layer.base_layer.lora_A.weight":                   {module: "a", role: roleA, depth: 2},
		"a.base_layer.out_proj.lora_A.weight":                     {module: "a.out_proj", role: roleA, inner: true, outer: "a"},
		"a.base_layer.weight":                                     {module: "a", param: "weight", role: roleValue, based: true},
		"a.modules_to_save.default.b.weight":                      {module: "a.b", param: "weight", role: roleValue},
		"a.original_module.weight":                                {module: "a", param: "weight", role: roleOriginal},
		"a.token_adapter.trainable_tokens_delta":                  {module: "a", role: roleTokens},
		"a.token_adapter.base_layer.weight":                       {module: "a", param: "weight", role: roleValue, based: true},
		"base_model.model.a.lora_monteclora_sampler.x.std_prior_": {module: "a", role: roleIgnored},
		"optimizer.state.0":                                       {module: "optimizer.state", param: "0", role: roleIgnored},
	} {
		if got := parseKey(name); got != want {
			t.Errorf("%s: got %+v, expected %+v", name, got, want)
		}
	}
}

// TestOrder checks that whole parameters go before what is added to them, and that the rest keeps the
// order of the file.
func TestOrder(t *testing.T) {
	ts := append(pairOf("b", 2), pairOf("a", 2)...)
	ts = append(ts, f32("b.base_layer.weight", 4, 6), f32("head.weight", 3, 6), f32("norm.weight", 6), f32("e.token_adapter.trainable_tokens_delta", 2, 6))
	a, err := decode(`, "r": 2, "lora_alpha": 4, "modules_to_save": ["head"], "trainable_token_indices": {"e": [9, 4]}`, Options{}, ts...)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, u := range a.Updates {
		got = append(got, fmt.Sprint(u.Module, " ", u.Kind))
	}
	if want := []string{"b replace", "head replace", "norm replace", "e rows", "b low-rank", "a low-rank"}; !slices.Equal(got, want) {
		t.Errorf("got %q, expected %q", got, want)
	}
	if !slices.Equal(a.Updates[3].Index, []int64{9, 4}) {
		t.Errorf("ids are %v", a.Updates[3].Index)
	}
}

// TestAlphaTwice checks alpha tensors beside a configuration: the first element of the test's tensors is 1.
func TestAlphaTwice(t *testing.T) {
	for _, c := range []struct {
		cfg      string
		rank     int64
		conflict bool
	}{
		{`, "r": 2, "lora_alpha": 1`, 2, false}, // the same number
		{`, "r": 4, "lora_alpha": 1, "use_rslora": true`, 4, false},
		{`, "r": 4, "lora_alpha": 0.5, "use_rslora": true`, 4, false}, // the same scale
		{`, "r": 2, "lora_alpha": 8, "alpha_pattern": {"m": 1}`, 2, false},
		{`, "r": 8, "lora_alpha": 1, "rank_pattern": {"m": 2}`, 2, false},
		{`, "r": 2, "lora_alpha": 4`, 2, true},
		{`, "r": 2, "lora_alpha": 1, "alpha_pattern": {"m": 4}`, 2, true},
		{`, "r": 4, "lora_alpha": 2, "use_rslora": true`, 4, true},
		{`, "r": 8, "lora_alpha": -1, "rank_pattern": {"m": 2}`, 2, true},
	} {
		cfg, rank, conflict := c.cfg, c.rank, c.conflict
		a, err := decode(cfg, Options{}, append(pairOf("m", rank), f32("base_model.model.m.alpha", 1))...)
		if err != nil {
			t.Errorf("%s: %v", cfg, err)
			continue
		}
		warned := slices.ContainsFunc(a.Findings, func(f finding.Finding) bool {
			return f.Code == "adapter.alpha_conflict" && f.Level == finding.Warning
		})
		if warned != conflict || (a.Doubt != nil) != conflict {
			t.Errorf("%s: warned %v, doubt %v", cfg, warned, a.Doubt)
		}
		if conflict && (a.Doubt.Code != "adapter.alpha_conflict" || a.Doubt.Level != finding.Error || a.Doubt.Hint == "") {
			t.Errorf("%s: doubt %+v", cfg, a.Doubt)
		}
	}
}

// TestAttention checks the names and the doubled scale of nn.MultiheadAttention.
func TestAttention(t *testing.T) {
	ts := []tensor.Tensor{f32("mha.lora_A.weight", 2, 4), f32("mha.lora_B.weight", 12, 2), f32("mha.base_layer.out_proj.lora_A.weight", 2, 4), f32("mha.base_layer.out_proj.lora_B.weight", 4, 2)}
	a, err := decode(`, "r": 2, "lora_alpha": 3`, Options{}, ts...)
	if err != nil {
		t.Fatal(err)
	}
	in, out := a.Updates[0], a.Updates[1]
	if in.Target.String() != "mha.in_proj_weight" || in.Scale.Value != 1.5 || out.Target.String() != "mha.out_proj.weight" || out.Scale.Value != 3 {
		t.Errorf("got %v %v, %v %v", in.Target, in.Scale, out.Target, out.Scale)
	}
	if want := "lora_alpha 3 / r 2 × 2 (PEFT applies the out_proj of an attention module twice)"; out.Scale.Source != want {
		t.Errorf("source is %q", out.Scale.Source)
	}
}

// TestExperts checks how stacks are taken apart: the packing of B, the orientation by PEFT version, and the
// nesting of parameters.
func TestExperts(t *testing.T) {
	ts := []tensor.Tensor{f32("x.base_layer.lora_A.weight", 6, 3), f32("x.base_layer.lora_B.weight", 1, 6), f32("x.lora_A.weight", 6, 5), f32("x.lora_B.weight", 1, 6)}
	cfg := `, "r": 2, "lora_alpha": 4, "target_parameters": ["x.down_proj", "x.gate_up_proj"], "peft_version": "%s"`
	yes, no := true, false
	for _, c := range []struct {
		version string
		opt     Options
		swapped bool
		sure    bool
		b       []float32 // of expert 1
	}{
		{"0.18.1", Options{}, true, true, []float32{2, 5}},
		{"0.19.0", Options{Transposed: &yes}, false, true, []float32{2, 5}},
		{"0.19.0", Options{Transposed: &no}, true, true, []float32{2, 5}},
		{"0.19.1", Options{Transposed: &yes}, true, true, []float32{2, 5}},
		{"0.20.1.dev0@UNKNOWN", Options{Transposed: &no}, false, true, []float32{2, 5}},
		{"0.20.0", Options{}, false, false, []float32{2, 5}},
		{"1.0", Options{Transposed: &yes}, true, true, []float32{2, 5}},
		{"0.18.1", Options{MoEB: UnslothLayout}, true, true, []float32{3, 4}},
	} {
		a, err := decode(fmt.Sprintf(cfg, c.version), c.opt, ts...)
		if err != nil {
			t.Fatal(err)
		}
		if len(a.Updates) != 6 {
			t.Fatalf("%d updates", len(a.Updates))
		}
		u, v := a.Updates[1], a.Updates[4]
		if u.Param != "gate_up_proj" || v.Param != "down_proj" || u.A.Cols != 3 || v.A.Cols != 5 || u.Expert != 1 || u.Experts != 3 {
			t.Errorf("got %v [%d] and %v [%d]", u.Target, u.A.Cols, v.Target, v.A.Cols)
		}
		if u.Swapped != c.swapped || (u.Unsure == "") != c.sure || u.Scale.Value != 2 {
			t.Errorf("%s: swapped %v, unsure %q, scale %v", c.version, u.Swapped, u.Unsure, u.Scale)
		}
		if b := load(t, u.B); !slices.Equal(b, c.b) {
			t.Errorf("%s: B is %v, expected %v", c.version, b, c.b)
		}
		if got, want := load(t, u.A), []float32{7, 8, 9, 10, 11, 12}; !slices.Equal(got, want) {
			t.Errorf("A is %v, expected %v", got, want)
		}
	}
	a, err := decode(fmt.Sprintf(cfg, "0.18.0"), Options{ParameterOrder: []string{"down_proj", "gate_up_proj"}}, ts...)
	if err != nil || a.Updates[0].Param != "down_proj" {
		t.Errorf("the stated order is not used: %v", err)
	}
	odd := strings.ReplaceAll(fmt.Sprintf(cfg, "0.18.0"), "down_proj", "weird")
	if _, err := decode(odd, Options{}, ts...); finding.Of(err) == nil || !strings.Contains(err.Error(), "weird") {
		t.Errorf("got %v", err)
	}
}

// TestBlockDiagonal expands compact factors: rows in chunks, each over its own columns.
func TestBlockDiagonal(t *testing.T) {
	ts := []tensor.Tensor{f32("lin.lora_A.weight", 2, 2), f32("lin.lora_B.weight", 2, 2)}
	a, err := decode(`, "r": 2, "lora_alpha": 2, "use_bdlora": {"nblocks": 2, "target_modules_bd_a": ["li"]}`, Options{}, ts...)
	if err != nil {
		t.Fatal(err)
	}
	if u := a.Updates[0]; u.A.Cols != 4 || !slices.Equal(load(t, u.A), []float32{1, 2, 0, 0, 0, 0, 3, 4}) {
		t.Errorf("A is %d wide: %v", u.A.Cols, load(t, u.A))
	}
}

// FuzzDecode feeds arbitrary configurations and tensor names: no panic, and what decodes can be encoded and
// decoded again, or is refused with a finding.
func FuzzDecode(f *testing.F) {
	f.Add(`{"peft_type":"LORA","r":2,"lora_alpha":4,"target_modules":["q"]}`, "base_model.model.a.q.lora_A.weight", "base_model.model.a.q.lora_B.weight", uint8(2))
	f.Add(`{"r":1,"lora_alpha":4,"target_parameters":["x.w"],"peft_version":"0.19.1"}`, "x.lora_A.weight", "x.lora_B.weight", uint8(3))
	f.Add(`{"lora_alpha":-1e3,"alpha_pattern":{"^a.*":3,"(b|c)":2},"use_bdlora":{"nblocks":2,"target_modules_bd_a":[""]}}`, "a.lora_A.d.weight", "a.lora_B.d.weight", uint8(4))
	f.Add(`{"lora_alpha":1,"trainable_token_indices":{"e":[1,2]},"modules_to_save":["a"]}`, "e.token_adapter.trainable_tokens_delta", "a.weight", uint8(2))
	f.Fuzz(func(t *testing.T, cfg, first, second string, rank uint8) {
		r := int64(rank % 16)
		ts := []tensor.Tensor{f32(first, r, 6), f32(second, 4, r)}
		a, err := decode("{"+strings.TrimPrefix(cfg, "{"), Options{}, ts...)
		if err != nil {
			if finding.Of(err) == nil {
				t.Fatalf("not a finding: %v", err)
			}
			return
		}
		files, err := Encode(a, EncodeOptions{})
		if err != nil {
			if finding.Of(err) == nil {
				t.Fatalf("not a finding: %v", err)
			}
			return
		}
		for i := range a.Updates {
			u := &a.Updates[i]
			if math.IsNaN(u.Scale.Value) || u.A.Rows != u.B.Cols {
				t.Fatalf("%+v", u)
			}
		}
		if len(files.Weights) == 0 {
			t.Fatal("nothing was written")
		}
	})
}

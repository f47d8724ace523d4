// Package mlx reads LoRA adapters with the tensor names of Apple's MLX: MODULE.lora_a is [in, r] and
// MODULE.lora_b is [r, out], both transposed against PEFT.
package mlx

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/evidence"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

const configName = "adapter_config.json"

// weightNames are the weight files a folder may hold: MLX's own, and PEFT's with MLX tensors in it.
var weightNames = []string{"adapters.safetensors", "adapter_model.safetensors"}

// Detect finds the tensor names of MLX.
func Detect(s *evidence.Subject) string {
	if s.Format != "safetensors" {
		return ""
	}
	return s.Ending(".lora_a", ".lora_b")
}

func locate(path string) (config, file string) {
	st, err := os.Stat(path)
	if err != nil {
		return "", ""
	}
	if !st.IsDir() {
		return filepath.Join(filepath.Dir(path), configName), path
	}
	for _, n := range weightNames {
		if s, err := os.Stat(filepath.Join(path, n)); err == nil && s.Mode().IsRegular() {
			return filepath.Join(path, configName), filepath.Join(path, n)
		}
	}
	return filepath.Join(path, configName), ""
}

// Open reads an adapter folder or weight file. Its factors are read when they are loaded; Close the
// adapter after that. DoRA and stacks of experts are refused.
func Open(path string) (*adapter.Adapter, error) {
	config, file := locate(path)
	if file == "" {
		return nil, finding.Errorf("adapter.missing_file", path, "there are no MLX weights here").Expected("none of them", strings.Join(weightNames, ", "))
	}
	c, err := readConfig(config)
	if err != nil {
		return nil, err
	}
	m, err := safetensors.Open(file)
	if err != nil {
		return nil, err
	}
	a, err := decode(path, file, c, m.Tensors())
	if err != nil {
		m.Close()
		return nil, err
	}
	a.Findings = append(a.Findings, m.Findings()...)
	a.OnClose(m.Close)
	return a, nil
}

// A settings is what scales the updates: MLX's own direct multiplier, or PEFT's alpha.
type settings struct {
	FineTune   string `json:"fine_tune_type"`
	Parameters *struct {
		Scale *float64 `json:"scale"`
	} `json:"lora_parameters"`
	Alpha  *float64 `json:"lora_alpha"`
	RSLoRA bool     `json:"use_rslora"`
	Base   string   `json:"base_model_name_or_path"`
	Model  string   `json:"model"`
}

func readConfig(file string) (*settings, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, finding.Errorf("adapter.missing_config", file, "an MLX adapter needs its configuration for the scale")
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 16<<20))
	if err != nil {
		return nil, finding.Errorf("adapter.bad_json", file, "%v", err)
	}
	c := &settings{}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, finding.Errorf("adapter.bad_json", file, "%v", err)
	}
	switch {
	case c.FineTune != "" && c.FineTune != "lora":
		return nil, finding.Errorf("adapter.unsupported_feature", file, "fine_tune_type %q is not supported", c.FineTune).Expected(strconv.Quote(c.FineTune), `"lora"`)
	case c.Parameters != nil && c.Parameters.Scale != nil, c.Alpha != nil:
		return c, nil
	}
	return nil, finding.Errorf("adapter.missing_alpha", file, "neither lora_parameters.scale nor lora_alpha is stated")
}

func (c *settings) scale(rank int) adapter.Scale {
	if c.Parameters != nil && c.Parameters.Scale != nil {
		s := *c.Parameters.Scale
		return adapter.Scale{Value: s, Alpha: s * float64(rank), Rank: rank, Source: fmt.Sprintf("lora_parameters.scale %g", s)}
	}
	s := adapter.Scale{Value: *c.Alpha / float64(rank), Alpha: *c.Alpha, Rank: rank, Source: fmt.Sprintf("lora_alpha %g / r %d", *c.Alpha, rank)}
	if c.RSLoRA {
		s.Value = *c.Alpha / math.Sqrt(float64(rank))
		s.Source = fmt.Sprintf("lora_alpha %g / sqrt(r %d), use_rslora", *c.Alpha, rank)
	}
	return s
}

func decode(path, file string, c *settings, ts []tensor.Tensor) (*adapter.Adapter, error) {
	a := &adapter.Adapter{Path: path, Dialect: "mlx", Space: naming.HF, BaseModel: c.Base}
	if a.BaseModel == "" {
		a.BaseModel = c.Model
	}
	byName := map[string]*tensor.Tensor{}
	for i := range ts {
		byName[ts[i].Name] = &ts[i]
	}
	for i := range ts {
		t := &ts[i]
		module, isA := strings.CutSuffix(t.Name, ".lora_a")
		other, isB := strings.CutSuffix(t.Name, ".lora_b")
		switch {
		case isB && byName[other+".lora_a"] == nil, isA && byName[module+".lora_b"] == nil:
			return nil, finding.Errorf("adapter.missing_pair", file, "the other factor of the pair is missing").In(t.Name)
		case isA:
			u, err := pair(file, c, module, t, byName[module+".lora_b"])
			if err != nil {
				return nil, err
			}
			a.Updates = append(a.Updates, u)
		case !isB:
			return nil, finding.Errorf("adapter.unexpected_tensor", file, "neither lora_a nor lora_b of a module").In(t.Name)
		}
	}
	if len(a.Updates) == 0 {
		return nil, finding.Errorf("adapter.empty_adapter", file, "the file holds no update")
	}
	return a, nil
}

func pair(file string, c *settings, module string, ta, tb *tensor.Tensor) (adapter.Update, error) {
	u := adapter.Update{Target: adapter.Target{Module: module, Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear, Tensors: []string{ta.Name, tb.Name}}
	fail := func(reason, format string, args ...any) (adapter.Update, error) {
		return u, finding.Errorf("adapter."+reason, file, format, args...).In(ta.Name).
			Expected(fmt.Sprintf("%s %v, %s %v", ta.DType, ta.Shape, tb.DType, tb.Shape), "lora_a [in, r], lora_b [r, out]")
	}
	switch {
	case !ta.DType.IsFloat() || !tb.DType.IsFloat():
		return fail("bad_dtype", "the factors are not of a floating-point type")
	case len(ta.Shape) != 2 || len(tb.Shape) != 2:
		return fail("unsupported_feature", "the factors are no matrices; stacks of experts are not supported")
	case ta.Shape[1] == 0:
		return fail("rank_zero", "the rank is 0")
	case ta.Shape[1] != tb.Shape[0]:
		return fail("rank_mismatch", "the factors have different ranks")
	case ta.Shape[0] == 0 || tb.Shape[1] == 0:
		return fail("shape_mismatch", "a factor is empty")
	}
	// An embedding's lora_a is [vocab, r]: transposed it is what the canonical form wants.
	if strings.HasSuffix(module, "embed_tokens") {
		u.Layer = adapter.Embedding
	}
	u.A = adapter.FromTensor(*ta, ta.Shape[0], ta.Shape[1], adapter.ReadFloats).Transpose()
	u.B = adapter.FromTensor(*tb, tb.Shape[0], tb.Shape[1], adapter.ReadFloats).Transpose()
	u.Rank = int(ta.Shape[1])
	u.Scale = c.scale(u.Rank)
	return u, nil
}

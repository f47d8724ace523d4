package mlx

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
)

// A settings is what matters of adapter_config.json: the kind of adapter, and its scale, which is MLX's
// own direct multiplier or, in a file that PEFT or a converter made, PEFT's alpha.
type settings struct {
	FineTune   string `json:"fine_tune_type"`
	Parameters *struct {
		Scale *float64 `json:"scale"`
		Alpha *float64 `json:"alpha"`
	} `json:"lora_parameters"`
	Alpha  *float64 `json:"lora_alpha"`
	RSLoRA bool     `json:"use_rslora"`
	Base   string   `json:"base_model_name_or_path"`
	Model  string   `json:"model"`
	// Layers is the name that num_layers had in the versions that multiply the scale by alpha / rank.
	Layers *float64 `json:"lora_layers"`
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
	case c.FineTune != "" && c.FineTune != "lora" && c.FineTune != "dora":
		return nil, finding.Errorf("adapter.unsupported_feature", file, "fine_tune_type %q is not supported", c.FineTune).Expected(strconv.Quote(c.FineTune), `"lora" or "dora"`)
	case c.Parameters != nil && (c.Parameters.Scale != nil || c.Parameters.Alpha != nil):
		return c, nil
	case c.Alpha != nil:
		return c, nil
	}
	return nil, finding.Errorf("adapter.missing_alpha", file, "neither lora_parameters.scale nor lora_alpha is stated")
}

// twice compares scale and alpha where a configuration has both: mlx-lm takes the scale alone, Ollama alpha / rank.
// Checks and merges go by mlx-lm, whose file it is.
func (c *settings) twice(a *adapter.Adapter, file string) {
	p := c.Parameters
	if p == nil || p.Scale == nil || p.Alpha == nil || c.Layers != nil {
		return
	}
	for _, u := range a.Updates {
		other := *p.Alpha / float64(u.Rank)
		if math.Abs(other-*p.Scale) <= 1e-6*math.Abs(*p.Scale) {
			continue
		}
		f := finding.Errorf("adapter.alpha_conflict", file, "lora_parameters has a scale, which mlx-lm takes, and an alpha, which gives another one").
			Expected(fmt.Sprintf("alpha %g / rank %d = %g", *p.Alpha, u.Rank, other), fmt.Sprintf("scale %g", *p.Scale)).Hinted("remove the alpha if the adapter was trained with mlx-lm")
		f.Module = u.Module
		a.Doubt = f
		warning := *f
		warning.Level = finding.Warning
		a.Findings = append(a.Findings, warning)
		return
	}
}

// scale is the multiplier of B·A. Early mlx-lm multiplied its scale by alpha / rank; it named the number of
// layers lora_layers.
func (c *settings) scale(rank int) adapter.Scale {
	r := float64(rank)
	if p := c.Parameters; p != nil && p.Scale != nil && (p.Alpha == nil || c.Layers == nil) {
		return adapter.Scale{Value: *p.Scale, Alpha: *p.Scale * r, Rank: rank, Source: fmt.Sprintf("lora_parameters.scale %g", *p.Scale)}
	} else if p != nil && p.Scale != nil {
		alpha := *p.Scale * *p.Alpha
		return adapter.Scale{Value: alpha / r, Alpha: alpha, Rank: rank, Source: fmt.Sprintf("lora_parameters.scale %g × alpha %g / rank %d", *p.Scale, *p.Alpha, rank)}
	} else if p != nil && p.Alpha != nil {
		return adapter.Scale{Value: *p.Alpha / r, Alpha: *p.Alpha, Rank: rank, Source: fmt.Sprintf("lora_parameters.alpha %g / rank %d", *p.Alpha, rank)}
	}
	s := adapter.Scale{Value: *c.Alpha / r, Alpha: *c.Alpha, Rank: rank, Source: fmt.Sprintf("lora_alpha %g / r %d", *c.Alpha, rank)}
	if c.RSLoRA {
		s.Value = *c.Alpha / math.Sqrt(r)
		s.Source = fmt.Sprintf("lora_alpha %g / sqrt(r %d), use_rslora", *c.Alpha, rank)
	}
	return s
}

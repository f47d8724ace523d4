package scheme

import (
	"encoding/json"
	"math"
	"strings"

	"github.com/loratool/loratool/tensor"
)

// A config is what config.json says of the quantization. Everything in it is optional.
type config struct {
	method string         // quant_method
	dtype  tensor.DType   // torch_dtype, Invalid if it is not a float type
	quant  map[string]any // quantization_config
	group  map[string]any // the weights of compressed-tensors' only group, or nil
}

func readConfig(root map[string]any) config {
	var c config
	for _, m := range []map[string]any{root, object(root, "text_config"), object(root, "llm_config"), object(root, "language_config")} {
		if c.dtype == tensor.Invalid {
			c.dtype = floatType(firstText(m, "torch_dtype", "dtype"))
		}
		for _, key := range []string{"quantization_config", "compression_config"} {
			if c.quant == nil {
				c.quant = object(m, key)
			}
		}
	}
	c.method = firstText(c.quant, "quant_method", "quant_type", "quant_algo")
	if c.quant != nil && c.method == "" {
		c.method = "not named"
	}
	if groups := object(c.quant, "config_groups"); len(groups) == 1 {
		for name := range groups {
			c.group = object(object(groups, name), "weights")
		}
	}
	return c
}

func object(m map[string]any, key string) map[string]any {
	o, _ := m[key].(map[string]any)
	return o
}

func firstText(m map[string]any, keys ...string) string {
	for _, k := range keys {
		if s, ok := m[k].(string); ok && s != "" {
			return s
		}
	}
	return ""
}

// floatType is the type of a name as torch prints it, or Invalid.
func floatType(s string) tensor.DType {
	switch strings.TrimPrefix(s, "torch.") {
	case "float16", "half":
		return tensor.F16
	case "bfloat16":
		return tensor.BF16
	case "float32", "float":
		return tensor.F32
	}
	return tensor.Invalid
}

// or is the configured type, or another where there is none.
func (c config) or(d tensor.DType) tensor.DType {
	if c.dtype != tensor.Invalid {
		return c.dtype
	}
	return d
}

// number is a positive whole number of the quantization's configuration, or of its only group.
func (c config) number(keys ...string) (int64, bool) {
	for _, m := range []map[string]any{c.quant, c.group} {
		for _, k := range keys {
			if n, ok := whole(m[k]); ok && n > 0 {
				return n, true
			}
		}
	}
	return 0, false
}

// blocks is the configured block [rows, columns] of block-wise scales.
func (c config) blocks() (rows, cols int64, ok bool) {
	for _, v := range []any{c.quant["weight_block_size"], c.group["block_structure"], c.group["group_size"], c.quant["group_size"]} {
		switch v := v.(type) {
		case []any:
			if len(v) == 2 {
				r, okr := whole(v[0])
				k, okk := whole(v[1])
				if okr && okk && r > 0 && k > 0 {
					return r, k, true
				}
			}
		default:
			if n, isNumber := whole(v); isNumber && n > 0 {
				return 1, n, true
			}
		}
	}
	return 0, 0, false
}

// whole is a JSON number without fraction.
func whole(v any) (int64, bool) {
	switch v := v.(type) {
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
			return int64(v), true
		}
	case json.Number:
		n, err := v.Int64()
		return n, err == nil
	}
	return 0, false
}

// halfOr is the type of scales in a half type, which is what libraries decode to, or another.
func halfOr(scales, other tensor.DType) tensor.DType {
	if scales == tensor.F16 || scales == tensor.BF16 {
		return scales
	}
	return other
}

package hf

import "math"

// A config is a config.json, or an object in it.
type config map[string]any

// flatten lays the language model's part of a configuration over the whole.
func flatten(c config) config {
	for _, key := range []string{"text_config", "llm_config", "lm_config", "language_config"} {
		inner, ok := c[key].(map[string]any)
		if !ok {
			continue
		}
		out := make(config, len(c)+len(inner))
		for k, v := range c {
			out[k] = v
		}
		for k, v := range inner {
			out[k] = v
		}
		return out
	}
	return c
}

// class is the name of the model's class, "" if there is none.
func (c config) class() string {
	if list, _ := c["architectures"].([]any); len(list) > 0 {
		s, _ := list[0].(string)
		return s
	}
	return ""
}

// rope are the parameters of the rotary embedding.
func (c config) rope() config {
	for _, key := range []string{"rope_parameters", "rope_scaling"} {
		if r, ok := c[key].(map[string]any); ok {
			out := make(config, len(r)+1)
			for k, v := range r {
				out[k] = v
			}
			if full, ok := r["full_attention"].(map[string]any); ok {
				for k, v := range full {
					out[k] = v
				}
			}
			if _, ok := out["original_max_position_embeddings"]; !ok {
				if n, ok := c["original_max_position_embeddings"]; ok {
					out["original_max_position_embeddings"] = n
				}
			}
			return out
		}
	}
	return nil
}

// number is the first of the keys that holds a number.
func (c config) number(keys ...string) (float64, bool) {
	for _, k := range keys {
		if x, ok := c[k].(float64); ok {
			return x, true
		}
	}
	return 0, false
}

// whole is a whole number.
func (c config) whole(key string) (int64, bool) {
	x, ok := c[key].(float64)
	return int64(x), ok && x == math.Trunc(x) && math.Abs(x) < 1<<52
}

// text is the first of the keys that holds a string.
func (c config) text(keys ...string) string {
	for _, k := range keys {
		if s, ok := c[k].(string); ok {
			return s
		}
	}
	return ""
}

// flag is true only where the key is.
func (c config) flag(key string) bool { return c[key] == true }

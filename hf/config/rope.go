package config

import "maps"

// Rope are the parameters of the rotary embedding: rope_parameters or rope_scaling, completed by what
// older configurations keep at their root. With "full_attention" or "sliding_attention" in it, it is
// taken as it is.
func (c *Config) Rope() map[string]any { return c.rope }

// FullRope are the rope parameters of the layers with full attention.
func (c *Config) FullRope() map[string]any {
	if m, ok := c.rope["full_attention"].(map[string]any); ok {
		return m
	}
	return c.rope
}

func ropeParameters(c *Config) map[string]any {
	given, _ := c.Get("rope_parameters", "rope_scaling").(map[string]any)
	rp := maps.Clone(given)
	if rp == nil {
		rp = map[string]any{}
	}
	if has(rp, "full_attention") || has(rp, "sliding_attention") {
		return rp
	}
	local := c.Get("local_rope_theta", "rope_local_theta", "rope_theta_local", "swa_rope_theta", "rope_local_base_freq")
	if local != nil {
		rp["sliding_attention"] = map[string]any{"rope_theta": local}
	}
	complete := func(key string, v any) {
		if !has(rp, key) && v != nil {
			rp[key] = v
		}
	}
	complete("rope_theta", c.Get("global_rope_theta", "rope_global_theta", "rope_theta_global", "rope_theta", "rotary_emb_base"))
	complete("rope_type", rp["type"])
	complete("partial_rotary_factor", c.Get("partial_rotary_factor", "rope_pct", "rope_percent"))
	complete("original_max_position_embeddings", c.Get("original_max_position_embeddings"))
	return rp
}

func has(m map[string]any, key string) bool {
	_, ok := m[key]
	return ok
}

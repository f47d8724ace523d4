package config

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/loratool/loratool/finding"
)

func parse(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Parse("config.json", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestOverlay(t *testing.T) {
	for _, text := range []string{
		`{"hidden_size": 1, "vocab_size": 7, "text_config": {"hidden_size": 2, "architectures": ["B"]}, "architectures": ["A"]}`,
		`{"hidden_size": 1, "vocab_size": 7, "llm_config": {"hidden_size": 2, "architectures": ["B"]}, "architectures": ["A"]}`,
		`{"hidden_size": 1, "vocab_size": 7, "thinker_config": {"text_config": {"hidden_size": 2, "architectures": ["B"]}}, "architectures": ["A"]}`,
	} {
		c := parse(t, text)
		if n, err := c.Int("hidden_size"); err != nil || n != 2 {
			t.Errorf("%s: hidden_size %d, %v", text, n, err)
		}
		if n, err := c.Int("vocab_size"); err != nil || n != 7 {
			t.Errorf("%s: vocab_size %d, %v", text, n, err)
		}
		if c.Class() != "B" {
			t.Errorf("%s: class %s", text, c.Class())
		}
		if x, ok := Int(c.Root["hidden_size"]); !ok || x != 1 {
			t.Errorf("%s: root %d", text, x)
		}
	}
}

// A key that is present but null hides the later ones, as in the reference.
func TestFirstPresent(t *testing.T) {
	c := parse(t, `{"a": null, "b": 3, "c": 4.0, "d": 4.5, "e": "x", "f": 1e400}`)
	if v := c.Get("a", "b"); v != nil {
		t.Errorf("got %v", v)
	}
	if n, err := c.Int("z", "b", "c"); err != nil || n != 3 {
		t.Errorf("got %d, %v", n, err)
	}
	if n, err := c.Int("c"); err != nil || n != 4 {
		t.Errorf("got %d, %v", n, err)
	}
	for key, code := range map[string]string{"a": "config.missing_key", "z": "config.missing_key", "d": "config.bad_value", "e": "config.bad_value", "f": "config.bad_value"} {
		_, err := c.Int(key)
		if f := finding.Of(err); f == nil || f.Code != code {
			t.Errorf("%s: got %v, want %s", key, err, code)
		}
	}
	if _, err := c.Float("f"); finding.Of(err) == nil {
		t.Errorf("1e400 is a number: %v", err)
	}
	if _, err := c.Int("y", "z"); err == nil || !strings.Contains(err.Error(), "one of y, z") {
		t.Errorf("got %v", err)
	}
}

func TestRope(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{`{"rope_theta": 5, "rope_scaling": {"type": "linear", "factor": 2}}`, `{"factor":2,"rope_theta":5,"rope_type":"linear","type":"linear"}`},
		{`{"rope_theta": 5, "rope_parameters": {"rope_theta": 6}, "rope_scaling": {"factor": 2}}`, `{"rope_theta":6}`},
		{`{"rope_theta": 5, "rope_parameters": {"full_attention": {"rope_theta": 6}}}`, `{"full_attention":{"rope_theta":6}}`},
		{`{"rope_local_base_freq": 4, "global_rope_theta": 3, "rope_theta": 2, "rope_pct": 0.5}`,
			`{"partial_rotary_factor":0.5,"rope_theta":3,"sliding_attention":{"rope_theta":4}}`},
		{`{"rope_scaling": null, "original_max_position_embeddings": 9}`, `{"original_max_position_embeddings":9}`},
	} {
		got, err := json.Marshal(parse(t, c.text).Rope())
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(c.want, string(got)); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.text, d)
		}
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	if _, err := Read(dir, false); finding.Of(err) == nil || finding.Of(err).Code != "config.missing" {
		t.Errorf("got %v", err)
	}
	for _, text := range []string{"", "{", "[1]", `{"a": 1} x`, `"x"`, "{\"a\": \x00}"} {
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(dir, false); finding.Of(err) == nil || finding.Of(err).Code != "config.bad_json" {
			t.Errorf("%q: got %v", text, err)
		}
	}
	text := `{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "head_dim": null}`
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for filled, want := range map[bool]int64{false: 0, true: 16} {
		c, err := Read(dir, filled)
		if err != nil {
			t.Fatal(err)
		}
		if n, _ := c.Int("head_dim"); n != want {
			t.Errorf("filled %t: head_dim %d, want %d", filled, n, want)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "tokenizer.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadFile(filepath.Join(dir, "tokenizer.json")); finding.Of(err) == nil {
		t.Errorf("a folder is read as a file: %v", err)
	}
}

func TestTruthy(t *testing.T) {
	c := parse(t, `{"a": 0, "b": 0.0, "c": "", "d": [], "e": {}, "f": false, "g": null, "h": 1, "i": "x", "j": [0], "k": true}`)
	for key, v := range c.Root {
		if got, want := Truthy(v), key >= "h"; got != want {
			t.Errorf("%s: got %t", key, got)
		}
	}
}

func TestNearest(t *testing.T) {
	for name, want := range map[string]string{"llama4": "llama", "qwen": "qwen2", "": "olmo", strings.Repeat("x", 1000): "llama"} {
		if got := Nearest(name, []string{"llama", "qwen2", "olmo"}); got != want {
			t.Errorf("%.10s: got %s, want %s", name, got, want)
		}
	}
	if got := Nearest("a", nil); got != "" {
		t.Errorf("got %q of none", got)
	}
}

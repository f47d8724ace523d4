package formats

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
)

func TestWithoutQuantization(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"first", "{\n  \"quantization_config\": {\"a\": [1, {}]},\n  \"b\": 1.50\n}\n", "{\n  \"b\": 1.50\n}\n"},
		{"middle", `{"a": "x,y" , "quantization_config":null, "b": 1e400}`, `{"a": "x,y", "b": 1e400}`},
		{"last", "{\"a\": 1,\n \"quantization_config\": {}\n}", "{\"a\": 1\n}"},
		{"only", `{"quantization_config": 3}`, `{}`},
		{"both", `{"quantization_config": 3, "a": {"quantization_config": 1}, "compression_config": {}}`, ` "a": {"quantization_config": 1}`},
		{"none", "{ \"a\" : 1 ,\"b\":[ ] }", "{ \"a\" : 1 ,\"b\":[ ] }"},
		{"nested", `{"x": 1, "text_config": {"hidden_size": 64, "quantization_config": {}}, "y": 2}`, `{"x": 1, "text_config": {"hidden_size": 64}, "y": 2}`},
		{"empty", `{}`, `{}`},
	} {
		if c.name == "both" {
			c.want = "{" + c.want + "}"
		}
		got, err := withoutQuantization([]byte(c.in), true)
		if err != nil || string(got) != c.want {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		}
	}
	for _, in := range []string{"", "[]", "3", `{"a": `, `{"a": 1`, `{"a" 1}`} {
		if got, err := withoutQuantization([]byte(in), true); err == nil {
			t.Errorf("%q became %q", in, got)
		}
	}
}

// FuzzWithoutQuantization compares with decoding the object and deleting the keys.
func FuzzWithoutQuantization(f *testing.F) {
	f.Add([]byte(`{"a": 1, "quantization_config": {"b": [2]}, "text_config": {"compression_config": 1, "c": "\u00e9"}, "d": null}`))
	f.Add([]byte(`{"text_config": {}, "text_config": {"quantization_config": 1}}`))
	f.Add([]byte(" {\"quantization_config\"\t:\n1,\"quantization_config\":2 } "))
	f.Fuzz(func(t *testing.T, b []byte) {
		var want map[string]any
		if json.Unmarshal(b, &want) != nil || want == nil {
			return
		}
		got, err := withoutQuantization(b, true)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range []any{want, want["text_config"], want["llm_config"], want["language_config"]} {
			if m, ok := m.(map[string]any); ok {
				delete(m, "quantization_config")
				delete(m, "compression_config")
			}
		}
		var have map[string]any
		if err := json.NewDecoder(bytes.NewReader(got)).Decode(&have); err != nil {
			t.Fatalf("%q became %q: %v", b, got, err)
		}
		if !reflect.DeepEqual(have, want) {
			t.Errorf("%q became %q", b, got)
		}
	})
}

// Package config reads the JSON files that describe a Hugging Face model folder: config.json with the
// nested configuration of its text model laid over it, and the look-ups over the many names that one
// hyper-parameter has.
package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"strconv"

	"github.com/loratool/loratool/finding"
)

// MaxFile is the largest JSON file that is read, in bytes. The largest tokenizer.json files known have
// about 40 MB.
const MaxFile = 512 << 20

// A Config is a model's config.json. Values are as encoding/json gives them, numbers as json.Number, so
// that whole numbers stay apart from others.
type Config struct {
	// File is the path of config.json, for messages.
	File string
	// Root is the file as it is. Callers must not change it.
	Root   map[string]any
	values map[string]any
	rope   map[string]any
}

// Read reads config.json of a folder. With filled, what transformers' configuration class would fill in
// and what then becomes key-values is added for llama and mistral: head_dim, where it is absent or null.
// Errors are findings with codes config.… .
func Read(dir string, filled bool) (*Config, error) {
	file := filepath.Join(dir, "config.json")
	data, err := ReadFile(file)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, finding.Errorf("config.missing", file, "the folder has no config.json").
				Hinted("give the folder of a Hugging Face model")
		}
		return nil, err
	}
	c, err := Parse(file, data)
	if err != nil {
		return nil, err
	}
	if filled {
		c.fill()
	}
	return c, nil
}

// textKeys are the names of nested text configurations; a later one that is present wins.
var textKeys = []string{"text_config", "llm_config", "lm_config", "thinker_config", "language_config", "lfm"}

// Parse reads the bytes of a config.json. The keys of text_config (or what other models call it) are
// laid over those of the root.
func Parse(file string, data []byte) (*Config, error) {
	var root map[string]any
	if err := Unmarshal(file, data, &root); err != nil {
		return nil, err
	}
	c := &Config{File: file, Root: root, values: maps.Clone(root)}
	if c.values == nil {
		c.values = map[string]any{}
	}
	var text map[string]any
	for _, key := range textKeys {
		inner, ok := root[key].(map[string]any)
		if ok && key == "thinker_config" {
			inner, ok = inner["text_config"].(map[string]any)
		}
		if ok {
			text = inner
		}
	}
	maps.Copy(c.values, text)
	c.rope = ropeParameters(c)
	return c, nil
}

func (c *Config) fill() {
	switch c.values["model_type"] {
	case "llama", "mistral":
	default:
		return
	}
	if c.values["head_dim"] != nil {
		return
	}
	width, err := c.Int("hidden_size")
	heads, err2 := c.Int("num_attention_heads")
	if err == nil && err2 == nil && heads > 0 {
		c.values["head_dim"] = json.Number(strconv.FormatInt(width/heads, 10))
	}
}

// With returns a copy in which a key has another value.
func (c *Config) With(key string, value any) *Config {
	d := *c
	d.values = maps.Clone(c.values)
	d.values[key] = value
	return &d
}

// Get is the value of the first of the keys that is present, even if it is null: that is how the
// reference converter looks hyper-parameters up. It is nil where none is present or the first is null.
func (c *Config) Get(keys ...string) any {
	for _, key := range keys {
		if v, ok := c.values[key]; ok {
			return v
		}
	}
	return nil
}

// Has reports whether a key is present, null or not.
func (c *Config) Has(key string) bool {
	_, ok := c.values[key]
	return ok
}

// Text is the string that Get finds, "" if there is none.
func (c *Config) Text(keys ...string) string {
	s, _ := c.Get(keys...).(string)
	return s
}

// Int is the whole number that Get finds. A missing key (config.missing_key) and another value
// (config.bad_value) are findings.
func (c *Config) Int(keys ...string) (int64, error) {
	v := c.Get(keys...)
	if v == nil {
		return 0, c.missing(keys)
	}
	n, ok := Int(v)
	if !ok {
		return 0, c.Bad(keys[0], v, "a whole number")
	}
	return n, nil
}

// Float is the number that Get finds, with the errors of Int.
func (c *Config) Float(keys ...string) (float64, error) {
	v := c.Get(keys...)
	if v == nil {
		return 0, c.missing(keys)
	}
	f, ok := Float(v)
	if !ok {
		return 0, c.Bad(keys[0], v, "a number")
	}
	return f, nil
}

func (c *Config) missing(keys []string) error {
	f := finding.Errorf("config.missing_key", c.File, "%s is missing", keys[0])
	if len(keys) > 1 {
		f = f.Expected("nothing", "one of "+join(keys))
	}
	return f.Hinted("add it to config.json; the model's own configuration class may have a default for it")
}

// Bad is the finding for a value that cannot be used.
func (c *Config) Bad(key string, got any, want string) error {
	return finding.Errorf("config.bad_value", c.File, "%s cannot be used", key).Expected(Show(got), want)
}

func join(keys []string) string {
	s := keys[0]
	for _, k := range keys[1:] {
		s += ", " + k
	}
	return s
}

// Class is the model's class: the first entry of architectures, of the text model's configuration if that
// has its own. It is "" if there is none.
func (c *Config) Class() string {
	list, _ := c.values["architectures"].([]any)
	if len(list) == 0 {
		return ""
	}
	s, _ := list[0].(string)
	return s
}

// Layers is the number of the model's layers, by any of its names.
func (c *Config) Layers() (int64, error) {
	return c.Int("n_layers", "num_hidden_layers", "n_layer", "num_layers")
}

// Map is the configuration with plain numbers (float64), as package naming reads it.
func (c *Config) Map() map[string]any {
	return plain(c.values).(map[string]any)
}

func plain(v any) any {
	switch v := v.(type) {
	case map[string]any:
		m := make(map[string]any, len(v))
		for k, x := range v {
			m[k] = plain(x)
		}
		return m
	case []any:
		s := make([]any, len(v))
		for i, x := range v {
			s[i] = plain(x)
		}
		return s
	case json.Number:
		f, _ := v.Float64()
		return f
	}
	return v
}

// Int is the whole number in a decoded JSON value.
func Int(v any) (int64, bool) {
	n, ok := v.(json.Number)
	if !ok {
		return 0, false
	}
	if i, err := n.Int64(); err == nil {
		return i, true
	}
	f, err := n.Float64()
	if err != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
		return 0, false
	}
	return int64(f), true
}

// Float is the number in a decoded JSON value.
func Float(v any) (float64, bool) {
	n, ok := v.(json.Number)
	if !ok {
		return 0, false
	}
	f, err := n.Float64()
	return f, err == nil
}

// Truthy reports whether a decoded JSON value counts as true where the reference asks for it: neither
// null, false, zero nor empty.
func Truthy(v any) bool {
	switch v := v.(type) {
	case nil:
		return false
	case bool:
		return v
	case string:
		return v != ""
	case json.Number:
		f, err := v.Float64()
		return err != nil || f != 0
	case []any:
		return len(v) > 0
	case map[string]any:
		return len(v) > 0
	}
	return true
}

// Show prints a decoded JSON value for a message, shortened.
func Show(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return "?"
	}
	if len(b) > 60 {
		return string(bytes.ToValidUTF8(b[:60], nil)) + "…"
	}
	return string(b)
}

// ReadFile reads a whole file of a model folder, no more than MaxFile bytes of it. A file that is not
// there is the error of the operating system.
func ReadFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, finding.Errorf("config.not_a_file", path, "this is not a regular file")
	}
	if info.Size() > MaxFile {
		return nil, finding.Errorf("config.too_large", path, "the file is too large").
			Expected(info.Size(), "at most "+strconv.Itoa(MaxFile)+" bytes")
	}
	return io.ReadAll(io.LimitReader(f, MaxFile))
}

// Unmarshal decodes a JSON file, numbers as json.Number. What is wrong with the text is a finding with the
// code config.bad_json.
func Unmarshal(file string, data []byte, to any) error {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(to); err != nil {
		return finding.Errorf("config.bad_json", file, "the file is not the JSON expected: %v", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return finding.Errorf("config.bad_json", file, "text follows the JSON value")
	}
	return nil
}

// ReadJSON reads and decodes a JSON file of a folder. ok is false if there is no such file.
func ReadJSON(path string, to any) (ok bool, err error) {
	data, err := ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, Unmarshal(path, data, to)
}

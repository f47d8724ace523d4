// Package geometry reads from a base model what the names and row orders of adapters depend on. Of a
// model folder only config.json is read, of a GGUF file only the key-values.
package geometry

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/naming"
)

// A Geometry describes a base. A zero number is unknown.
type Geometry struct {
	Arch string // llama.cpp's name of the architecture
	HP   naming.HyperParameters
	Tied bool // input and output embeddings are one tensor
	// Hidden is the width of the residual stream, FFN the inner width of a dense layer.
	Hidden, FFN int64
}

// maxConfig bounds the size of a base's config.json.
const maxConfig = 16 << 20

// Read reads the geometry of a base: a folder with config.json, that file itself or one beside it, or a GGUF
// file.
func Read(path string) (*Geometry, error) {
	if strings.EqualFold(filepath.Ext(path), ".gguf") {
		return readGGUF(path)
	}
	file := filepath.Join(path, "config.json")
	if st, err := os.Stat(path); err == nil && !st.IsDir() {
		file = filepath.Join(filepath.Dir(path), "config.json")
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, finding.Errorf("files.missing", file, "the base has no readable config.json")
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfig))
	if err != nil {
		return nil, finding.Errorf("files.unreadable", file, "%v", err)
	}
	var config map[string]any
	if err := json.Unmarshal(b, &config); err != nil {
		return nil, finding.Errorf("base.bad_json", file, "%v", err)
	}
	arch, hp, err := naming.FromConfig(config)
	if err != nil {
		return nil, finding.Errorf("base.unsupported", file, "%v", err)
	}
	g := &Geometry{Arch: arch, HP: hp, Tied: config["tie_word_embeddings"] == true}
	for _, c := range []map[string]any{config, inner(config)} {
		g.Hidden = number(c, g.Hidden, "hidden_size", "n_embd", "d_model")
		g.FFN = number(c, g.FFN, "intermediate_size", "n_inner")
	}
	return g, nil
}

// inner is the configuration of the text model inside a larger one.
func inner(config map[string]any) map[string]any {
	c, _ := config["text_config"].(map[string]any)
	return c
}

// number is the first of the keys that holds a size, else the value so far.
func number(c map[string]any, so int64, keys ...string) int64 {
	for _, k := range keys {
		if x, ok := c[k].(float64); ok && x > 0 && x < 1<<31 {
			return int64(x)
		}
	}
	return so
}

func readGGUF(path string) (*Geometry, error) {
	m, err := gguf.Open(path)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	get := func(key string) []int64 {
		v, ok := m.Get(key)
		if !ok {
			return nil
		}
		return v.Ints()
	}
	hp, err := naming.FromMetadata(m.Arch(), get)
	if err != nil {
		return nil, finding.Errorf("base.unsupported", path, "%v", err)
	}
	g := &Geometry{Arch: m.Arch(), HP: hp, Tied: true}
	for key, to := range map[string]*int64{".embedding_length": &g.Hidden, ".feed_forward_length": &g.FFN} {
		if ns := get(m.Arch() + key); len(ns) > 0 {
			*to = ns[0]
		}
	}
	for _, t := range m.Tensors() {
		if t.Name == "output.weight" {
			g.Tied = false
		}
	}
	return g, nil
}

// RowOrder is a permutation of output rows: row i of the result is row Index(i) of the factor.
type RowOrder func(i int64) int64

// Interleaved is the order in which the halves of every head alternate, as models with interleaved rotary
// embeddings store a projection that Hugging Face stores half by half. heads must divide rows evenly.
func Interleaved(rows, heads int64) RowOrder {
	d := rows / heads
	return func(i int64) int64 {
		h, j := i/d, i%d
		return h*d + j%2*(d/2) + j/2
	}
}

// Halves is the inverse of Interleaved.
func Halves(rows, heads int64) RowOrder {
	d := rows / heads
	return func(i int64) int64 {
		h, j := i/d, i%d
		return h*d + j%(d/2)*2 + j/(d/2)
	}
}

// GroupedQKV is where Megatron keeps row i of q, k or v (part 0, 1, 2) in a fused projection: for each
// key-value head its query heads, then the key, then the value, all of dim rows.
func GroupedQKV(part int, heads, groups, dim int64) RowOrder {
	each := heads / groups
	return func(i int64) int64 {
		h, j := i/dim, i%dim
		block := (each + 2) * dim
		switch part {
		case 0:
			return h/each*block + h%each*dim + j
		case 1:
			return h*block + each*dim + j
		}
		return h*block + (each+1)*dim + j
	}
}

package gguflora

import (
	"slices"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/naming"
)

// TestGeneral takes general.* keys of all kinds into an adapter's metadata and back. What says how the file is
// made is not among them, and the hub's address names the base.
func TestGeneral(t *testing.T) {
	keys := gguf.KVs{
		{Key: "general.name", Value: gguf.Of("A Name")}, {Key: "general.license", Value: gguf.Of("mit")},
		{Key: "general.base_model.count", Value: gguf.Of(uint32(1))}, {Key: "general.base_model.0.repo_url", Value: gguf.Of("https://huggingface.co/some/base")},
		{Key: "general.tags", Value: gguf.ArrayOf([]string{"lora", "x, y"})},
	}
	a := &adapter.Adapter{Path: "synthetic", Space: naming.GGUF, Arch: "llama", Updates: []adapter.Update{{
		Target: adapter.Target{Module: "blk.0.attn_q", Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear, Rank: 1,
		A: adapter.FromValues(1, 4, []float32{1, 2, 3, 4}), B: adapter.FromValues(4, 1, []float32{1, 2, 3, 4}), Scale: adapter.Scale{Value: 1, Alpha: 1, Rank: 1}}}}
	f, err := Encode(a, Options{General: keys})
	if err != nil {
		t.Fatal(err)
	}
	again := write(t, f)
	want := [][2]string{{"general.name", "A Name"}, {"general.license", "mit"}, {"general.base_model.count", "1"},
		{"general.base_model.0.repo_url", "https://huggingface.co/some/base"}, {"general.tags", `["lora","x, y"]`}}
	if !slices.Equal(again.Metadata, want) || again.BaseModel != "some/base" {
		t.Errorf("metadata %q, base %q", again.Metadata, again.BaseModel)
	}
	a.Metadata = append(again.Metadata, [2]string{keyType, "model"}, [2]string{"ss_tag", "x"})
	if f, err = Encode(a, Options{Name: "Folder"}); err != nil {
		t.Fatal(err)
	}
	for _, kv := range keys {
		if v, ok := f.Header.KVs.Get(kv.Key); !ok || v.String() != kv.Value.String() || v.Type() != kv.Value.Type() {
			t.Errorf("%s is %v", kv.Key, v)
		}
	}
	if v, _ := f.Header.KVs.Text(keyType); v != "adapter" {
		t.Errorf("%s is %q", keyType, v)
	}
}

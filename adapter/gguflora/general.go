package gguflora

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/formats/gguf"
)

// What a GGUF says of the adapter beside its updates, name, author, license, base models and the like, stands in
// an adapter's Metadata under the keys of the format, and goes from there to files of other dialects that have
// room for it. Lists are JSON, counts decimal.

// structural are the general.* keys that say how the file is made.
var structural = []string{keyArch, keyType, keyVersion, "general.alignment", "general.file_type"}

// hub is where the addresses of base models begin.
const hub = "https://huggingface.co/"

// general takes the keys from a file, and the name of the base from them.
func (d *decoder) general() error {
	for _, kv := range d.kvs {
		if !strings.HasPrefix(kv.Key, adapter.GeneralPrefix) || slices.Contains(structural, kv.Key) {
			continue
		}
		text, ok := kv.Value.Text()
		if list, isList := kv.Value.Strings(); !ok && isList {
			b, err := json.Marshal(list)
			text, ok = string(b), err == nil
		}
		if n, isInt := kv.Value.Int(); !ok && isInt {
			text, ok = strconv.FormatInt(n, 10), true
		}
		if ok {
			d.a.Metadata = append(d.a.Metadata, [2]string{kv.Key, text})
		}
	}
	if url, ok := d.kvs.Text("general.base_model.0.repo_url"); ok {
		if id, ok := strings.CutPrefix(url, hub); ok && strings.Count(id, "/") == 1 {
			d.a.BaseModel = id
		}
	}
	return nil
}

// generalKeys are the keys of an adapter's metadata again.
func generalKeys(a *adapter.Adapter) gguf.KVs {
	var kvs gguf.KVs
	for _, m := range a.General() {
		var list []string
		n, err := strconv.ParseUint(m[1], 10, 32)
		switch {
		case slices.Contains(structural, m[0]):
		case err == nil && strings.HasSuffix(m[0], ".count"):
			kvs.Set(m[0], gguf.Of(uint32(n)))
		case json.Unmarshal([]byte(m[1]), &list) == nil && len(list) > 0:
			kvs.Set(m[0], gguf.ArrayOf(list))
		default:
			kvs.Set(m[0], gguf.Of(m[1]))
		}
	}
	return kvs
}

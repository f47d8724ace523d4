package metadata

import (
	"path/filepath"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
)

// Adapter is the general.* keys that the reference's converter gives the adapter in a folder: what the header of
// its model card says, and the folder's name where that says nothing. parameters is the number of values in
// the adapter's factors. A card that cannot be read is a warning.
func Adapter(dir string, parameters int64) (gguf.KVs, []finding.Finding, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, nil, err
	}
	var findings []finding.Finding
	card, warning, err := readCard(dir)
	if err != nil {
		return nil, nil, err
	}
	if warning != nil {
		findings = append(findings, *warning)
	}
	g := &general{text: map[string]string{}, sampling: map[string]any{}}
	g.fromCard(card, -parameters)
	g.fromName(filepath.Base(abs), -parameters)
	g.fill("name", filepath.Base(abs))
	w := &writer{}
	if err := g.write(w); err != nil {
		return nil, nil, err
	}
	return w.kvs, findings, w.err
}

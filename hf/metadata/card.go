package metadata

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/hf/config"
)

// What is parsed of a model card's header is bounded, since the YAML parser's time grows with the square of
// how deep a text is nested: bytes, brackets that open, and list marks in a row.
const (
	maxCard     = 64 << 10
	maxBrackets = 2000
	maxDashes   = 8
)

// cardKeys are the keys of a model card that the output depends on; the others (tables of results, mostly)
// are not parsed.
var cardKeys = []string{
	"name", "author", "version", "organization", "description", "finetune", "basename", "size_label",
	"url", "doi", "uuid", "repo_url",
	"model_name", "model_author", "model_version", "model_organization", "model_description", "model_finetune",
	"model_basename", "model_size_label", "model_url", "model_doi", "model_uuid", "model_repo_url",
	"model_creator", "model_type",
	"base_model", "base_models", "base_model_sources", "datasets", "dataset", "dataset_sources",
	"license", "license_name", "license_link", "tags", "pipeline_tag", "languages", "language",
}

// readCard reads the YAML header of a folder's README.md. A header that cannot be read is a warning.
func readCard(dir string) (map[string]any, *finding.Finding, error) {
	file := filepath.Join(dir, "README.md")
	data, err := config.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	card, err := parseCard(string(data))
	if err != nil {
		return nil, finding.Warnf("card.bad_yaml", file, "the header of the model card is not read: %s", firstLine(err.Error())), nil
	}
	return card, nil, nil
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

func parseCard(text string) (map[string]any, error) {
	header := cardHeader(text)
	if strings.TrimSpace(header) == "" {
		return nil, nil
	}
	if len(header) > maxCard {
		return nil, errors.New("it is too long")
	}
	if strings.Count(header, "[")+strings.Count(header, "{") > maxBrackets {
		return nil, errors.New("it is nested too deeply")
	}
	for line := range strings.Lines(header) {
		if words := strings.Fields(line); len(words) > maxDashes && !slices.ContainsFunc(words[:maxDashes], func(w string) bool { return w != "-" }) {
			return nil, errors.New("it is nested too deeply")
		}
	}
	file, err := parser.ParseBytes([]byte(header), 0, parser.AllowDuplicateMapKey())
	if err != nil {
		return nil, err
	}
	for _, doc := range file.Docs {
		// A few aliases of aliases can stand for more text than any memory holds.
		if doc != nil && doc.Body != nil && len(ast.Filter(ast.AliasType, doc.Body)) > 0 {
			return nil, errors.New("it has aliases")
		}
	}
	var card map[string]any
	if err := yaml.UnmarshalWithOptions([]byte(header), &card, yaml.AllowDuplicateMapKey()); err != nil {
		return nil, err
	}
	return card, nil
}

// cardHeader is the part of a model card between its first two lines of hyphens, without the keys that are
// of no use here.
func cardHeader(text string) string {
	text = newlines(text)
	lines := strings.Split(text, "\n")
	if lines[0] != "---" {
		return ""
	}
	var b strings.Builder
	keep := false
	for _, line := range lines[1:] {
		if line == "---" {
			break
		}
		if line == "- no" || strings.HasSuffix(line, " - no") {
			// Norwegian, not false.
			line = strings.TrimSuffix(line, "no") + `"no"`
		}
		if key, _, ok := strings.Cut(line, ":"); ok && key != "" && strings.IndexFunc(key, outsideKey) < 0 {
			keep = slices.Contains(cardKeys, key)
		}
		if keep {
			b.WriteString(strings.ReplaceAll(line, "\t", "  "))
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func outsideKey(r rune) bool {
	return r != '_' && r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
}

// newlines ends every line with a single line feed.
func newlines(s string) string {
	return strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(s)
}

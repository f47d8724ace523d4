package metadata

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/hf/config"
)

// A general is what general.* keys are written from.
type general struct {
	sampling map[string]any // by the part of the key after general.sampling.
	// text holds the keys of general.* that are strings, without that prefix; a key that is present is
	// known, even if it is empty.
	text            map[string]string
	bases, datasets []source
	tags, languages []string
	samplingFile    string
}

// A source is a base model or a data set: name, version, organization, repo_url …
type source map[string]string

// textKeys are the string keys in the order in which they are written.
var textKeys = []string{
	"name", "author", "version", "organization", "finetune", "basename", "description", "quantized_by", "size_label",
	"license", "license.name", "license.link",
	"url", "doi", "uuid", "repo_url", "source.url", "source.doi", "source.uuid", "source.repo_url",
}

var sourceKeys = []string{"name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url"}

// samplingKeys are the keys of generation_config.json and what they become.
var samplingKeys = []struct {
	key     string
	from    []string
	integer bool
	text    bool
}{
	{key: "sequence", from: []string{"sequence"}, text: true},
	{key: "top_k", from: []string{"top_k"}, integer: true},
	{key: "top_p", from: []string{"top_p"}},
	{key: "min_p", from: []string{"min_p"}},
	{key: "xtc_probability", from: []string{"xtc_probability"}},
	{key: "xtc_threshold", from: []string{"xtc_threshold"}},
	{key: "temp", from: []string{"temperature"}},
	{key: "penalty_last_n", from: []string{"penalty_last_n"}, integer: true},
	{key: "penalty_repeat", from: []string{"penalty_repeat", "repetition_penalty"}},
	{key: "mirostat", from: []string{"mirostat"}, integer: true},
	{key: "mirostat_tau", from: []string{"mirostat_tau"}},
	{key: "mirostat_eta", from: []string{"mirostat_eta"}},
}

// general gathers what the model card, config.json, the folder's name and the options say, each filling
// only what is still unknown.
func (f *Folder) general(p Parameters) (*general, error) {
	g := &general{text: map[string]string{}, sampling: map[string]any{}}
	card, warning, err := readCard(f.dir)
	if err != nil {
		return nil, err
	}
	if warning != nil {
		f.warn(*warning)
	}
	g.fromCard(card, p.Total)
	if id, ok := f.Config.Root["_name_or_path"].(string); ok && strings.Count(id, "/") <= 1 {
		g.fromName(id, p.Total)
		if id == "" {
			g.fill("name", "")
		}
	}
	g.fromName(f.opt.FolderName, p.Total)
	if err := g.fromGeneration(f.dir); err != nil {
		return nil, err
	}
	if f.opt.Override != "" {
		if err := g.override(f.opt.Override); err != nil {
			return nil, err
		}
	}
	if f.opt.ModelName != "" {
		g.text["name"] = f.opt.ModelName
	}
	g.fill("name", f.opt.FolderName)
	if _, ok := g.text["size_label"]; !ok && p.Total > 0 {
		g.text["size_label"] = sizeLabel(p)
	}
	return g, nil
}

// warn keeps a warning, once.
func (f *Folder) warn(w finding.Finding) {
	for _, x := range f.findings {
		if x == w {
			return
		}
	}
	f.findings = append(f.findings, w)
}

func (g *general) fill(key, value string) {
	if _, ok := g.text[key]; !ok {
		g.text[key] = value
	}
}

// fromName fills what a model id or folder name says.
func (g *general) fromName(id string, parameters int64) {
	p := splitName(id, parameters)
	if p.name != nil {
		g.fill("name", title(*p.name))
	}
	if p.organization != nil {
		g.fill("organization", title(*p.organization))
	}
	for _, x := range []struct {
		key   string
		value *string
	}{{"basename", p.basename}, {"finetune", p.finetune}, {"version", p.version}, {"size_label", p.size}} {
		if x.value != nil {
			g.fill(x.key, *x.value)
		}
	}
}

func (g *general) fromCard(card map[string]any, parameters int64) {
	take := func(key, from string) {
		if v, ok := card[from]; ok && v != nil {
			g.fill(key, cardText(v))
		}
	}
	for _, prefix := range []string{"", "model_"} {
		for _, key := range []string{"name", "author", "version", "organization", "description", "finetune", "basename", "size_label"} {
			take(key, prefix+key)
		}
		for _, key := range []string{"url", "doi", "uuid", "repo_url"} {
			take("source."+key, prefix+key)
		}
	}
	take("author", "model_creator")
	take("basename", "model_type")
	for _, key := range []string{"base_model", "base_models", "base_model_sources"} {
		g.bases = append(g.bases, sources(card[key], parameters)...)
	}
	for _, key := range []string{"datasets", "dataset", "dataset_sources"} {
		g.datasets = append(g.datasets, sources(card[key], parameters)...)
	}
	if list, ok := card["license"].([]any); ok {
		g.fill("license", strings.Join(texts(list), ","))
	}
	take("license", "license")
	take("license.name", "license_name")
	take("license.link", "license_link")
	for _, key := range []string{"tags", "pipeline_tag"} {
		g.tags = append(g.tags, texts(card[key])...)
	}
	for _, key := range []string{"languages", "language"} {
		g.languages = append(g.languages, texts(card[key])...)
	}
}

// cardText is a value of a card as text.
func cardText(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	return fmt.Sprint(v)
}

// texts are the strings of a list, or the one string.
func texts(v any) []string {
	switch v := v.(type) {
	case string:
		return []string{v}
	case []any:
		list := make([]string, len(v))
		for i, x := range v {
			list[i] = cardText(x)
		}
		return list
	}
	return nil
}

var hubURL = regexp.MustCompile(`^https?://huggingface\.co/([^/]+/[^/]+)$`)

// sources are the models or data sets that a card names: ids, addresses or objects.
func sources(v any, parameters int64) []source {
	list, ok := v.([]any)
	if !ok && v != nil {
		list = []any{v}
	}
	var all []source
	for _, x := range list {
		switch x := x.(type) {
		case string:
			all = append(all, sourceOf(x, parameters))
		case map[string]any:
			s := source{}
			for _, key := range sourceKeys {
				if v := x[key]; v != nil {
					s[key] = cardText(v)
				}
			}
			all = append(all, s)
		}
	}
	return all
}

func sourceOf(id string, parameters int64) source {
	s := source{}
	address := false
	for _, scheme := range []string{"http://", "https://", "ssh://"} {
		address = address || strings.HasPrefix(id, scheme)
	}
	if address {
		s["repo_url"] = id
		m := hubURL.FindStringSubmatch(id)
		if m == nil {
			return s
		}
		id = m[1]
	}
	p := splitName(id, parameters)
	if p.name != nil {
		s["name"] = title(*p.name)
	}
	if p.organization != nil {
		s["organization"] = title(*p.organization)
	}
	if p.version != nil {
		s["version"] = *p.version
	}
	if !address && p.organization != nil && p.name != nil {
		s["repo_url"] = "https://huggingface.co/" + *p.organization + "/" + *p.name
	}
	return s
}

// fromGeneration takes the sampling parameters that the model's makers recommend.
func (g *general) fromGeneration(dir string) error {
	file := filepath.Join(dir, "generation_config.json")
	var c map[string]any
	if ok, err := config.ReadJSON(file, &c); !ok || err != nil {
		return err
	}
	g.samplingFile = file
	for _, k := range samplingKeys {
		for _, from := range k.from {
			if v := c[from]; v != nil {
				g.sampling[k.key] = v
				break
			}
		}
	}
	return nil
}

// override reads a file of general.* keys that replace all others.
func (g *general) override(file string) error {
	var c map[string]any
	ok, err := config.ReadJSON(file, &c)
	if err != nil {
		return err
	}
	if !ok {
		return finding.Errorf("metadata.missing", file, "there is no such file")
	}
	for _, key := range textKeys {
		if v, ok := c["general."+key]; ok && v != nil {
			g.text[key] = cardText(v)
			if list, ok := v.([]any); ok && key == "license" {
				g.text[key] = strings.Join(texts(list), ",")
			}
		}
	}
	for _, k := range samplingKeys {
		if v := c["general.sampling."+k.key]; v != nil {
			g.sampling[k.key] = v
			g.samplingFile = file
		}
	}
	for _, x := range []struct {
		key string
		to  *[]source
	}{{"general.base_models", &g.bases}, {"general.datasets", &g.datasets}} {
		if v, ok := c[x.key]; ok {
			*x.to = sources(v, 0)
		}
	}
	for _, x := range []struct {
		key string
		to  *[]string
	}{{"general.tags", &g.tags}, {"general.languages", &g.languages}} {
		if v, ok := c[x.key]; ok {
			*x.to = texts(v)
		}
	}
	return nil
}

// write writes the keys in the reference's order.
func (g *general) write(w *writer) error {
	for _, k := range samplingKeys {
		v := g.sampling[k.key]
		if v == nil {
			continue
		}
		key := "general.sampling." + k.key
		n, isInt := config.Int(v)
		x, isFloat := config.Float(v)
		s, isText := v.(string)
		switch {
		case k.text && isText:
			w.set(key, gguf.Of(s))
		case k.integer && isInt && n == int64(int32(n)):
			w.set(key, gguf.Of(int32(n)))
		case !k.text && !k.integer && isFloat:
			w.set(key, gguf.Of(float32(x)))
		default:
			return finding.Errorf("config.bad_value", g.samplingFile, "%s cannot be used", k.from[0]).
				Expected(config.Show(v), "a value of its kind")
		}
	}
	for _, key := range textKeys {
		if s, ok := g.text[key]; ok {
			w.set("general."+key, gguf.Of(s))
		}
	}
	for _, x := range []struct {
		key  string
		list []source
	}{{"base_model", g.bases}, {"dataset", g.datasets}} {
		if len(x.list) == 0 {
			continue
		}
		w.set("general."+x.key+".count", gguf.Of(uint32(len(x.list))))
		for i, s := range x.list {
			for _, key := range sourceKeys {
				if v, ok := s[key]; ok {
					w.set(fmt.Sprintf("general.%s.%d.%s", x.key, i, key), gguf.Of(v))
				}
			}
		}
	}
	w.set("general.tags", gguf.ArrayOf(g.tags))
	w.set("general.languages", gguf.ArrayOf(g.languages))
	return nil
}

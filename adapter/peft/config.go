package peft

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/finding"
)

// A config is what matters of adapter_config.json. Everything else is training bookkeeping.
type config struct {
	file string

	peftType, taskType, version string
	baseModel                   string
	rank                        int64 // 0 = not stated
	alpha                       float64
	alphaText                   string // as the file writes it
	ranks                       []pattern
	alphas                      []pattern
	rslora, dora                bool
	fanInFanOut                 bool
	loraBias                    bool
	bias                        string
	init                        string
	modulesToSave               []string
	targets                     []string       // list form of target_modules
	targetRegex                 *regexp.Regexp // string form
	parameters                  []string       // target_parameters
	tokens                      []tokenSet
	alora                       []int64
	bd                          *blockDiagonal
	tied                        bool    // ensure_weight_tying
	tuner                       *tuner  // nil: LoRA
	stated                      *object // the file, for what only one tuner reads

	findings []finding.Finding
}

// A pattern is one entry of rank_pattern or alpha_pattern.
type pattern struct {
	key   string
	re    *regexp.Regexp
	value float64
	text  string
}

// A tokenSet names an embedding by path suffix ("" = the only one) and the ids of its trained rows.
type tokenSet struct {
	embedding string
	ids       []int64
}

// blockDiagonal is use_bdlora.
type blockDiagonal struct {
	a, b   []string // substrings of module names whose A or B is stored compactly
	blocks int64
}

// known lists the keys of PEFT's LoraConfig, up to 0.20, and what hubs and trainers add to the file.
// Those without effect on the weights need no code.
var known = func() map[string]bool {
	m := map[string]bool{}
	for k := range strings.FieldsSeq(`alora_invocation_tokens alpha_pattern arrow_config auto_mapping base_model_name_or_path bias
		corda_config ensure_weight_tying eva_config exclude_modules fan_in_fan_out inference_mode init_lora_weights kasa_config
		layer_replication layers_pattern layers_to_transform loftq_config lora_alpha lora_bias lora_dropout lora_ga_config
		megatron_config megatron_core modules_to_save monteclora_config peft_type peft_version qalora_group_size r rank_pattern
		revision runtime_config target_modules target_parameters task_type trainable_token_indices use_bdlora use_dora use_qalora
		use_rslora velora_config
		auto_map trust_remote_code enable_lora merge_weights invocation_string subfolder transformers_version torch_dtype
		_name_or_path base_model_class parent_library unsloth_version library_name tags model_type`) {
		m[k] = true
	}
	return m
}()

// parseConfig reads adapter_config.json. Its findings are warnings; anything that makes the file
// unusable is the error.
func parseConfig(file string, b []byte) (*config, error) {
	c := &config{file: file}
	if rest, ok := bytes.CutPrefix(b, []byte("\xef\xbb\xbf")); ok {
		b = rest
		c.warn("bad_json", "the file starts with a byte order mark")
	}
	o, err := parseObject(b)
	switch {
	case errors.Is(err, errDuplicate):
		return nil, finding.Errorf("adapter.duplicate_key", file, "%v", err)
	case err != nil:
		return nil, finding.Errorf("adapter.bad_json", file, "not valid JSON: %v", err)
	}
	r := reader{config: c, o: o}
	r.read()
	return c, r.err
}

func (c *config) warn(reason, format string, a ...any) {
	c.findings = append(c.findings, *finding.Warnf("adapter."+reason, c.file, format, a...))
}

// A reader takes typed values from the configuration and keeps the first error.
type reader struct {
	*config
	o   *object
	err error
}

func (r *reader) fail(reason, key string, v any, want string) {
	if r.err == nil {
		r.err = finding.Errorf("adapter."+reason, r.file, "%s has the wrong type or value", key).Expected(describe(v), want)
	}
}

func (r *reader) read() {
	c := r.config
	c.stated = r.o
	c.peftType, c.taskType = strings.ToUpper(r.text("peft_type")), strings.ToUpper(r.text("task_type"))
	c.version, c.baseModel = r.text("peft_version"), r.text("base_model_name_or_path")
	c.rslora, c.dora = r.flag("use_rslora"), r.flag("use_dora")
	c.fanInFanOut, c.loraBias = r.flag("fan_in_fan_out"), r.flag("lora_bias")
	c.bias = r.text("bias")
	c.init = r.initialisation()
	c.modulesToSave, c.parameters = r.names("modules_to_save"), r.names("target_parameters")
	c.alora = r.ints("alora_invocation_tokens", r.o.vals["alora_invocation_tokens"])
	c.tied = r.flag("ensure_weight_tying")
	r.checkFeatures()
	if r.err != nil {
		return
	}
	if c.tuner != nil {
		r.targetModules()
		r.ofTuner()
		r.remarks()
		return
	}
	r.rankAndAlpha()
	r.targetModules()
	r.trainableTokens()
	r.blockDiagonal()
	r.remarks()
}

func (r *reader) text(key string) string {
	switch v := r.o.vals[key].(type) {
	case nil:
		return ""
	case string:
		return v
	default:
		r.fail("bad_config", key, v, "a string")
		return ""
	}
}

func (r *reader) flag(key string) bool {
	switch v := r.o.vals[key].(type) {
	case nil:
		return false
	case bool:
		return v
	default:
		r.fail("bad_config", key, v, "true or false")
		return false
	}
}

func (r *reader) names(key string) []string {
	a, ok := r.o.vals[key].([]any)
	if v := r.o.vals[key]; !ok && v != nil {
		if s, ok := v.(string); ok {
			return []string{s}
		}
		r.fail("bad_config", key, v, "a list of names")
	}
	var out []string
	for _, v := range a {
		s, ok := v.(string)
		if !ok {
			r.fail("bad_config", key, v, "a name")
		}
		out = append(out, s)
	}
	return out
}

func (r *reader) ints(key string, v any) []int64 {
	if v == nil {
		return nil
	}
	a, ok := v.([]any)
	if !ok {
		r.fail("bad_config", key, v, "a list of token ids")
	}
	var out []int64
	for _, v := range a {
		n, _ := v.(json.Number)
		i, err := strconv.ParseInt(string(n), 10, 64)
		if err != nil || i < 0 {
			r.fail("bad_config", key, v, "a token id")
		}
		out = append(out, i)
	}
	return out
}

func (r *reader) initialisation() string {
	switch v := r.o.vals["init_lora_weights"].(type) {
	case nil, bool:
		return ""
	case string:
		return strings.ToLower(v)
	default:
		r.fail("bad_config", "init_lora_weights", v, "true, false or a name")
		return ""
	}
}

func (r *reader) rankAndAlpha() {
	c := r.config
	switch v := r.o.vals["r"].(type) {
	case nil:
		c.warn("missing_rank", "r is not stated; the rank is taken from the tensors")
	default:
		c.rank = r.rankValue("r", v)
	}
	switch v := r.o.vals["lora_alpha"].(type) {
	case nil:
		if r.err == nil {
			r.err = finding.Errorf("adapter.missing_alpha", c.file, "lora_alpha is not stated").
				Hinted("PEFT would take 8, other tools r or 0; write the value the adapter was trained with")
		}
	default:
		c.alpha, c.alphaText = r.alphaValue("lora_alpha", v)
	}
	c.ranks = r.patterns("rank_pattern", func(key string, v any) (float64, string) {
		n := r.rankValue(key, v)
		return float64(n), strconv.FormatInt(n, 10)
	})
	c.alphas = r.patterns("alpha_pattern", r.alphaValue)
}

func (r *reader) rankValue(key string, v any) int64 {
	n, ok := v.(json.Number)
	i, err := strconv.ParseInt(string(n), 10, 64)
	if !ok || err != nil || i <= 0 {
		r.fail("bad_rank", key, v, "a positive integer")
		return 0
	}
	return i
}

func (r *reader) alphaValue(key string, v any) (float64, string) {
	n, ok := v.(json.Number)
	f, err := strconv.ParseFloat(string(n), 64)
	if !ok || err != nil || math.IsInf(f, 0) {
		r.fail("bad_alpha", key, v, "a finite number")
		return 0, ""
	}
	switch {
	case f == 0:
		r.warn("alpha_zero", "%s is 0: the modules it scales do not change", key)
	case f < 0:
		r.warn("alpha_negative", "%s is %v: the update is subtracted", key, n)
	}
	return f, string(n)
}

// patterns reads rank_pattern or alpha_pattern in file order, which decides which key wins.
func (r *reader) patterns(name string, value func(string, any) (float64, string)) []pattern {
	o, ok := r.o.vals[name].(*object)
	if !ok {
		if v := r.o.vals[name]; set(v) {
			r.fail("bad_config", name, v, "an object")
		}
		return nil
	}
	var out []pattern
	for _, k := range o.keys {
		p := pattern{key: k}
		p.value, p.text = value(name+" "+strconv.Quote(k), o.vals[k])
		// Python: re.match(rf"(.*\.)?({key})$", path).
		p.re = r.compile(name, k, `^(?:.*\.)?(?:`+k+`)$`)
		out = append(out, p)
	}
	return out
}

func (r *reader) compile(name, key, expr string) *regexp.Regexp {
	re, err := regexp.Compile(expr)
	if err != nil {
		if r.err == nil {
			r.err = finding.Errorf("adapter.bad_regex", r.file, "%s: %q is not a pattern this program can read: %v", name, key, err).
				Hinted("look-around and back references exist only in Python; list the module names instead")
		}
		return nil
	}
	return re
}

func (r *reader) targetModules() {
	s, ok := r.o.vals["target_modules"].(string)
	if !ok {
		r.targets = r.names("target_modules")
		return
	}
	if strings.EqualFold(s, "all-linear") {
		return
	}
	r.targetRegex = r.compile("target_modules", s, `^(?:`+s+`)$`)
	if p, err := syntax.Parse(s, syntax.Perl); err == nil && nested(p, false) {
		r.warn("slow_regex", "target_modules %q repeats a repetition: harmless here, but it can take Python for ever", s)
	}
}

// nested reports whether an unbounded repetition stands inside another.
func nested(p *syntax.Regexp, inside bool) bool {
	again := p.Op == syntax.OpStar || p.Op == syntax.OpPlus || p.Op == syntax.OpRepeat && p.Max < 0
	if again && inside {
		return true
	}
	return slices.ContainsFunc(p.Sub, func(s *syntax.Regexp) bool { return nested(s, inside || again) })
}

func (r *reader) trainableTokens() {
	const key = "trainable_token_indices"
	switch v := r.o.vals[key].(type) {
	case *object:
		for _, k := range v.keys {
			r.tokens = append(r.tokens, tokenSet{k, r.ints(key, v.vals[k])})
		}
	default:
		if ids := r.ints(key, v); len(ids) > 0 {
			r.tokens = []tokenSet{{"", ids}}
		}
	}
}

func (r *reader) blockDiagonal() {
	v := r.o.vals["use_bdlora"]
	if !set(v) {
		return
	}
	o, ok := v.(*object)
	if !ok {
		r.fail("bad_config", "use_bdlora", v, "an object")
		return
	}
	in := reader{config: r.config, o: o, err: r.err}
	n, _ := o.vals["nblocks"].(json.Number)
	blocks, err := strconv.ParseInt(string(n), 10, 64)
	if err != nil || blocks < 1 {
		in.fail("bad_config", "use_bdlora.nblocks", o.vals["nblocks"], "a positive integer")
	}
	r.bd = &blockDiagonal{in.names("target_modules_bd_a"), in.names("target_modules_bd_b"), blocks}
	r.err = in.err
}

// remarks collects what is odd but does not stop anything.
func (r *reader) remarks() {
	for _, k := range r.o.keys {
		if !known[k] && set(r.o.vals[k]) && r.tuner == nil {
			r.warn("unknown_config_key", "%q is not a key this program knows; it may change how the adapter is meant", k)
		}
	}
	switch b := r.baseModel; {
	case b == "":
		r.warn("base_mismatch", "the adapter does not say which base model it belongs to")
	case strings.HasPrefix(b, "/") || strings.HasPrefix(b, ".") || strings.HasPrefix(b, "~") || strings.Contains(b, `\`):
		r.warn("base_mismatch", "base_model_name_or_path is a path on another machine: %q", b)
	}
	lib := ""
	if m, ok := r.o.vals["auto_mapping"].(*object); ok {
		lib, _ = m.vals["parent_library"].(string)
	}
	if strings.HasPrefix(lib, "transformers_modules") || set(r.o.vals["auto_map"]) || set(r.o.vals["trust_remote_code"]) {
		r.warn("remote_code", "the adapter was made for a model class that is downloaded code; no such code is run here")
	}
}

// alphaOf finds the alpha of a module or parameter path and says where it came from.
func (c *config) alphaOf(path string) (float64, string) {
	for _, p := range c.alphas {
		if p.re.MatchString(path) {
			return p.value, "alpha_pattern " + strconv.Quote(p.key) + " " + p.text
		}
	}
	return c.alpha, "lora_alpha " + c.alphaText
}

// ranksOf lists the ranks the configuration allows for a path, the one PEFT would take first. It is
// empty when nothing is stated.
func (c *config) ranksOf(path string) []int64 {
	var out []int64
	for _, p := range c.ranks {
		if p.re.MatchString(path) {
			out = append(out, int64(p.value))
		}
	}
	if out == nil && c.rank > 0 {
		out = []int64{c.rank}
	}
	return out
}

// targeted reports whether target_modules names the module.
func (c *config) targeted(module string) bool {
	if c.targetRegex != nil {
		return c.targetRegex.MatchString(module)
	}
	return slices.ContainsFunc(c.targets, func(t string) bool { return endsWith(module, t) })
}

// endsWith reports whether path is name or ends in its components.
func endsWith(path, name string) bool { return path == name || strings.HasSuffix(path, "."+name) }

// under reports whether name's components occur in path.
func under(path, name string) bool { return strings.Contains("."+path+".", "."+name+".") }

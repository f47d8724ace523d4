package peft

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
)

// otherTuners says what a peft_type is and why it is refused. Types without an entry are refused by
// their name alone.
var otherTuners = map[string]string{
	"PROMPT_TUNING":           promptReason,
	"P_TUNING":                promptReason,
	"PREFIX_TUNING":           promptReason,
	"MULTITASK_PROMPT_TUNING": promptReason,
	"ADAPTION_PROMPT":         promptReason,
	"CPT":                     promptReason,
	"CARTRIDGE":               promptReason,
	"XLORA":                   "its mixture of experts depends on the input, so no fixed weight equals it",
	"POLY":                    "its mixture of skills depends on the task, so no fixed weight equals it",
	"LILY":                    "its routing depends on the input, so no fixed weight equals it",
}

const promptReason = "it adds vectors to the input and changes no weight; serve it beside the base"

// refuse records an unsupported feature as the error, unless there is one already.
func (r *reader) refuse(format string, a ...any) *finding.Finding {
	f := finding.Errorf("adapter.unsupported_feature", r.file, format, a...)
	if r.err == nil {
		r.err = f
	}
	return f
}

// vanilla are the values of init_lora_weights that leave the base as it is.
var vanilla = []string{"", "gaussian", "orthogonal", "eva", "mica", "true", "false"}

// checkInitialisation refuses initialisations that replaced the base by a residual: the factors are then
// relative to that residual and wrong on the original base. residual says that the base at hand is the
// residual one.
func (c *config) checkInitialisation(residual bool) error {
	base, _, _ := strings.Cut(c.init, "_niter_")
	if residual || slices.Contains(vanilla, c.init) {
		return nil
	}
	switch base {
	case "lora_ga":
		c.warn("residual_base", "init_lora_weights is \"lora_ga\": the factors belong to the base that the initialisation saved; PEFT applies them to the original base unchanged, and so does this program")
		return nil
	case "pissa", "olora", "corda", "loftq":
		return finding.Errorf("adapter.unsupported_feature", c.file, "init_lora_weights is %q: the factors are relative to a residual base that the initialisation made, not to the original", c.init).
			Hinted("convert the adapter with save_pretrained(path_initial_model_for_weight_conversion=…), or merge into the saved residual base and say so")
	}
	c.warn("unknown_config_key", "init_lora_weights %q is not known; the factors are taken as relative to the base", c.init)
	return nil
}

// checkFeatures refuses what changes the meaning of the factors in a way this package does not carry.
func (r *reader) checkFeatures() {
	r.tuner = tuners[r.peftType]
	switch reason, ok := otherTuners[r.peftType]; {
	case r.peftType == "LORA", r.tuner != nil:
	case r.peftType == "":
		if set(r.o.vals["fine_tune_type"]) || set(r.o.vals["lora_parameters"]) {
			r.err = finding.Errorf("adapter.wrong_ecosystem", r.file, "this is the configuration of an MLX adapter")
			return
		}
		r.warn("missing_peft_type", "peft_type is not stated; LORA is assumed")
	case ok:
		r.refuse("peft_type %s cannot be merged or converted: %s", r.peftType, reason)
	default:
		r.refuse("peft_type %s is not supported", r.peftType)
	}
	on := func(key string) bool { return set(r.o.vals[key]) }
	switch {
	case on("layer_replication"):
		r.refuse("layer_replication builds a deeper model out of shared layers; merging into the shared weights is wrong").Hinted("build the replicated base first, then train or merge on it")
	case on("kasa_config"):
		r.refuse("KaSA (kasa_config) truncates the base's singular values before its update, which is not supported")
	case on("use_qalora"):
		r.refuse("QALoRA (use_qalora) pools the input by quantization group; it cannot be merged into the weights")
	case on("arrow_config"):
		r.refuse("an Arrow router (arrow_config) mixes adapters by input; merge its member adapters instead")
	}
}

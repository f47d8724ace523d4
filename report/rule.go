package report

import "strings"

// areas say what the findings of an area are about.
var areas = map[string]string{
	"adapter":    "The adapter's own files: configuration, pairs, shapes, scales, effect",
	"base":       "The base model: its files, and whether the adapter belongs to it",
	"baseline":   "The baseline of known findings",
	"config":     "The configuration of a model folder",
	"container":  "A container file: its structure, sizes and names",
	"convert":    "The conversion of adapters and models",
	"files":      "What kind of files these are, and whether they can be read",
	"imatrix":    "An importance matrix",
	"match":      "How the adapter's updates find their weights in the base",
	"merge":      "Whether a model is its base plus adapters, and what rounding left of them",
	"numeric":    "Values of weights",
	"output":     "Writing outputs",
	"provenance": "What was made from what, by an attestation",
	"quant":      "Quantization",
	"runtime":    "ONNX Runtime and its devices",
	"scheme":     "Checkpoints quantized for PyTorch",
	"tokenizer":  "The tokenizer of a model folder",
}

// rules describe the findings that checks make most.
var rules = map[string]string{
	"adapter.magnitude":              "An update is several times as large as its weight",
	"adapter.no_effect":              "An update changes nothing",
	"container.lfs_pointer":          "A git-lfs pointer stands in the place of the file",
	"container.size_mismatch":        "A tensor's bytes do not fit its type and shape",
	"container.truncated":            "A file ends before its contents do",
	"match.nothing_to_do":            "No update of the adapter has a place in the base",
	"match.unmatched_target":         "An update of the adapter has no place in the base",
	"merge.completeness":             "A tensor is missing, misshapen, or not of the base",
	"files.hash_mismatch":            "A file's data is not what its metadata says",
	"merge.determinism":              "A second merge gives other bytes",
	"numeric.delta_outlier":          "An update is far larger than those of the other modules",
	"numeric.subnormal":              "Most values of a tensor are subnormal",
	"provenance.digest_mismatch":     "A file is not the one that was attested",
	"provenance.missing_file":        "A file that was attested is not there",
	"provenance.signature":           "A statement is signed, and the signature was not checked",
	"provenance.unexpected_file":     "A file is there that was not attested",
	"merge.equivalence":              "A stored weight is not what base and adapters make",
	"merge.not_merged":               "A stored weight is the base's: the adapter is not in it",
	"merge.retention_lost":           "Rounding to the stored type lost most of an adapter",
	"merge.retention_low":            "Rounding to the stored type lost a part of an adapter",
	"merge.runtime_check":            "ONNX Runtime computes something else with the merged weight",
	"merge.whole_model":              "Run as a whole, the merged model computes something else than base and adapters",
	"merge.whole_model_inconclusive": "Run as a whole, rounding hides the effect of the adapter",
	"merge.whole_model_no_effect":    "Run as a whole, the adapter changes no output, so that nothing is proven",
	"runtime.input_needed":           "An input of a model cannot be made up and has to be given",
	"runtime.model_refused":          "ONNX Runtime does not run a model",
	"runtime.no_device":              "A device that was asked for cannot be used",
	"runtime.too_old":                "The ONNX Runtime library is too old",
	"numeric.nan_inf":                "A tensor holds NaN or infinity",
}

// describe says in one line what findings of a code are about.
func describe(code string) string {
	if s, ok := rules[code]; ok {
		return s
	}
	area, reason, _ := strings.Cut(code, ".")
	reason = strings.ReplaceAll(reason, "_", " ")
	if s, ok := areas[area]; ok {
		return s + ": " + reason
	}
	return area + ": " + reason
}

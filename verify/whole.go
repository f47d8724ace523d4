package verify

// A WholeModel is what running the base with its adapters beside the merged model measured.
type WholeModel struct {
	Provider string `json:"provider"`
	Seed     uint64 `json:"seed"`     // of the inputs that were made
	Branches int    `json:"branches"` // layers of the base that the adapters were put beside
	// On a GPU: how many operators ran on it, and how many on the CPU because it lacks them. Products are never among
	// these.
	OnDevice int           `json:"on_device,omitempty"`
	OnCPU    int           `json:"on_cpu,omitempty"`
	Inputs   []ModelInput  `json:"inputs"`
	Outputs  []ModelOutput `json:"outputs"`
	Pass     bool          `json:"pass"`
	Why      string        `json:"why,omitempty"`
}

// A ModelInput is what one input of the models was given.
type ModelInput struct {
	Name   string  `json:"name"`
	DType  string  `json:"dtype"`
	Shape  []int64 `json:"shape"`
	Source string  `json:"source"` // how it was made, or "given"
}

// A ModelOutput compares one output: Y of the merged model, Z of the base with adapters, Y0 of the base alone.
type ModelOutput struct {
	Name      string   `json:"name"`
	DType     string   `json:"dtype"`
	Shape     []int64  `json:"shape"`
	RelError  float64  `json:"rel_error"`           // ‖Y−Z‖/‖Z‖; of integers the share that differs
	Limit     float64  `json:"limit"`               // the most RelError may be
	Cosine    *float64 `json:"cosine,omitempty"`    // of Y and Z
	Argmax    *float64 `json:"argmax,omitempty"`    // share of rows whose largest element is the same in Y and Z
	Effect    float64  `json:"effect"`              // ‖Z−Y0‖/‖Y0‖; of integers the share that differs
	Retention *float64 `json:"retention,omitempty"` // ⟨Y−Y0, Z−Y0⟩/⟨Z−Y0, Z−Y0⟩
	Pass      bool     `json:"pass"`
	Why       string   `json:"why,omitempty"`
}

package verify

// A Provenance says what a report is about and how it came about, without anything that differs from run to
// run: no times, no host.
type Provenance struct {
	Tool     string   `json:"tool"`    // the program and its version
	Command  string   `json:"command"` // merge, verify
	Subjects []string `json:"subjects"`
	Base     string   `json:"base,omitempty"`
	Adapters []string `json:"adapters,omitempty"` // PATH:SCALE as given
	Check    string   `json:"check,omitempty"`    // off, sample:N, all
	Device   string   `json:"device,omitempty"`   // as asked for; RuntimeUse says which one ran
	Seed     uint64   `json:"seed"`               // of the samples and the runtime's inputs
}

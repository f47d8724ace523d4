package verify

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path"
	"strings"

	"github.com/loratool/loratool/finding"
)

// maxBaseline is the size of the largest report that is read as a baseline.
const maxBaseline = 64 << 20

// A Baseline is a set of findings that are known: they are still reported, but no longer count.
type Baseline struct {
	Path  string
	known map[string]int // by fingerprint, how many there are
}

// Fingerprint identifies a finding from run to run: its code and level, the tensor and module, and the last
// part of the file's path. Measured values are no part of it.
func Fingerprint(f finding.Finding) string {
	h := sha256.New()
	for _, s := range []string{f.Code, string(f.Level), path.Base(strings.ReplaceAll(f.File, `\`, "/")), f.Tensor, f.Module} {
		io.WriteString(h, s)
		h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// OpenBaseline reads the findings of an earlier JSON report, of verify or of merge.
func OpenBaseline(path string) (*Baseline, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, finding.Errorf("files.missing", path, "the baseline cannot be opened")
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxBaseline+1))
	if err != nil {
		return nil, finding.Errorf("files.unreadable", path, "the baseline cannot be read")
	}
	if len(b) > maxBaseline {
		return nil, finding.Errorf("baseline.too_large", path, "a baseline is at most 64 MiB")
	}
	var doc struct {
		SchemaVersion int                `json:"schema_version"`
		Findings      *[]finding.Finding `json:"findings"`
		Known         []finding.Finding  `json:"known"`
	}
	if err := json.Unmarshal(b, &doc); err != nil || doc.Findings == nil {
		return nil, finding.Errorf("baseline.bad_json", path, "the baseline is not a report").Hinted("a baseline is an earlier report, written with --report FILE.json")
	}
	if doc.SchemaVersion != SchemaVersion {
		return nil, finding.Errorf("baseline.bad_version", path, "the baseline has another schema version").Expected(doc.SchemaVersion, SchemaVersion)
	}
	base := &Baseline{Path: path, known: map[string]int{}}
	for _, f := range append(*doc.Findings, doc.Known...) {
		base.known[Fingerprint(f)]++
	}
	return base, nil
}

// Split parts findings into those that count and those that are known. A finding that occurs more often than in
// the baseline counts from there on. Without a baseline nothing is known.
func (b *Baseline) Split(findings []finding.Finding) (count, known []finding.Finding) {
	count = []finding.Finding{}
	if b == nil {
		return append(count, findings...), nil
	}
	seen := map[string]int{}
	for _, f := range findings {
		p := Fingerprint(f)
		if seen[p]++; seen[p] <= b.known[p] {
			known = append(known, f)
		} else {
			count = append(count, f)
		}
	}
	return count, known
}

// Apply sets aside the findings of a report that are known, and judges what is left.
func (b *Baseline) Apply(r *Report) {
	var known []finding.Finding
	r.Findings, known = b.Split(r.Findings)
	r.Known = append(r.Known, known...)
	r.conclude()
}

// Judge is the verdict that findings lead to.
func Judge(findings []finding.Finding) Verdict {
	v := Accept
	for _, f := range findings {
		switch {
		case f.Level == finding.Error:
			return Reject
		case f.Level == finding.Warning:
			v = Warn
		}
	}
	return v
}

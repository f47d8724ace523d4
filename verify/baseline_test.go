package verify

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/finding"
)

func baseline(t *testing.T, text string) (*Baseline, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "baseline.json")
	if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
	return OpenBaseline(path)
}

func TestBaseline(t *testing.T) {
	b, err := baseline(t, `{"schema_version": 1, "findings": [
		{"code": "merge.retention_low", "level": "warning", "file": "old/dir/m.gguf", "tensor": "a", "message": "lost 10 %"},
		{"code": "container.lfs_pointer", "level": "error", "file": "x", "message": "pointer"}
	], "known": [{"code": "container.lfs_pointer", "level": "error", "file": "x", "message": "pointer"}]}`)
	if err != nil {
		t.Fatal(err)
	}
	low := *finding.Warnf("merge.retention_low", "new/m.gguf", "lost 11 %%").In("a")
	worse, other, elsewhere := low, low, low
	worse.Level, other.Tensor, elsewhere.File = finding.Error, "b", "new/n.gguf"
	pointer := *finding.Errorf("container.lfs_pointer", `c:\dir\x`, "another text")
	for name, c := range map[string]struct {
		in             []finding.Finding
		counted, known int
		verdict        Verdict
	}{
		"nothing":                  {nil, 0, 0, Accept},
		"measured again":           {[]finding.Finding{low}, 0, 1, Accept},
		"another level":            {[]finding.Finding{worse}, 1, 0, Reject},
		"another tensor":           {[]finding.Finding{other}, 1, 0, Warn},
		"another file":             {[]finding.Finding{elsewhere}, 1, 0, Warn},
		"once more than there":     {[]finding.Finding{low, low}, 1, 1, Warn},
		"as often, in two lists":   {[]finding.Finding{pointer, pointer}, 0, 2, Accept},
		"more often, in two lists": {[]finding.Finding{pointer, pointer, pointer, low}, 1, 3, Reject},
	} {
		r := &Report{Findings: c.in}
		b.Apply(r)
		if len(r.Findings) != c.counted || len(r.Known) != c.known || r.Verdict != c.verdict {
			t.Errorf("%s: %d count, %d are known, %s", name, len(r.Findings), len(r.Known), r.Verdict)
		}
		b.Apply(r) // what counts once counts again: nothing is used up
		if len(r.Findings)+len(r.Known) != len(c.in) {
			t.Errorf("%s: findings are lost", name)
		}
	}
	count, known := (*Baseline)(nil).Split([]finding.Finding{low, worse})
	if len(count) != 2 || known != nil {
		t.Errorf("without a baseline %d count and %d are known", len(count), len(known))
	}
}

func TestOpenBaselineRefuses(t *testing.T) {
	for text, code := range map[string]string{
		"": "baseline.bad_json", "[]": "baseline.bad_json", "{}": "baseline.bad_json", `{"schema_version": 1}`: "baseline.bad_json",
		`{"schema_version": 1, "findings": 3}`: "baseline.bad_json", `{"schema_version": 2, "findings": []}`: "baseline.bad_version",
	} {
		if _, err := baseline(t, text); finding.Of(err) == nil || finding.Of(err).Code != code {
			t.Errorf("%q: %v, expected %s", text, err, code)
		}
	}
}

package torch

import (
	"archive/zip"
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/loratool/loratool/finding"
)

// An item is an entry to write.
type item struct {
	name   string
	data   []byte
	method uint16
}

func zipped(t *testing.T, items ...item) []byte {
	t.Helper()
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	for _, i := range items {
		f, err := w.CreateHeader(&zip.FileHeader{Name: i.name, Method: i.method})
		if err == nil {
			_, err = f.Write(i.data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestArchives reads archives that are odd as archives; what they hold is sound.
func TestArchives(t *testing.T) {
	const n = 1 << 12
	program := []byte(stateDict(func(p *pickler) { p.str("w").tensor("0", n, 0, []int64{n}, []int64{1}) }))
	weights := floatBytes(n)
	pkl, data := item{"m/data.pkl", program, zip.Store}, item{"m/data/0", weights, zip.Store}
	patched := func(b []byte, old, new string, count int) []byte {
		if bytes.Count(b, []byte(old)) == 0 {
			t.Fatalf("nothing to patch: %q", old)
		}
		return bytes.Replace(b, []byte(old), []byte(new), count)
	}
	good := zipped(t, pkl, data)
	for name, c := range map[string]struct {
		file []byte
		want string // code of the error or warning without its area, "" for neither
		warn bool
	}{
		"sound":              {good, "", false},
		"deflated":           {zipped(t, pkl, item{data.name, weights, zip.Deflate}), "compressed_record", true},
		"deflated program":   {zipped(t, item{pkl.name, program, zip.Deflate}, data), "compressed_record", true},
		"trailing bytes":     {append(bytes.Clone(good), "tail"...), "bad_zip", true},
		"extra entry":        {zipped(t, pkl, data, item{"m/x", []byte("cos\nsystem\n."), zip.Store}), "unexpected_entry", true},
		"larger storage":     {zipped(t, pkl, item{data.name, append(bytes.Clone(weights), 1), zip.Store}), "size_mismatch", true},
		"smaller storage":    {zipped(t, pkl, item{data.name, weights[1:], zip.Store}), "size_mismatch", false},
		"storage as a bomb":  {zipped(t, pkl, item{data.name, make([]byte, 1<<20), zip.Deflate}), "zip_bomb", false},
		"program as a bomb":  {zipped(t, item{pkl.name, make([]byte, 1<<20), zip.Deflate}, data), "zip_bomb", false},
		"no program":         {zipped(t, data), "no_data_pkl", false},
		"no folder":          {zipped(t, item{"data.pkl", program, zip.Store}), "no_data_pkl", false},
		"empty":              {zipped(t), "no_data_pkl", false},
		"two folders":        {zipped(t, pkl, data, item{"n/data.pkl", program, zip.Store}), "multiple_roots", false},
		"a program":          {zipped(t, pkl, data, item{"m/code/x.py", nil, zip.Store}), "torchscript", false},
		"twice":              {zipped(t, pkl, pkl, data), "duplicate_entry", false},
		"upwards":            {zipped(t, pkl, data, item{"m/../x", nil, zip.Store}), "bad_entry_name", false},
		"absolute":           {zipped(t, pkl, data, item{"/m/x", nil, zip.Store}), "bad_entry_name", false},
		"backslash":          {zipped(t, pkl, data, item{`m\x`, nil, zip.Store}), "bad_entry_name", false},
		"big-endian":         {zipped(t, pkl, data, item{"m/byteorder", []byte("big"), zip.Store}), "big_endian", false},
		"byte order unknown": {zipped(t, pkl, data, item{"m/byteorder", []byte("middle"), zip.Store}), "bad_byteorder", false},
		"names differ":       {patched(good, "m/data/0", "m/data/1", 1), "zip_inconsistent", false},
		"encrypted":          {patched(good, "PK\x01\x02\x14\x00\x14\x00\x08", "PK\x01\x02\x14\x00\x14\x00\x09", 1), "encrypted", false},
		"no end":             {good[:len(good)-1], "bad_zip", false},
		"end in a comment":   {append(good[:len(good)-2:len(good)-2], append([]byte{22, 0}, good[len(good)-22:]...)...), "bad_zip", false},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := load(c.file)
			if err == nil {
				for _, x := range m.Tensors() {
					if got, err := x.Read(); err != nil || !bytes.Equal(got, weights) {
						t.Errorf("%s does not read as it was written (%v)", x.Name, err)
					}
				}
			}
			var codes []string
			if f := finding.Of(err); f != nil {
				codes = append(codes, f.Code)
			}
			if err == nil {
				for _, f := range m.Findings() {
					codes = append(codes, f.Code)
				}
			}
			want := ""
			if c.want != "" {
				want = "container." + c.want
			}
			if got := strings.Join(codes, " "); got != want || (err == nil) != (c.warn || c.want == "") {
				t.Errorf("got %q (%v), want %q", got, err, want)
			}
		})
	}
}

// An entry that nobody needs is looked at, so that the warning can say what it would do.
func TestUnexpectedEntryIsNamed(t *testing.T) {
	program := []byte(stateDict(func(p *pickler) { p.str("w").tensor("0", 1, 0, []int64{1}, []int64{1}) }))
	items := []item{{"m/data.pkl", program, zip.Store}, {"m/data/0", floatBytes(1), zip.Store}, {"m/evil", []byte("cos\nsystem\n)R."), zip.Store}}
	for i := range 9 {
		items = append(items, item{fmt.Sprintf("m/more/%d", i), nil, zip.Store})
	}
	m, err := load(zipped(t, items...))
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Findings()) != 1 {
		t.Fatalf("findings %v", m.Findings())
	}
	for _, s := range []string{`"evil"`, `"os.system"`, "and 7 more"} {
		if text := m.Findings()[0].Message; !strings.Contains(text, s) {
			t.Errorf("%q does not say %s", text, s)
		}
	}
}

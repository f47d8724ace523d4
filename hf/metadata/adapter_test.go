package metadata

import (
	"os"
	"path/filepath"
	"testing"
)

// TestAdapter reads the keys of an adapter from its card and its folder's name, in which a size is that of the base.
func TestAdapter(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "style-lora-v2")
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	kvs, warnings, err := Adapter(dir, 1000)
	if name, _ := kvs.Text("general.name"); err != nil || len(warnings) > 0 || name != "Style Lora v2" {
		t.Fatalf("name %q, %v, %v", name, warnings, err)
	}
	if _, ok := kvs.Get("general.size_label"); ok {
		t.Error("an adapter without a size in its name has a size label")
	}
	card := "---\nlicense: [mit, other]\nbase_model: some/Base-7B\nlanguage: en\n---\n"
	if err := os.WriteFile(filepath.Join(dir, "README.md"), []byte(card), 0o666); err != nil {
		t.Fatal(err)
	}
	if kvs, _, err = Adapter(dir, 1000); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"general.license": "mit,other", "general.base_model.0.repo_url": "https://huggingface.co/some/Base-7B", "general.base_model.0.organization": "Some"} {
		if got, _ := kvs.Text(key); got != want {
			t.Errorf("%s is %q, expected %q", key, got, want)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "README.md"), []byte("---\nname: [x\n---\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, warnings, err = Adapter(dir, 1000); err != nil || len(warnings) != 1 {
		t.Errorf("a broken card: %v, %v", warnings, err)
	}
}

// Package corpus finds the goldens that are too large for testdata. Only tests import it.
package corpus

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// variable names the environment variable that holds the folder of all corpora.
const variable = "LORATOOL_CORPUS"

// Path is a path in the folder of all corpora. Without one the test is skipped, and counted as such.
func Path(t testing.TB, elem ...string) string {
	t.Helper()
	dir := os.Getenv(variable)
	if dir == "" {
		t.Skip(variable + " is not set")
	}
	return filepath.Join(append([]string{dir}, elem...)...)
}

// Seeds are the contents of the files of less than limit bytes that a pattern in the folder of all corpora
// matches; none without corpora. For fuzz targets, which run without them too.
func Seeds(t testing.TB, pattern string, limit int) [][]byte {
	t.Helper()
	dir := os.Getenv(variable)
	if dir == "" {
		return nil
	}
	paths, err := filepath.Glob(filepath.Join(dir, filepath.FromSlash(pattern)))
	if err != nil {
		t.Fatal(err)
	}
	var seeds [][]byte
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) < limit {
			seeds = append(seeds, b)
		}
	}
	return seeds
}

// ReadJSON decodes a JSON file into what to points at.
func ReadJSON(t testing.TB, path string, to any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, to); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

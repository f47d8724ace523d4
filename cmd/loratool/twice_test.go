package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

func TestSameBytes(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, n int, last byte) string {
		b := make([]byte, n)
		if n > 0 {
			b[n-1] = last
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o666); err != nil {
			t.Fatal(err)
		}
		return path
	}
	a := file("a", 1<<20, 1)
	for other, want := range map[string]bool{
		file("b", 1<<20, 1): true, file("c", 1<<20, 2): false, file("d", 1<<20+1, 0): false, file("e", 1<<20-1, 1): false, file("f", 0, 0): false, a: true,
	} {
		for _, pair := range [][2]string{{a, other}, {other, a}} {
			if got, err := sameBytes(context.Background(), pair[0], pair[1]); err != nil || got != want {
				t.Errorf("%s: %v %v, expected %v", filepath.Base(other), got, err, want)
			}
		}
	}
	if got, err := sameBytes(context.Background(), filepath.Join(dir, "nowhere"), a); err != nil || got {
		t.Errorf("a file that is not there: %v %v", got, err)
	}
}

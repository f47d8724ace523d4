package main

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

func TestSuggest(t *testing.T) {
	known := []string{"adapter", "output", "force", "dry-run", "dtype", "device"}
	for word, want := range map[string]string{
		"ouput": "output", "outptu": "output", "adaptor": "adapter", "dryrun": "dry-run", "dtyp": "dtype", "forced": "force",
		"x": "", "resume": "", "quantize": "", "": "",
	} {
		got := suggest(word, known, "--", "listed")
		if want != "" {
			want = "did you mean --" + want + "? "
		}
		if got != want+"listed" {
			t.Errorf("%q: %q, expected %q", word, got, want)
		}
	}
}

// FuzzArrange checks that arranging neither loses nor invents a word, and never panics. Words are separated by newlines.
func FuzzArrange(f *testing.F) {
	for _, s := range []string{
		"merge\nbase\n-a\nlora:0.5\n-o\nout", "--json\nmerge\n--check=off\nbase\n--\n-odd", "help\nruntime\ninstall", "runtime\ninfo\n-q", "merge\n-o\n-", "-\n--\n--",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		words := strings.Split(s, "\n")
		out, err := arrange(newApp(&terminal{out: io.Discard, err: io.Discard}), append([]string{"loratool"}, words...))
		var u usageError
		var h helpRequest
		if errors.As(err, &u) || errors.As(err, &h) {
			return
		}
		if err != nil {
			t.Fatalf("%q: %v", words, err)
		}
		if i := slices.Index(words, "--"); i < 0 {
			words = append(words, "--")
		}
		got := slices.Clone(out[1:])
		slices.Sort(got)
		slices.Sort(words)
		if !slices.Equal(got, words) {
			t.Fatalf("%q became %q", s, out)
		}
	})
}

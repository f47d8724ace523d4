package safetensors

import (
	"bytes"

	"github.com/loratool/loratool/finding"
)

// isPointer reports whether a file begins like a git-lfs pointer.
func isPointer(start []byte) bool {
	return bytes.HasPrefix(start, []byte("version https://git-lfs.github.com/spec/"))
}

func pointer(file string) error {
	return finding.Errorf("container.lfs_pointer", file, "this is a git-lfs pointer, not the file itself").
		Hinted("run git lfs pull, or download the file from the model's page")
}

// sniff names what a file is that cannot be safetensors, and says what to do. The magic numbers of
// one or two bytes also begin headers of a likely length; they count only where weak is set.
func sniff(start []byte, weak bool) (what, hint string) {
	if weak {
		start = bytes.TrimLeft(start, " \r\n\t")
	}
	for _, s := range []struct{ magic, what, hint string }{
		{"GGUF", "a GGUF file", "rename it to .gguf"},
		{"lmgg", "an old GGML file", "convert it to GGUF with the llama.cpp of its time"},
		{"tjgg", "an old GGML file", "convert it to GGUF with the llama.cpp of its time"},
		{"algg", "an old GGML adapter", "convert the original adapter again"},
		{"PK\x03\x04", "a zip archive, perhaps a PyTorch file", "rename it to .bin or .pt if it is one"},
		{"\x80\x02", "a Python pickle, perhaps an old PyTorch file", "rename it to .bin or .pt if it is one"},
		{"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"},
		{"\x1f\x8b", "a gzip file", "unpack it"},
		{"\x28\xb5\x2f\xfd", "a zstd file", "unpack it"},
		{"\x89HDF", "an HDF5 file", ""},
		{"<", "an HTML or XML page", "the download failed, perhaps because the model asks for a login; fetch it again"},
		{"{", "JSON text, perhaps the error message of a server", "look at it with a text editor"},
	} {
		if bytes.HasPrefix(start, []byte(s.magic)) && (weak || len(s.magic) >= 4) {
			return s.what, s.hint
		}
	}
	return "", ""
}

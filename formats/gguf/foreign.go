package gguf

import (
	"bytes"
	"fmt"

	"github.com/loratool/loratool/finding"
)

// foreign lists what is found where a GGUF file was expected, by its first bytes.
var foreign = []struct{ prefix, name, hint string }{
	{"tjgg", "a GGJT file, the format before GGUF", "convert it again from the original model"},
	{"fmgg", "a GGMF file, the format before GGJT", "convert it again from the original model"},
	{"lmgg", "a GGML file, the format before GGUF", "convert it again from the original model"},
	{"algg", "a GGLA adapter, the LoRA format before GGUF", "convert the adapter again from its PEFT folder"},
	{"FUGG", "a GGUF magic with its bytes reversed", ""},
	{"PK\x03\x04", "a zip archive", "a PyTorch file or an archive to unpack first"},
	{"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"},
	{"\x1f\x8b", "a gzip file", "unpack it first"},
	{"\x80\x02", "a pickle", ""},
	{"<!", "an HTML page", "the download returned a web page: fetch the file itself"},
	{"<html", "an HTML page", "the download returned a web page: fetch the file itself"},
	{`{"`, "JSON text", "the download may have returned an error message"},
}

// notGGUF says what a file is whose first bytes are not the magic.
func notGGUF(file string, head []byte) *finding.Finding {
	if bytes.HasPrefix(head, []byte("version https://git-lfs")) {
		return finding.Errorf("container.lfs_pointer", file, "the file is a git-lfs pointer, not the model").
			Hinted("fetch the content with git lfs pull")
	}
	f := finding.Errorf("container.bad_magic", file, "not a GGUF file")
	for _, k := range foreign {
		if bytes.HasPrefix(head, []byte(k.prefix)) {
			return f.Expected(k.name, "GGUF").Hinted(k.hint)
		}
	}
	if len(head) > 8 && head[8] == '{' {
		return f.Expected("perhaps a safetensors file", "GGUF")
	}
	return f.Expected(fmt.Sprintf("%q", head[:min(4, len(head))]), "GGUF")
}

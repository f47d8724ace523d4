package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// BenchmarkInspect lists the 2,000 tensors of a model of 32 MB.
func BenchmarkInspect(b *testing.B) {
	const tensors, size = 2000, 16384
	var header strings.Builder
	for i := range tensors {
		fmt.Fprintf(&header, `,"model.layers.%d.block.%d.weight":{"dtype":"BF16","shape":[128,64],"data_offsets":[%d,%d]}`, i/20, i%20, i*size, (i+1)*size)
	}
	text := "{" + header.String()[1:] + "}"
	path := filepath.Join(b.TempDir(), "model.safetensors")
	file := append(binary.LittleEndian.AppendUint64(nil, uint64(len(text))), text...)
	if err := os.WriteFile(path, file, 0o666); err != nil {
		b.Fatal(err)
	}
	if err := os.Truncate(path, int64(len(file))+tensors*size); err != nil {
		b.Fatal(err)
	}
	for _, format := range []string{"--tensors", "--json"} {
		b.Run(strings.TrimPrefix(format, "--"), func(b *testing.B) {
			for b.Loop() {
				if status := run([]string{"loratool", "inspect", format, path}, io.Discard, io.Discard); status != exitDone {
					b.Fatal(status)
				}
			}
		})
	}
}

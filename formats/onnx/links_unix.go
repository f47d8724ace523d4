//go:build unix

package onnx

import (
	"io/fs"
	"syscall"
)

// links is the number of names a file has in its file system.
func links(fi fs.FileInfo) uint64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Nlink)
	}
	return 1
}

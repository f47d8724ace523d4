// Package oracle opens ONNX Runtime on the CPU, which tests hold results to. Only tests import it.
package oracle

import (
	"context"
	"testing"

	"github.com/loratool/loratool/onnxruntime"
)

// Runtime opens the library that is found. Without one the test is skipped, and counted as such.
func Runtime(t testing.TB) *onnxruntime.Runtime {
	t.Helper()
	rt, err := open()
	if err != nil {
		t.Skipf("without ONNX Runtime: %v", err)
	}
	return rt
}

// Try is Runtime for tests that check less without it: nil and a note then.
func Try(t testing.TB) *onnxruntime.Runtime {
	t.Helper()
	rt, err := open()
	if err != nil {
		t.Logf("without ONNX Runtime: %v", err)
	}
	return rt
}

func open() (*onnxruntime.Runtime, error) {
	lib, err := onnxruntime.Locate("")
	if err != nil {
		return nil, err
	}
	return onnxruntime.Open(context.Background(), lib, onnxruntime.Options{Device: onnxruntime.Device(onnxruntime.CPU)})
}

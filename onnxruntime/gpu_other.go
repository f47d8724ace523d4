//go:build cgo && !noort && !linux

package onnxruntime

// gpuLoader has nothing to check: WebGPU sits on the system's own graphics interface here.
func gpuLoader() error { return nil }

// gpuDevices names that interface; which device it takes, only running it can tell.
func gpuDevices() []gpuDevice { return []gpuDevice{{name: "the system's default GPU"}} }

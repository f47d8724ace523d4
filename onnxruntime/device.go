package onnxruntime

import (
	"strings"

	"github.com/loratool/loratool/finding"
)

// A Provider is an execution provider: what of the runtime does the arithmetic.
type Provider string

// The providers this program uses.
const (
	CPU    Provider = "cpu"
	CUDA   Provider = "cuda"
	WebGPU Provider = "webgpu"
)

// A Device is a wish for a provider: Auto, or a Provider's name.
type Device string

// Auto takes CUDA when its provider computes, else WebGPU when there is a GPU with a Vulkan driver,
// else the CPU.
const Auto Device = "auto"

// ParseDevice reads a --device value, without regard to case.
func ParseDevice(s string) (Device, error) {
	d := Device(strings.ToLower(s))
	switch d {
	case "":
		return Auto, nil
	case Auto, Device(CPU), Device(CUDA), Device(WebGPU):
		return d, nil
	}
	return "", finding.Errorf("runtime.bad_device", "", "there is no device %q", s).Expected(s, "auto, cpu, cuda or webgpu")
}

// A gpuDevice is what a graphics driver reports, as far as the choice of a provider depends on it.
type gpuDevice struct {
	name     string
	software bool
}

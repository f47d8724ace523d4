package adapter

import (
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/tensor"
)

// rounder rounds a float32 to the nearest value of a narrower type and back; other types leave it alone.
func rounder(t tensor.DType) func(float32) float32 {
	switch t {
	case tensor.BF16:
		return func(f float32) float32 { return kernel.BF16(kernel.ToBF16(f)) }
	case tensor.F16:
		return func(f float32) float32 { return kernel.F16(kernel.ToF16(f)) }
	}
	return func(f float32) float32 { return f }
}

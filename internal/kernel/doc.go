// Package kernel holds the few loops that decide how fast the program is: conversions between float32
// and the 16-bit types, the low-rank update of a slab of rows, and the searches for scales that make up
// nearly all the work of quantizing.
//
// Each loop exists twice. The portable Go form is the specification; the amd64 form uses AVX2 and
// F16C, is chosen at run time and gives the same bits. Build tag noasm leaves only the portable form.
// Sums keep their order and nothing is fused, so one input has one result on every processor. Only
// the sign and payload of a NaN that arithmetic produces are left open.
package kernel

//go:generate go -C _gen run . -out ../kernel_amd64.s -stubs ../kernel_amd64.go -pkg kernel
//go:generate go -C _gen run ./lattice -out ../lattice_amd64.s -stubs ../lattice_amd64.go -pkg kernel
//go:generate go -C _gen run ./matched -out ../matched_amd64.s -stubs ../matched_amd64.go -pkg kernel

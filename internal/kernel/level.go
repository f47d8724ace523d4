package kernel

// A level is an instruction set the loops can use.
type level int

const (
	portable level = iota
	avx2           // AVX2 and F16C
)

// active is the level in use. It is set once, before main; only tests change it.
var active = best()

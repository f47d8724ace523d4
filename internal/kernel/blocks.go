package kernel

// A Quick encodes a block type that needs no search with vectors. It does not do all blocks: those
// that hold a value that is not finite, whose scale overflows, or whose numbers it cannot take are for
// the scalar encoder of the type, whose bytes it gives otherwise. Without vectors it does none.
type Quick int

// The types.
const (
	QuickQ8_0 Quick = iota
	QuickQ4_0
	QuickQ5_0
	QuickQ4_1
	QuickQ5_1
	QuickMXFP4
	QuickNVFP4
)

// quickBlocks are the values and the bytes of a block.
var quickBlocks = [...]struct{ values, bytes int }{
	QuickQ8_0: {32, 34}, QuickQ4_0: {32, 18}, QuickQ5_0: {32, 22}, QuickQ4_1: {32, 20}, QuickQ5_1: {32, 24},
	QuickMXFP4: {32, 17}, QuickNVFP4: {64, 36},
}

// Encode encodes whole blocks from the start of src on, as many as fit both and up to the first that it
// cannot do. It returns how many that were.
func (q Quick) Encode(dst []byte, src []float32) int {
	blocks := min(len(src)/quickBlocks[q].values, len(dst)/quickBlocks[q].bytes)
	if blocks == 0 {
		return 0
	}
	return blocks - quickLeft(q, dst, src, blocks)
}

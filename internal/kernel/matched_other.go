//go:build !amd64 || noasm

package kernel

// CanMatch is false here, so that neither is called.

func matchNearest(*Match) {}

func gridDistances(dst []float64, x, steps, offs []float32, low, top float32) {
	gridDistancesGo(dst, x, steps, offs, low, top)
}

func matchMove(*Match, *matchBest) {}

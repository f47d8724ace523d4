//go:build amd64 && !noasm

package kernel

func matchNearest(m *Match) {
	cols := len(m.Columns) / MatchWidth
	if m.uniform {
		matchNearestUniformAVX2(&m.Columns[0], &m.Q[0], m.Rank, cols, &m.Z[0], &m.C[0], m.low, m.top)
	} else {
		matchNearestLevelsAVX2(&m.Columns[0], &m.Q[0], m.Rank, cols, &m.Z[0], &m.C[0], &m.table[0])
	}
}

func gridDistances(dst []float64, x, steps, offs []float32, low, top float32) {
	n := 0
	if active >= avx2 && len(x) >= 8 {
		n = len(x) &^ 7
		gridDistancesAVX2(&dst[0], &x[0], &steps[0], &offs[0], n/8, low, top)
	}
	gridDistancesGo(dst[n:], x[n:], steps[n:], offs[n:], low, top)
}

func matchMove(m *Match, best *matchBest) {
	cols := len(m.Columns) / MatchWidth
	if m.uniform {
		matchMoveUniformAVX2(&m.Columns[0], &m.Q[0], m.Rank, cols, &m.C[0], &m.Curves[0], m.top, &best.gain[0])
	} else {
		matchMoveLevelsAVX2(&m.Columns[0], &m.Q[0], m.Rank, cols, &m.C[0], &m.Curves[0], m.top, &best.gain[0], &m.table[0])
	}
}

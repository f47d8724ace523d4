package main

import (
	"fmt"
	"io"

	"github.com/loratool/loratool/merge"
)

// requantUsage is the usage of --requant.
const requantUsage = "`HOW` an updated tensor returns to its quantized type: auto (match where possible), match (keep what the adapter does), rtn (decode, add, encode), refuse"

// readRequant reads --requant into the options of a merge.
func readRequant(s string, opt *merge.Options) error {
	switch s {
	case "auto":
		opt.Requant = merge.RequantAuto
	case "match":
		opt.Requant = merge.RequantMatch
	case "rtn":
		opt.Requant = merge.RequantNearest
	case "refuse":
		opt.RefuseRequant = true
	default:
		return usagef("--requant %q: auto, match, rtn or refuse", s)
	}
	return nil
}

// printKept says what matched rounding has saved, as the mean over the tensors that it stored.
func printKept(out io.Writer, stats []merge.Stats) {
	var kept, nearest, weighed float64
	n, inputs := 0, 0
	for _, s := range stats {
		if s.Calibrated != nil {
			weighed += *s.Calibrated
			inputs++
		}
		if s.Nearest != nil {
			kept += s.Retention
			nearest += s.Nearest.Retention
			n++
		}
	}
	if n > 0 {
		fmt.Fprintf(out, "matched rounding kept %.1f %% of the adapter in %d tensors, nearest rounding would have kept %.1f %%\n",
			100*kept/float64(n), n, 100*nearest/float64(n))
	}
	if inputs > 0 {
		fmt.Fprintf(out, "on the inputs of the calibration, %.1f %% of the adapter is kept in %d tensors\n", 100*weighed/float64(inputs), inputs)
	}
}

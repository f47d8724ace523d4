//go:build !amd64 || noasm

package kernel

// CanMatch is false here, so that neither is called.

func matchNearest(*Match) {}

func matchMove(*Match, *matchBest) {}

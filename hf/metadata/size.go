package metadata

import (
	"math"
	"strconv"
	"strings"
)

// sizeLabel is the size of a model as people write it: "7.2B", "8x7.2B".
func sizeLabel(p Parameters) string {
	if p.ExpertCount > 0 {
		return strconv.FormatInt(p.ExpertCount, 10) + "x" + notation(p.Shared+p.Experts)
	}
	return notation(p.Total)
}

// notation writes a count with two digits or more.
func notation(n int64) string {
	x, unit := float64(n), "K"
	switch {
	case x > 1e12:
		x, unit = x*1e-12, "T"
	case x > 1e9:
		x, unit = x*1e-9, "B"
	case x > 1e6:
		x, unit = x*1e-6, "M"
	default:
		x *= 1e-3
	}
	digits := 0
	if r := math.RoundToEven(x); r != 0 {
		digits = len(strconv.FormatFloat(r, 'f', 0, 64))
	}
	return strconv.FormatFloat(x, 'f', max(2-digits, 0), 64) + unit
}

// FileName is the name that the reference gives an output without one: the model's basename or name,
// size, finetune, version and type, joined with hyphens, without ending. Parts may be "".
func FileName(name, basename, finetune, version, size, fileType string) string {
	first := basename
	if first == "" {
		first = name
	}
	if first == "" {
		first = "ggml-model"
	}
	parts := []string{first}
	for _, p := range []string{size, finetune, version} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	for i, p := range parts {
		parts[i] = strings.NewReplacer(" ", "-", "/", "-").Replace(strings.TrimSpace(p))
	}
	if fileType != "" {
		parts = append(parts, strings.ToUpper(fileType))
	}
	return strings.Join(parts, "-")
}

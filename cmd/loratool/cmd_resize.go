package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/adapter/lowrank"
	"github.com/loratool/loratool/tensor"
)

func resizeCommand(t *terminal) *cli.Command {
	return &cli.Command{
		Name:      "resize",
		Usage:     "give an adapter smaller ranks",
		ArgsUsage: "ADAPTER",
		Description: "Every update keeps as many of its singular values as all the given limits allow, one at least, and what is lost is printed. Values " +
			"are those of ΔW itself, whatever its factors look like, and the effective scale stays what it was: alpha follows the rank.\n\n" +
			"Exit status: 0 done, 2 could not complete, 4 usage.",
		Flags: slices.Concat([]cli.Flag{
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "output `PATH`"},
			&cli.IntFlag{Name: "rank", Usage: "at most this `RANK`"},
			energyFlag(),
			&cli.Float64Flag{Name: "sv-ratio", Usage: "keep the singular values larger than the largest divided by `RATIO`"},
			&cli.Float64Flag{Name: "fro", Usage: "keep the fewest singular values with this `SHARE` of the Frobenius norm: --energy is its square"},
			&cli.StringFlag{Name: "to", Usage: "`FORMAT` of the output: " + strings.Join(dialect.Written(), ", ") + " (default: the adapter's own)"},
			&cli.StringFlag{Name: "base", Usage: "base model, `PATH`, for forms whose names depend on it"},
			&cli.StringFlag{Name: "dtype", Usage: "`TYPE` of the factors: f32, f16, bf16 (default: the adapter's own)"},
			&cli.BoolFlag{Name: "force", Usage: "replace an existing output"},
		}, dialectFlags()),
		Action: func(c *cli.Context) error { return runResize(t, c) },
	}
}

func runResize(t *terminal, c *cli.Context) error {
	in, err := oneArgument(c, "adapter")
	if err != nil {
		return err
	}
	limits, err := rankLimits(c)
	switch {
	case err != nil:
		return err
	case c.String("output") == "":
		return usagef("resize needs an output (-o PATH)")
	case !limits.Any():
		return usagef("resize needs a limit: --rank, --energy, --sv-ratio or --fro")
	}
	dtype, err := factorType(c)
	if err != nil {
		return err
	}
	opt, err := dialectOptions(c)
	if err != nil {
		return err
	}
	a, err := dialect.Open(in, opt)
	if err != nil {
		return err
	}
	defer a.Close()
	if dtype == tensor.Invalid {
		dtype = commonType(a)
	}
	return t.writeLowRank(c, a, lowrank.Options{Limits: limits}, dtype, []string{in})
}

// commonType is the type that all factors of an adapter are stored in, Invalid where they differ.
func commonType(a *adapter.Adapter) tensor.DType {
	d := tensor.Invalid
	for i := range a.Updates {
		for _, f := range []adapter.Factor{a.Updates[i].A, a.Updates[i].B} {
			switch {
			case !f.Present() || f.DType == d:
			case d == tensor.Invalid && f.DType.IsFloat():
				d = f.DType
			default:
				return tensor.Invalid
			}
		}
	}
	return d
}

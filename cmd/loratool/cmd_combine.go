package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/loratool/loratool/adapter/combination"
	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/adapter/lowrank"
	"github.com/loratool/loratool/tensor"
)

func combineCommand(t *terminal) *cli.Command {
	return &cli.Command{
		Name:  "combine",
		Usage: "make one adapter of several",
		Description: "cat stacks the factors: exactly the sum of the weighted differences, at the sum of the ranks. linear and svd are the same sum at a " +
			"smaller rank, by its singular values (default: the largest of the inputs'); what is lost is printed. ties, dare_linear, dare_ties and " +
			"magnitude_prune keep a share of the elements of each factor (--density) before they are added; with _svd, of each difference.\n\n" +
			"Exit status: 0 done, 2 could not complete, 4 usage.",
		Flags: slices.Concat([]cli.Flag{
			&cli.StringSliceFlag{Name: "adapter", Aliases: []string{"a"}, Usage: "adapter `PATH[:WEIGHT]`; repeatable, a negative weight subtracts"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "output `PATH`"},
			&cli.StringFlag{Name: "method", Value: "cat", Usage: "`METHOD`: " + strings.Join(combination.Methods(), ", ")},
			&cli.Float64Flag{Name: "density", Value: 0.5, Usage: "`SHARE` of the elements that pruning keeps"},
			&cli.StringFlag{Name: "majority-sign", Value: "total", Usage: "sign that ties methods keep, by `WHAT`: total (of the sum), frequency (of most adapters)"},
			&cli.Uint64Flag{Name: "seed", Usage: "`SEED` of what dare methods keep"},
			&cli.StringFlag{Name: "compat", Usage: "reproduce a peer's formulas, `PEER`: peft (linear adds the factors, scales count twice in svd)"},
			&cli.IntFlag{Name: "rank", Usage: "at most this `RANK`"},
			energyFlag(),
			&cli.StringFlag{Name: "to", Usage: "`FORMAT` of the output: " + strings.Join(dialect.Written(), ", ") + " (default: the first adapter's own)"},
			&cli.StringFlag{Name: "base", Usage: "base model, `PATH`, for forms whose names depend on it"},
			&cli.StringFlag{Name: "dtype", Usage: "`TYPE` of the factors: f32, f16, bf16 (default: the adapters' own, where it is one)"},
			&cli.BoolFlag{Name: "force", Usage: "replace an existing output"},
		}, dialectFlags()),
		Action: func(c *cli.Context) error { return runCombine(t, c) },
	}
}

func runCombine(t *terminal, c *cli.Context) error {
	opt, limits, err := combineOptions(c)
	if err != nil {
		return err
	}
	dtype, err := factorType(c)
	if err != nil {
		return err
	}
	dialects, err := dialectOptions(c)
	if err != nil {
		return err
	}
	opened, closeAll, err := openAdapters(c.StringSlice("adapter"), dialects)
	if err != nil {
		return err
	}
	defer closeAll()
	var inputs []combination.Input
	var paths []string
	types := map[tensor.DType]bool{}
	for _, in := range opened {
		inputs = append(inputs, combination.Input{Adapter: in.Adapter, Weight: in.Scale})
		paths = append(paths, in.Adapter.Path)
		types[commonType(in.Adapter)] = true
	}
	if dtype == tensor.Invalid && len(types) == 1 {
		dtype = commonType(opened[0].Adapter)
	}
	a, err := combination.Of(inputs, opt)
	if err != nil {
		return err
	}
	for _, in := range opened {
		a.Findings = append(a.Findings, in.Adapter.Findings...)
	}
	if opt.Limited() && !limits.Any() {
		limits.Rank = combination.Rank(inputs)
	}
	return t.writeLowRank(c, a, lowrank.Options{Limits: limits}, dtype, paths)
}

func combineOptions(c *cli.Context) (opt combination.Options, limits lowrank.Limits, err error) {
	opt = combination.Options{
		Method: strings.ToLower(c.String("method")), Density: c.Float64("density"), Seed: c.Uint64("seed"),
		Frequency: c.String("majority-sign") == "frequency", PEFT: c.String("compat") == "peft",
	}
	limits, err = rankLimits(c)
	switch {
	case err != nil:
	case c.NArg() > 0:
		err = usagef("combine takes its adapters with -a, found %q", c.Args().First())
	case len(c.StringSlice("adapter")) == 0:
		err = usagef("combine needs adapters (-a PATH:WEIGHT -a PATH:WEIGHT)")
	case c.String("output") == "":
		err = usagef("combine needs an output (-o PATH)")
	case !slices.Contains(combination.Methods(), opt.Method):
		err = usagef("--method %q: %s", opt.Method, strings.Join(combination.Methods(), ", "))
	case !(opt.Density > 0 && opt.Density <= 1):
		err = usagef("--density %g: a share is more than 0 and at most 1", opt.Density)
	case !opt.Frequency && c.String("majority-sign") != "total":
		err = usagef("--majority-sign %q: total or frequency", c.String("majority-sign"))
	case !opt.PEFT && c.String("compat") != "":
		err = usagef("--compat %q: peft", c.String("compat"))
	}
	return opt, limits, err
}

package main

import (
	"regexp"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/adapter/difference"
	"github.com/loratool/loratool/adapter/lowrank"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/tensor"
)

func extractCommand(t *terminal) *cli.Command {
	return &cli.Command{
		Name:  "extract",
		Usage: "make an adapter of what two models differ in",
		Description: "Every matrix of TUNED that is more than BASE rounded to its type becomes a product of two factors, by its singular values: " +
			"at most RANK of them, or the fewest that hold SHARE of the squares of the difference. What is lost is printed. Changed norms and " +
			"biases are carried whole where FORMAT can hold them, and are an error where it cannot (--exclude leaves them out).\n\n" +
			"Exit status: 0 done, 2 could not complete, 3 the models are equal, 4 usage, 130 interrupted.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "base", Usage: "the model BASE, `PATH`"},
			&cli.StringFlag{Name: "tuned", Usage: "the model TUNED, `PATH`: of BASE's format, with the same tensors"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "output `PATH`"},
			&cli.StringFlag{Name: "to", Usage: "`FORMAT` of the adapter: " + strings.Join(dialect.Written(), ", ") + " (default: gguf of GGUF models, diffusers of pipelines, else peft)"},
			&cli.IntFlag{Name: "rank", Usage: "factors of at most this `RANK` (default without --energy: 32)"},
			energyFlag(),
			&cli.StringFlag{Name: "include", Usage: "only tensors whose name matches `REGEX`"},
			&cli.StringFlag{Name: "exclude", Usage: "no tensors whose name matches `REGEX`"},
			&cli.StringFlag{Name: "dtype", Usage: "`TYPE` of the factors: f32, f16, bf16 (default: f32)"},
			&cli.BoolFlag{Name: "force", Usage: "replace an existing output"},
		},
		Action: func(c *cli.Context) error { return runExtract(t, c) },
	}
}

func runExtract(t *terminal, c *cli.Context) error {
	basePath, tunedPath, output := c.String("base"), c.String("tuned"), c.String("output")
	switch {
	case c.NArg() > 0:
		return usagef("extract takes no arguments, found %q", c.Args().First())
	case basePath == "" || tunedPath == "":
		return usagef("extract needs two models (--base BASE --tuned TUNED)")
	case output == "":
		return usagef("extract needs an output (-o PATH)")
	}
	opt, limit, dtype, err := extractOptions(c)
	if err != nil {
		return err
	}
	opt.Jobs = t.workers()
	base, err := t.openBase(basePath)
	if err != nil {
		return err
	}
	defer base.Close()
	tuned, err := t.openBase(tunedPath)
	if err != nil {
		return err
	}
	defer tuned.Close()
	add, done := t.bar("comparing", "", difference.Bytes(base, opt))
	opt.Progress = add
	a, err := difference.Of(c.Context, base, tuned, opt)
	done()
	if err != nil {
		return err
	}
	if len(a.Updates) == 0 {
		return finding.Errorf("match.nothing_to_do", tunedPath, "no tensor differs from the base's")
	}
	a.Dialect = extractedDialect(base)
	return t.writeLowRank(c, a, limit, dtype, []string{basePath, tunedPath})
}

func extractOptions(c *cli.Context) (opt difference.Options, limit lowrank.Options, dtype tensor.DType, err error) {
	for flag, to := range map[string]**regexp.Regexp{"include": &opt.Include, "exclude": &opt.Exclude} {
		if s := c.String(flag); s != "" {
			if *to, err = regexp.Compile(s); err != nil {
				return opt, limit, dtype, usagef("--%s: %v", flag, err)
			}
		}
	}
	if limit.Limits, err = rankLimits(c); err != nil {
		return opt, limit, dtype, err
	}
	if !limit.Any() {
		limit.Rank = 32
	}
	dtype, err = factorType(c)
	return opt, limit, dtype, err
}

// extractedDialect is the form that a base's users load adapters in.
func extractedDialect(base formats.Model) string {
	if base.Format() == "gguf" {
		return "gguf"
	}
	if _, ok := base.(*formats.Pipeline); ok {
		return "diffusers"
	}
	return "peft"
}

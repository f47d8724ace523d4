package main

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/adapter/difference"
	"github.com/loratool/loratool/adapter/geometry"
	"github.com/loratool/loratool/adapter/gguflora"
	"github.com/loratool/loratool/adapter/lowrank"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/naming"
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
			&cli.Float64Flag{Name: "energy", Usage: "keep the fewest singular values with this `SHARE` of the squares, such as 0.99"},
			&cli.StringFlag{Name: "include", Usage: "only tensors whose name matches `REGEX`"},
			&cli.StringFlag{Name: "exclude", Usage: "no tensors whose name matches `REGEX`"},
			&cli.StringFlag{Name: "dtype", Usage: "`TYPE` of the factors: f32, f16, bf16 (default: f32)"},
			&cli.BoolFlag{Name: "force", Usage: "replace an existing output"},
		},
		Action: func(c *cli.Context) error { return runExtract(t, c) },
	}
}

// An extractDocument is what extract prints with --json.
type extractDocument struct {
	SchemaVersion int               `json:"schema_version"`
	Output        string            `json:"output"`
	Dialect       string            `json:"dialect"`
	Tensors       int               `json:"tensors"`
	Modules       []extractedModule `json:"modules"`
	Findings      []finding.Finding `json:"findings"`
}

// An extractedModule is the low-rank form of one matrix.
type extractedModule struct {
	Module string  `json:"module"`
	Param  string  `json:"param"`
	Rank   int     `json:"rank"`
	Lost   float64 `json:"lost"` // share of the squares of the difference
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
	opt.Jobs = cmp.Or(t.jobs, runtime.GOMAXPROCS(0))
	limit.Jobs = opt.Jobs
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
	to := strings.ToLower(c.String("to"))
	if to == "" {
		to = extractedDialect(base)
	}
	if !slices.Contains(dialect.Written(), to) {
		return usagef("--to %q: an adapter is written as %s", to, strings.Join(dialect.Written(), ", "))
	}
	if err := outputIsInput(output, []string{basePath, tunedPath}); err != nil {
		return err
	}
	low, losses, err := t.extract(c.Context, base, tuned, opt, limit)
	if err != nil {
		return err
	}
	if to == "gguf" && low.Space == naming.GGUF {
		g, err := geometry.Read(basePath)
		if err != nil {
			return err
		}
		if low, err = gguflora.ToHF(low, g.Arch, g.HP); err != nil {
			return err
		}
	}
	out, err := dialect.Encode(low, to, dialect.Target{Name: filepath.Base(filepath.Clean(output)), Base: basePath, DType: dtype})
	if err != nil {
		return err
	}
	if err := writeAdapter(output, out, c.Bool("force")); err != nil {
		return err
	}
	doc := extractDocument{SchemaVersion: 1, Output: output, Dialect: to, Tensors: len(out.Weights), Modules: []extractedModule{}}
	doc.Findings = append([]finding.Finding{}, out.Findings...)
	for _, l := range losses {
		doc.Modules = append(doc.Modules, extractedModule{l.Module, l.Param, l.Rank, l.Lost})
	}
	if t.json {
		if err := t.document(doc); err != nil {
			return err
		}
	}
	t.report(doc.Findings)
	fmt.Fprintf(t.text(), "%s: %d tensors written from %d that differ%s\n", finding.Escape(output), len(out.Weights), len(low.Updates), lossSummary(losses))
	return nil
}

// extract compares the models and factors what differs.
func (t *terminal) extract(ctx context.Context, base, tuned formats.Model, opt difference.Options, limit lowrank.Options) (*adapter.Adapter, []lowrank.Loss, error) {
	add, done := t.bar("comparing", "", difference.Bytes(base, opt))
	opt.Progress = add
	a, err := difference.Of(ctx, base, tuned, opt)
	done()
	if err != nil {
		return nil, nil, err
	}
	if len(a.Updates) == 0 {
		return nil, nil, finding.Errorf("match.nothing_to_do", tuned.Path(), "no tensor differs from the base's")
	}
	add, done = t.bar("factoring", "tensors", int64(len(a.Updates)))
	defer done()
	limit.Progress = func() { add(1) }
	return lowrank.Convert(ctx, a, limit)
}

func extractOptions(c *cli.Context) (opt difference.Options, limit lowrank.Options, dtype tensor.DType, err error) {
	for flag, to := range map[string]**regexp.Regexp{"include": &opt.Include, "exclude": &opt.Exclude} {
		if s := c.String(flag); s != "" {
			if *to, err = regexp.Compile(s); err != nil {
				return opt, limit, dtype, usagef("--%s: %v", flag, err)
			}
		}
	}
	if limit, err = rankOptions(c); err != nil {
		return opt, limit, dtype, err
	}
	if !limit.Limited() {
		limit.Rank = 32
	}
	if s := c.String("dtype"); s != "" {
		d, ok := tensor.ParseDType(s)
		if !ok || !d.IsFloat() {
			return opt, limit, dtype, usagef("--dtype %q: factors are f32, f16 or bf16", s)
		}
		dtype = d
	}
	return opt, limit, dtype, nil
}

// rankOptions reads --rank and --energy.
func rankOptions(c *cli.Context) (lowrank.Options, error) {
	opt := lowrank.Options{Rank: c.Int("rank"), Energy: c.Float64("energy")}
	switch {
	case c.IsSet("rank") && opt.Rank <= 0:
		return opt, usagef("--rank %d: a rank is positive", opt.Rank)
	case c.IsSet("energy") && !(opt.Energy > 0 && opt.Energy < 1):
		return opt, usagef("--energy %g: a share lies between 0 and 1", opt.Energy)
	}
	return opt, nil
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

// lossSummary says how much of the differences the factors leave out.
func lossSummary(losses []lowrank.Loss) string {
	if len(losses) == 0 {
		return ""
	}
	worst := slices.MaxFunc(losses, func(a, b lowrank.Loss) int { return cmp.Compare(a.Lost, b.Lost) })
	lost := make([]float64, len(losses))
	for i, l := range losses {
		lost[i] = l.Lost
	}
	slices.Sort(lost)
	return fmt.Sprintf("; of the squares of the difference %.3g %% lost in the median, %.3g %% at most (%s)",
		100*lost[len(lost)/2], 100*worst.Lost, finding.Escape(worst.Module))
}

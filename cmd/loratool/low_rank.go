package main

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/adapter/lowrank"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

func energyFlag() cli.Flag {
	return &cli.Float64Flag{Name: "energy", Usage: "of an adapter's differences, keep the fewest singular values with this `SHARE` of the squares, such as 0.99"}
}

// rankLimits reads --rank, --energy, --sv-ratio and --fro, as far as a command has them.
func rankLimits(c *cli.Context) (lowrank.Limits, error) {
	l := lowrank.Limits{Rank: c.Int("rank"), Energy: c.Float64("energy"), Ratio: c.Float64("sv-ratio")}
	fro := c.Float64("fro")
	switch {
	case c.IsSet("rank") && l.Rank <= 0:
		return l, usagef("--rank %d: a rank is positive", l.Rank)
	case c.IsSet("energy") && !(l.Energy > 0 && l.Energy < 1):
		return l, usagef("--energy %g: a share lies between 0 and 1", l.Energy)
	case c.IsSet("sv-ratio") && !(l.Ratio > 1):
		return l, usagef("--sv-ratio %g: a ratio of the largest singular value to the smallest is more than 1", l.Ratio)
	case c.IsSet("fro") && !(fro > 0 && fro < 1):
		return l, usagef("--fro %g: a share of the norm lies between 0 and 1", fro)
	case c.IsSet("fro") && c.IsSet("energy"):
		return l, usagef("--fro and --energy say the same thing: the first is the root of the second")
	case c.IsSet("fro"):
		l.Energy = float64(fro * fro)
	}
	return l, nil
}

// factorType reads --dtype of an adapter's factors; Invalid where it is not given.
func factorType(c *cli.Context) (tensor.DType, error) {
	s := c.String("dtype")
	if s == "" {
		return tensor.Invalid, nil
	}
	d, ok := tensor.ParseDType(s)
	if !ok || !d.IsFloat() {
		return d, usagef("--dtype %q: factors are f32, f16 or bf16", s)
	}
	return d, nil
}

// A lowRankDocument is what the commands that make low-rank adapters print with --json.
type lowRankDocument struct {
	SchemaVersion int               `json:"schema_version"`
	Output        string            `json:"output"`
	Dialect       string            `json:"dialect"`
	Tensors       int               `json:"tensors"`
	Modules       []lowRankModule   `json:"modules"`
	Findings      []finding.Finding `json:"findings"`
}

// A lowRankModule is what became of one update.
type lowRankModule struct {
	Module string  `json:"module"`
	Param  string  `json:"param"`
	Rank   int     `json:"rank"`
	Lost   float64 `json:"lost"` // share of the squares of the difference
}

// writeLowRank makes low-rank updates of all of an adapter's, within the limits, and writes them to the output
// in the form that --to names, or in the adapter's own.
func (t *terminal) writeLowRank(c *cli.Context, a *adapter.Adapter, opt lowrank.Options, dtype tensor.DType, inputs []string) error {
	output, to := c.String("output"), strings.ToLower(c.String("to"))
	if to == "" {
		to = a.Dialect
	}
	if !slices.Contains(dialect.Written(), to) {
		return usagef("--to %q: an adapter is written as %s", to, strings.Join(dialect.Written(), ", "))
	}
	if err := outputIsInput(output, inputs); err != nil {
		return err
	}
	add, done := t.bar("factoring", "updates", int64(len(a.Updates)))
	opt.Jobs, opt.Progress = t.workers(), func() { add(1) }
	low, losses, err := lowrank.Convert(c.Context, a, opt)
	done()
	if err != nil {
		return err
	}
	out, err := dialect.Encode(low, to, dialect.Target{Name: filepath.Base(filepath.Clean(output)), Base: c.String("base"), DType: dtype})
	if err != nil {
		return err
	}
	if err := writeAdapter(output, out, c.Bool("force")); err != nil {
		return err
	}
	doc := lowRankDocument{SchemaVersion: 1, Output: output, Dialect: to, Tensors: len(out.Weights), Modules: []lowRankModule{}}
	doc.Findings = slices.Concat([]finding.Finding{}, a.Findings, out.Findings)
	for _, l := range losses {
		doc.Modules = append(doc.Modules, lowRankModule{l.Module, l.Param, l.Rank, l.Lost})
	}
	if t.json {
		if err := t.document(doc); err != nil {
			return err
		}
	}
	t.report(doc.Findings)
	fmt.Fprintf(t.text(), "%s: %d tensors written from %d updates%s\n", finding.Escape(output), len(out.Weights), len(a.Updates), lossSummary(losses))
	return nil
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

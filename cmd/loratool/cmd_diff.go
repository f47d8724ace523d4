package main

import (
	"fmt"
	"math"
	"slices"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/verify/comparison"
)

func diffCommand(t *terminal) *cli.Command {
	return &cli.Command{
		Name:      "diff",
		Usage:     "say in which tensors two models differ, and by how much",
		ArgsUsage: "A B",
		Description: "Tensors are compared by name: missing ones, shapes, types, and the values that types hold. With -a, the share of the adapters' " +
			"update that B holds is measured for each tensor that they change in A.\n\n" +
			"Exit status: 0 they are equal, 1 they differ, 2 could not compare, 4 usage, 130 interrupted.",
		Flags: slices.Concat([]cli.Flag{
			adapterFlag(),
			&cli.Float64Flag{Name: "tolerance", Usage: "values are equal up to this relative `ERROR` of a tensor, ‖b − a‖/‖a‖"},
			&cli.BoolFlag{Name: "all", Usage: "list the equal tensors too"},
		}, dialectFlags()),
		Action: func(c *cli.Context) error { return runDiff(t, c) },
	}
}

// A diffDocument is what diff prints with --json.
type diffDocument struct {
	SchemaVersion int                 `json:"schema_version"`
	Equal         int                 `json:"equal"`
	Close         int                 `json:"close"`   // within the tolerance
	Tensors       []comparison.Tensor `json:"tensors"` // those that differ; all of them with --all
	Findings      []finding.Finding   `json:"findings"`
}

func runDiff(t *terminal, c *cli.Context) error {
	if c.NArg() != 2 {
		return usagef("diff takes two models, found %d", c.NArg())
	}
	tolerance := c.Float64("tolerance")
	if !(tolerance >= 0 && tolerance < math.Inf(1)) {
		return usagef("--tolerance %g: a relative error is not negative", tolerance)
	}
	var models [2]formats.Model
	for i := range models {
		m, err := formats.OpenWith(c.Args().Get(i), t.formats)
		if err != nil {
			return err
		}
		defer m.Close()
		if models[i], err = formats.Decode(m); err != nil {
			return err
		}
	}
	opt := comparison.Options{Tolerance: tolerance, Jobs: t.workers()}
	if args := c.StringSlice("adapter"); len(args) > 0 {
		plan, closeAdapters, err := diffPlan(c, models[0], args)
		if err != nil {
			return err
		}
		defer closeAdapters()
		opt.Plan = plan
	}
	var total int64
	for _, x := range models[0].Tensors() {
		total += x.Size
	}
	add, done := t.bar("comparing", "", total)
	opt.Progress = add
	tensors, findings, err := comparison.Of(c.Context, models[0], models[1], opt)
	done()
	if err != nil {
		return err
	}
	doc := diffDocument{SchemaVersion: 1, Tensors: []comparison.Tensor{}, Findings: findings}
	for _, x := range tensors {
		switch x.State {
		case comparison.Equal:
			doc.Equal++
		case comparison.Close:
			doc.Close++
		}
		if x.State != comparison.Equal || c.Bool("all") || x.Retention != nil {
			doc.Tensors = append(doc.Tensors, x)
		}
	}
	if t.json {
		if err := t.document(doc); err != nil {
			return err
		}
	}
	printDiff(t, doc)
	if len(findings) > 0 {
		return status(exitFound)
	}
	return nil
}

// diffPlan plans merging adapters into the first model.
func diffPlan(c *cli.Context, a formats.Model, args []string) (*merge.Plan, func(), error) {
	base, ok := a.(formats.Writable)
	if !ok {
		return nil, nil, finding.Errorf("base.unsupported", a.Path(), "adapters are not merged into %s files", a.Format())
	}
	opt, err := dialectOptions(c)
	if err != nil {
		return nil, nil, err
	}
	opt.Base = a.Path()
	inputs, closeAdapters, err := openAdapters(args, opt)
	if err != nil {
		return nil, nil, err
	}
	plan, err := planMerge(base, inputs, merge.Options{})
	if err != nil {
		closeAdapters()
		return nil, nil, err
	}
	return plan, closeAdapters, nil
}

func printDiff(t *terminal, doc diffDocument) {
	w := table.NewWriter()
	w.SetStyle(plainTable())
	w.AppendHeader(table.Row{"tensor", "state", "a", "b", "max error", "rel error", "changed", "retention"})
	for _, x := range doc.Tensors {
		row := table.Row{finding.Escape(x.Name), string(x.State), side(x.TypeA, x.ShapeA), side(x.TypeB, x.ShapeB), "", "", "", ""}
		if x.Changed > 0 {
			row[4], row[5], row[6] = fmt.Sprintf("%.3g", x.MaxError), fmt.Sprintf("%.3g", x.RelError), fmt.Sprintf("%.3g %%", 100*x.Changed)
		}
		if x.Retention != nil {
			row[7] = fmt.Sprintf("%.4f", *x.Retention)
		}
		w.AppendRow(row)
	}
	if len(doc.Tensors) > 0 {
		fmt.Fprintln(t.text(), w.Render())
	}
	within := ""
	if doc.Close > 0 {
		within = fmt.Sprintf(", %d within the tolerance", doc.Close)
	}
	fmt.Fprintf(t.text(), "%d tensors equal%s, %d differ\n", doc.Equal, within, len(doc.Findings))
}

// side is a tensor's type and shape in one model.
func side(dtype string, shape []int64) string {
	if dtype == "" {
		return "–"
	}
	return fmt.Sprintf("%s %v", dtype, shape)
}

package main

import (
	"fmt"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/tensor"
)

// refusePlan reports all that is wrong with a plan, not only the first thing.
func refusePlan(t *terminal, plan *merge.Plan, err error) error {
	if finding.Of(err) == nil {
		return err
	}
	if t.json {
		if err := t.document(plan); err != nil {
			return err
		}
	}
	t.report(plan.Findings)
	applied := appliedPairs(plan)
	if len(plan.Pairs) > 0 {
		t.say(&finding.Finding{Code: "match.summary", Level: finding.Info, Message: fmt.Sprintf("%d of %d adapter updates fit the base", applied, len(plan.Pairs))})
	}
	return refusal(plan)
}

// appliedPairs counts the updates that have a place in the base.
func appliedPairs(plan *merge.Plan) int {
	n := 0
	for _, p := range plan.Pairs {
		if p.State != "refused" {
			n++
		}
	}
	return n
}

// refusal is the exit status of a plan that cannot be carried out: nothing to do when no target matched and
// nothing else is wrong.
func refusal(plan *merge.Plan) status {
	for _, f := range plan.Findings {
		if f.Level == finding.Error && f.Code != "match.nothing_to_do" && f.Code != "match.unmatched_target" {
			return exitFailed
		}
	}
	if appliedPairs(plan) == 0 {
		return exitNothing
	}
	return exitFailed
}

func printPlan(t *terminal, plan *merge.Plan, planErr error) error {
	if planErr != nil && finding.Of(planErr) == nil {
		return planErr
	}
	if plan.Findings == nil {
		plan.Findings = []finding.Finding{}
	}
	if t.json {
		if err := t.document(plan); err != nil {
			return err
		}
	}
	w := table.NewWriter()
	w.SetStyle(plainTable())
	w.AppendHeader(table.Row{"tensor", "shape", "from", "to", "updates"})
	for _, out := range plan.Tensors {
		var ups []string
		for _, u := range out.Updates {
			s := string(u.Kind)
			if u.Scale != nil {
				s += fmt.Sprintf(" r %d × %g (%s)", u.Rank, u.Scale.Value, u.Scale.Source)
			}
			if u.Place != "" {
				s += ", " + u.Place
			}
			ups = append(ups, s)
		}
		from, to := tensor.DType(out.SourceType).String(), tensor.DType(out.Type).String()
		if out.Scheme != "" {
			if to = out.Scheme; out.Quantized() {
				from = to
			}
		}
		w.AppendRow(table.Row{finding.Escape(out.Name), out.Shape.String(), from, to, strings.Join(ups, "; ")})
	}
	fmt.Fprintln(t.text(), w.Render())
	t.report(plan.Findings)
	if planErr != nil {
		return refusal(plan)
	}
	return nil
}

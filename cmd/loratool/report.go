package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/urfave/cli/v2"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/report"
	"github.com/loratool/loratool/verify"
)

// reportFlags are the flags of commands that write reports.
func reportFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "report", Usage: "write the report to `FILE` too, by its ending " + report.Endings + "; or github: annotations and job summary (as in GitHub Actions); repeatable"},
		&cli.StringFlag{Name: "baseline", Usage: "findings that the earlier report `FILE`.json holds are shown and do not count"},
	}
}

// A reporting is where the report of a command goes beside the terminal.
type reporting struct {
	files    []string
	github   bool
	baseline *verify.Baseline
}

// readReporting reads the flags. The folders of the files must be there before anything is done.
func readReporting(c *cli.Context) (r reporting, err error) {
	r.github = inGitHub()
	for _, p := range c.StringSlice("report") {
		if p == "github" {
			r.github = true
			continue
		}
		if _, ok := report.ByEnding(p); !ok {
			return r, usagef("--report %q: a report is written by its ending, %s; or github", p, report.Endings)
		}
		if !formats.IsFolder(filepath.Dir(p)) {
			return r, finding.Errorf("output.io", p, "the folder of the report is not there")
		}
		r.files = append(r.files, p)
	}
	if p := c.String("baseline"); p != "" {
		r.baseline, err = verify.OpenBaseline(p)
	}
	return r, err
}

// inGitHub reports whether this is a step of GitHub Actions.
func inGitHub() bool { return os.Getenv("GITHUB_ACTIONS") == "true" }

// provenance says what a command is about, from its flags.
func provenance(c *cli.Context, level checkLevel, subjects ...string) *verify.Provenance {
	p := &verify.Provenance{Tool: "loratool " + version(), Command: c.Command.Name, Subjects: subjects, Adapters: slices.Clone(c.StringSlice("adapter"))}
	if p.Base = c.String("base"); p.Command == "merge" {
		p.Base = c.Args().First()
	}
	if len(p.Adapters) > 0 {
		p.Check, p.Device, p.Seed = level.String(), string(level.device), level.seed
	}
	return p
}

// write writes the report files, and for GitHub annotations and the job summary.
func (r reporting) write(t *terminal, d *report.Document) error {
	d.FailOn, d.Baseline = t.failOn, r.baseline != nil
	for _, p := range r.files {
		f, _ := report.ByEnding(p)
		b, err := report.Render(f, d)
		if err == nil {
			err = writeWhole(p, b)
		}
		if err != nil {
			return err
		}
	}
	if !r.github {
		return nil
	}
	// The runner reads commands from both streams; standard output may be a JSON document.
	if err := report.WriteAnnotations(t.err, d); err != nil {
		return err
	}
	return appendSummary(os.Getenv("GITHUB_STEP_SUMMARY"), d)
}

// summaryLimit is the size up to which GitHub shows a step's summary.
const summaryLimit = 1 << 20

// appendSummary adds to the job summary; "" is no summary.
func appendSummary(path string, d *report.Document) error {
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o666)
	if err != nil {
		return finding.Errorf("output.io", path, "the job summary cannot be written: %v", errors.Unwrap(err))
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		err = report.WriteSummary(f, d, summaryLimit-int(min(size, summaryLimit)))
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return finding.Errorf("output.io", path, "the job summary cannot be written: %v", err)
	}
	return nil
}

// writeWhole writes a file, or leaves the one that was there.
func writeWhole(path string, b []byte) error {
	tmp := path + ".tmp" + strconv.Itoa(os.Getpid())
	err := os.WriteFile(tmp, b, 0o666)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return finding.Errorf("output.io", path, "the report cannot be written: %v", errors.Unwrap(err))
	}
	return nil
}

// String is the level as --check takes it.
func (c checkLevel) String() string {
	switch {
	case c.off:
		return "off"
	case c.all:
		return "all"
	}
	return "sample:" + strconv.Itoa(c.modules)
}

// sayKnown says how many findings a baseline set aside.
func (t *terminal) sayKnown(b *verify.Baseline, known []finding.Finding) {
	if len(known) == 0 {
		return
	}
	f := &finding.Finding{Code: "baseline.known", Level: finding.Info, File: b.Path, Message: "1 finding is known and does not count"}
	if n := len(known); n > 1 {
		f.Message = strconv.Itoa(n) + " findings are known and do not count"
	}
	t.say(f)
}

// rendered is the document that reports of a merge are made from.
func (d *mergeDocument) rendered() *report.Document {
	r := report.FromMerge(d.Modules, d.Check)
	r.Provenance, r.Retention, r.JSON = *d.Provenance, d.Retention, d
	r.Findings, r.Known = d.Findings, d.Known
	r.Verdict = verify.Judge(d.Findings)
	return r
}

// refused is the report on a plan that cannot be carried out.
func refused(plan *merge.Plan) *verify.Report {
	r := &verify.Report{Findings: plan.Findings}
	(*verify.Baseline)(nil).Apply(r)
	return r
}

// refused reports a merge that cannot be carried out.
func (r reporting) refused(t *terminal, c *cli.Context, args mergeArguments, plan *merge.Plan, planErr error) error {
	if finding.Of(planErr) != nil {
		doc := &mergeDocument{
			SchemaVersion: verify.SchemaVersion, Provenance: provenance(c, args.check, args.output), Output: args.output,
			Pairs: plan.Pairs, Modules: []merge.Stats{}, Findings: plan.Findings,
		}
		if err := r.write(t, doc.rendered()); err != nil {
			return err
		}
	}
	return refusePlan(t, plan, planErr)
}

package main

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/tensor"
)

func splitCommand(t *terminal) *cli.Command {
	return &cli.Command{
		Name:      "split",
		Usage:     "write a model as several files",
		ArgsUsage: "IN",
		Description: "A GGUF model becomes PREFIX-00001-of-0000N.gguf and its siblings, named and keyed as llama.cpp's. " +
			"A safetensors model becomes the folder PREFIX with shards and their index.\n\n" +
			"Exit status: 0 done, 2 could not complete, 4 usage, 130 interrupted.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "output `PREFIX`"},
			&cli.StringFlag{Name: "max-size", Usage: "largest `SIZE` of the tensors in a file, for example 2GB"},
			&cli.BoolFlag{Name: "force", Usage: "replace an existing output"},
		},
		Action: func(c *cli.Context) error { return runSplit(t, c) },
	}
}

func joinCommand(t *terminal) *cli.Command {
	return &cli.Command{
		Name:      "join",
		Usage:     "write the files of a split model as one",
		ArgsUsage: "FIRST",
		Description: "FIRST is the first file of a split GGUF; of a safetensors model its folder, its index or its first file.\n\n" +
			"Exit status: 0 done, 2 could not complete, 4 usage, 130 interrupted.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "output `FILE`"},
			&cli.BoolFlag{Name: "force", Usage: "replace an existing output"},
		},
		Action: func(c *cli.Context) error { return runJoin(t, c) },
	}
}

func runSplit(t *terminal, c *cli.Context) error {
	in, err := oneArgument(c, "model")
	if err != nil {
		return err
	}
	prefix := filepath.Clean(c.String("output"))
	switch {
	case c.String("output") == "":
		return usagef("split needs an output (-o PREFIX)")
	case c.String("max-size") == "":
		return usagef("split needs the largest size of a file (--max-size 2GB)")
	}
	size, err := parseSize(c.String("max-size"))
	if err != nil {
		return usagef("--max-size: %v", err)
	}
	return t.rewrite(c, in, "split", func(m formats.Writable, specs []tensor.Spec) (*layout.Layout, string, error) {
		if g, ok := m.(*gguf.Model); ok {
			// The name of a single shard: where there are more, the layout keeps the prefix of it.
			first := strings.TrimSuffix(prefix, ".gguf") + "-00001-of-00001.gguf"
			l, err := gguf.NewLayout(g.Header(), specs, layout.Options{Name: filepath.Base(first), MaxShardSize: size})
			return l, first, err
		}
		s := m.(*safetensors.Model)
		opt := layout.Options{Name: filepath.Base(prefix), MaxShardSize: size}
		if strings.HasSuffix(prefix, ".safetensors") {
			return nil, "", usagef("-o %q: a split safetensors model is a folder", prefix)
		}
		if s.IsFolder() {
			l, err := s.Layout(specs, opt)
			return l, prefix, err
		}
		l, err := safetensors.NewLayout(specs, safetensors.Output{Metadata: s.Metadata(), Dir: true}, opt)
		return l, prefix, err
	})
}

func runJoin(t *terminal, c *cli.Context) error {
	in, err := oneArgument(c, "model")
	if err != nil {
		return err
	}
	output := c.String("output")
	if output == "" {
		return usagef("join needs an output (-o FILE)")
	}
	return t.rewrite(c, indexOf(in), "joined", func(m formats.Writable, specs []tensor.Spec) (*layout.Layout, string, error) {
		if m.Format() == "safetensors" && !strings.HasSuffix(output, ".safetensors") {
			return nil, "", usagef("-o %q: the name of a safetensors file ends in .safetensors", output)
		}
		l, err := m.Layout(specs, layout.Options{Name: filepath.Base(filepath.Clean(output))})
		return l, output, err
	})
}

var firstShard = regexp.MustCompile(`^(.*)-00001-of-\d{5}\.safetensors$`)

// indexOf is the index of the safetensors model whose first file is named, or the path itself.
func indexOf(path string) string {
	if m := firstShard.FindStringSubmatch(path); m != nil {
		return m[1] + ".safetensors.index.json"
	}
	return path
}

// rewrite writes a model's tensors, byte for byte, into other files.
func (t *terminal) rewrite(c *cli.Context, in, what string, layOut func(formats.Writable, []tensor.Spec) (*layout.Layout, string, error)) error {
	m, err := t.openWritable(in, what)
	if err != nil {
		return err
	}
	defer m.Close()
	plan, err := merge.NewPlan(m, nil, merge.Options{})
	if err != nil {
		return err
	}
	specs := make([]tensor.Spec, len(plan.Tensors))
	for i := range specs {
		specs[i] = plan.Tensors[i].Spec()
	}
	l, output, err := layOut(m, specs)
	if err != nil {
		return err
	}
	job := writing{t: t, label: "copying", plan: plan, layout: l, output: output, input: in, force: c.Bool("force")}
	if err := job.run(c.Context); err != nil {
		return err
	}
	files := []string{}
	for _, f := range l.Files {
		files = append(files, f.Name)
	}
	findings := append([]finding.Finding{}, m.Findings()...)
	if t.json {
		doc := map[string]any{"schema_version": 1, "output": job.output, "format": m.Format(), "bytes": job.bytes, "files": files, "tensors": len(specs), "findings": findings}
		if err := t.document(doc); err != nil {
			return err
		}
	}
	t.report(findings)
	fmt.Fprintf(t.text(), "%s: %d tensors in %d files, %s\n", finding.Escape(job.output), len(specs), len(files), formatSize(job.bytes))
	return nil
}

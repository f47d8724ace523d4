package main

import (
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/content"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/verify"
)

// adapterFlag is the repeatable -a PATH[:SCALE].
func adapterFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "adapter", Aliases: []string{"a"}, Usage: "adapter `PATH[:SCALE]`; repeatable, a negative scale subtracts"}
}

// parseAdapter splits PATH[:SCALE]. A colon that no number follows belongs to the path.
func parseAdapter(s string) (path string, scale float64, err error) {
	if i := strings.LastIndexByte(s, ':'); i > 0 {
		if x, err := strconv.ParseFloat(s[i+1:], 64); err == nil {
			if x != x || x-x != 0 {
				return "", 0, usagef("adapter %q: the scale must be a finite number", s)
			}
			return s[:i], x, nil
		}
	}
	if s == "" || s == "-" {
		return "", 0, usagef("adapter %q is not a path", s)
	}
	return s, 1, nil
}

// openAdapters opens the -a arguments. close releases them.
func openAdapters(args []string, opt dialect.Options) (inputs []merge.Input, closeAll func(), err error) {
	closeAll = func() {
		for _, in := range inputs {
			in.Adapter.Close()
		}
	}
	for _, arg := range args {
		path, scale, err := parseAdapter(arg)
		if err == nil {
			var a *adapter.Adapter
			if a, err = dialect.Open(path, opt); err == nil {
				inputs = append(inputs, merge.Input{Adapter: a, Scale: scale})
			}
		}
		if err != nil {
			closeAll()
			return nil, nil, err
		}
	}
	return inputs, closeAll, nil
}

// openBase opens the model adapters are baked into. A quantized folder is seen as the float model that it
// decodes to.
func (t *terminal) openBase(path string) (formats.Writable, error) {
	m, err := formats.OpenWith(path, t.formats)
	if err != nil {
		return nil, err
	}
	if m, err = formats.Decode(m); err != nil {
		return nil, err
	}
	w, ok := m.(formats.Writable)
	if !ok {
		m.Close()
		return nil, finding.Errorf("base.unsupported", path, "adapters are not baked into %s files", m.Format()).
			Hinted("convert the base to safetensors first")
	}
	return w, nil
}

// weightsFlag is --weights.
func weightsFlag() cli.Flag {
	return &cli.StringFlag{Name: "weights", Usage: "find the weights of an ONNX base whose names are gone by their values in the Hugging Face `FOLDER`"}
}

// recognise looks for the weights of an ONNX base by their values, where --weights asks for it.
func (t *terminal) recognise(c *cli.Context, base formats.Model) error {
	path := c.String("weights")
	if path == "" {
		return nil
	}
	g, ok := base.(interface{ AsStored() *onnx.Model })
	if !ok {
		return finding.Errorf("base.unsupported", base.Path(), "--weights finds the weights of ONNX graphs; other bases have names").Expected(base.Format(), "onnx")
	}
	weights, err := t.openBase(path)
	if err != nil {
		return err
	}
	defer weights.Close()
	return content.Match(g.AsStored(), weights)
}

// planMerge plans a merge and adds what base and adapters say about each other.
func planMerge(base formats.Writable, inputs []merge.Input, opt merge.Options) (*merge.Plan, error) {
	opt.Resolve = merge.Resolvers(base)
	plan, err := merge.NewPlan(base, inputs, opt)
	findings := append([]finding.Finding{}, base.Findings()...)
	for _, in := range inputs {
		findings = append(findings, verify.Belongs(base, in.Adapter)...)
	}
	plan.Findings = append(findings, plan.Findings...)
	return plan, err
}

// outputIsInput refuses an output that would replace what it is made from, whether forced or not.
func outputIsInput(output string, inputs []string) error {
	if in := layout.SameFile(output, inputs); in != "" {
		return finding.Errorf("output.is_input", output, "the output would replace an input, %s", in).Hinted("choose another output; move it over the input when it is checked")
	}
	return nil
}

// oneArgument returns the single positional of a command.
func oneArgument(c *cli.Context, what string) (string, error) {
	if c.NArg() != 1 {
		return "", usagef("%s takes one %s, found %d", c.Command.Name, what, c.NArg())
	}
	return c.Args().First(), nil
}

package main

import (
	"github.com/urfave/cli/v2"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/quant/onnxquant"
	"github.com/loratool/loratool/quantized"
)

// readGraphRecipe reads a recipe for an ONNX graph and the flags beside it.
func readGraphRecipe(c *cli.Context, name string) (*quantized.Options, error) {
	for _, f := range []string{"imatrix", "pure", "no-fallback", "allow-nan", "keep-split"} {
		if c.IsSet(f) {
			return nil, usagef("--%s says nothing about an ONNX graph", f)
		}
	}
	r, err := onnxquant.ParseRecipe(name)
	if err != nil {
		return nil, err
	}
	opt := &quantized.Options{Recipe: r}
	for _, s := range c.StringSlice("tensor-type") {
		o, err := quantized.ParseOverride(s)
		if err != nil {
			return nil, err
		}
		opt.Overrides = append(opt.Overrides, o)
	}
	for flag, to := range map[string]**onnxquant.Recipe{"output-tensor-type": &opt.Output, "token-embedding-type": &opt.Embedding} {
		if s := c.String(flag); s != "" {
			r, err := onnxquant.ParseRecipe(s)
			if err != nil {
				return nil, err
			}
			*to = &r
		}
	}
	if c.Bool("leave-output-tensor") {
		opt.Output = &onnxquant.Recipe{}
	}
	return opt, nil
}

// quantizeGraph is the view of a float graph that a recipe quantizes. It takes the base over.
func quantizeGraph(base formats.Writable, opt quantized.Options) (formats.Writable, error) {
	m, ok := base.(*onnx.Model)
	if ok {
		g, err := quantized.New(m, opt)
		if err == nil {
			return g, nil
		}
		base.Close()
		return nil, err
	}
	base.Close()
	if _, packed := base.(*formats.PackedGraph); packed {
		return nil, finding.Errorf("quant.requantize", base.Path(), "the graph has quantized weights already").
			Hinted("start from the float model")
	}
	return nil, finding.Errorf("quant.unsupported", base.Path(), "recipe %s is for ONNX graphs", opt.Recipe).Expected(base.Format(), "onnx")
}

// openGraph opens an ONNX graph as one that the recipe of a name quantizes; the name comes back in full.
func (t *terminal) openGraph(c *cli.Context, path, name string) (formats.Writable, string, error) {
	opt, err := readGraphRecipe(c, name)
	if err != nil {
		return nil, "", err
	}
	if err := noFolderFlags(c); err != nil {
		return nil, "", err
	}
	base, err := t.openBase(path)
	if err != nil {
		return nil, "", err
	}
	base, err = quantizeGraph(base, *opt)
	return base, opt.Recipe.String(), err
}

// quantizedLike is a float graph seen as one that is quantized as a merged model is. One that cannot be opened
// is reported when it is checked.
func (t *terminal) quantizedLike(m *onnx.Model, merged string) (formats.Writable, error) {
	opened, err := t.openMerged(merged)
	if err != nil {
		return m, nil
	}
	defer opened.Close()
	g, ok := opened.(*formats.PackedGraph)
	if !ok {
		return m, nil
	}
	return quantized.Like(m, g)
}

package main

import (
	"os"

	"github.com/urfave/cli/v2"

	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/adapter/peft"
)

// dialectFlags are for adapters on fused experts, whose files leave things unsaid.
func dialectFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "moe-parameter-order", Usage: "parameter `NAME`s of a fused experts module in the model class's order; repeatable"},
		&cli.StringFlag{Name: "moe-orientation", Usage: "square expert matrices are `STORED` as: linear ([out, in]), transposed ([in, out])"},
		&cli.StringFlag{Name: "moe-b-layout", Value: "peft", Usage: "order of lora_B's columns for fused experts, `WHOSE`: peft, unsloth"},
		&cli.BoolFlag{Name: "residual-base", Usage: "BASE is the residual base that the adapter's initialisation (PiSSA, OLoRA, …) saved"},
	}
}

func dialectOptions(c *cli.Context) (dialect.Options, error) {
	opt := peft.Options{ParameterOrder: c.StringSlice("moe-parameter-order"), ResidualBase: c.Bool("residual-base")}
	switch o := c.String("moe-orientation"); o {
	case "":
	case "linear", "transposed":
		transposed := o == "transposed"
		opt.Transposed = &transposed
	default:
		return dialect.Options{}, usagef("--moe-orientation %q: linear or transposed", o)
	}
	switch l := c.String("moe-b-layout"); l {
	case "peft":
	case "unsloth":
		opt.MoEB = peft.UnslothLayout
	default:
		return dialect.Options{}, usagef("--moe-b-layout %q: peft or unsloth", l)
	}
	base := c.String("base")
	if c.Command.Name == "merge" {
		base = c.Args().First()
	}
	return dialect.Options{PEFT: opt, Base: base, AllowUnmatched: c.Bool("allow-unmatched")}, nil
}

// isAdapter reports whether a path holds an adapter.
func isAdapter(path string) bool {
	_, err := os.Stat(path)
	return err == nil && dialect.Detect(path) != ""
}

package main

import (
	_ "embed"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

// The scripts ask the program itself for the words that fit: it answers --generate-bash-completion.
var (
	//go:embed completion/bash.sh
	bashCompletion string
	//go:embed completion/zsh.sh
	zshCompletion string
	//go:embed completion/powershell.ps1
	powershellCompletion string
)

func completionCommand(t *terminal) *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print a completion script for a shell",
		ArgsUsage: "bash|zsh|fish|powershell",
		Description: "bash: source <(loratool completion bash). zsh: the same, or save it as _loratool in a folder of fpath.\n" +
			"fish: loratool completion fish | source. powershell: loratool completion powershell | Out-String | Invoke-Expression.\n\n" +
			"Exit status: 0 done, 4 usage.",
		Action: func(c *cli.Context) error {
			shell, err := oneArgument(c, "shell")
			if err != nil {
				return err
			}
			var script string
			switch shell {
			case "bash":
				script = bashCompletion
			case "zsh":
				script = zshCompletion
			case "powershell":
				script = powershellCompletion
			case "fish":
				if script, err = c.App.ToFishCompletion(); err != nil {
					return err
				}
			default:
				return usagef("unknown shell %q: bash, zsh, fish or powershell", shell)
			}
			_, err = fmt.Fprintln(t.out, strings.TrimRight(script, "\n"))
			return err
		},
	}
}

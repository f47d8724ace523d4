package main

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// askCompletion is the last argument by which the scripts ask the program itself for the words that fit.
const askCompletion = "--generate-bash-completion"

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

// completions are the words that may follow words, or, where the last one begins with a dash, the flags it
// may become. There are none where a file is expected, which shells complete themselves.
func completions(app *cli.App, words []string) []string {
	commands, flags, path := app.Commands, app.Flags, []string{}
	for _, w := range words {
		for _, c := range commands {
			if c.HasName(w) {
				commands, flags = c.Subcommands, append(slices.Clip(c.Flags), app.Flags...)
				path = append(path, w)
				break
			}
		}
	}
	var out []string
	if len(words) > 0 && strings.HasPrefix(words[len(words)-1], "-") {
		for _, f := range flags {
			out = append(out, "--"+f.Names()[0])
		}
		return append(out, "--help")
	}
	if len(path) == 1 && path[0] == "completion" {
		return []string{"bash", "zsh", "fish", "powershell"}
	}
	for _, c := range commands {
		out = append(out, c.Name)
	}
	if len(path) == 0 {
		out = append(out, "help")
	}
	return out
}

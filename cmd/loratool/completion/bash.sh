# bash completion for loratool: source this file, or put it into bash-completion's folder
_loratool() {
	local cur=${COMP_WORDS[COMP_CWORD]} words
	words=("${COMP_WORDS[@]:1:COMP_CWORD-1}")
	[[ $cur == -* ]] && words+=("$cur")
	COMPREPLY=($(compgen -W "$("${COMP_WORDS[0]}" "${words[@]}" --generate-bash-completion 2>/dev/null)" -- "$cur"))
}
complete -o bashdefault -o default -F _loratool loratool

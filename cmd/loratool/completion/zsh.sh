#compdef loratool
_loratool() {
	local -a choices
	local current=${words[CURRENT]}
	local -a before=("${words[@]:1:CURRENT-2}")
	[[ $current == -* ]] && before+=("$current")
	choices=("${(@f)$(${words[1]} "${before[@]}" --generate-bash-completion 2>/dev/null)}")
	if [[ -n ${choices[1]} ]]; then
		_describe loratool choices
	else
		_files
	fi
}
compdef _loratool loratool

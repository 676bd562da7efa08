"""The script for bash."""

import shlex
from collections.abc import Iterable, Mapping

from propkit.completion.words import FIGURES, Program, Values

_SCRIPT = """\
# Completion of propkit in bash. In ~/.bashrc: eval "$(python -m propkit completion bash)"

# What an option takes: kind is flag, one or many.
_propkit_option() {
    kind=flag words='' files=''
    case "$1 $2" in
@OPTIONS@
    esac
}

# What the argument at a place is.
_propkit_argument() {
    words='' files=''
    case "$1 $2" in
@ARGUMENTS@
    esac
}

_propkit_complete() {  # name of the program, number of its first word
    local program=$1 i=$2 current=${COMP_WORDS[COMP_CWORD]} open='' place=0 kind words files word
    for ((; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ $word == -* ]]; then
            _propkit_option "$program" "$word"
            open=$word
            [[ $kind == flag ]] && open=''
        elif [[ $word == '=' ]]; then
            continue  # bash takes --data=digits for three words
        elif [[ -n $open ]]; then
            [[ $kind == one ]] && open=''
        else
            ((++place))
        fi
    done
    [[ $current == '=' ]] && current=''
    if [[ -n $open && ( $kind == one || $current != -* ) ]]; then
        _propkit_option "$program" "$open"
    elif [[ $current == -* ]]; then
        files=''
        case $program in
@NAMES@
        esac
    else
        _propkit_argument "$program" "$place"
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    [[ -n $files ]] && compopt -o default 2>/dev/null
    return 0
}

_propkit() {
    local i
    for ((i = 1; i < COMP_CWORD; i++)); do
        if [[ ${COMP_WORDS[i]} != -* ]]; then
            _propkit_complete "${COMP_WORDS[i]}" $((i + 1))
            return
        fi
    done
    _propkit_complete propkit 1
}

_propkit_python() {
    if [[ ${COMP_WORDS[1]} == -m && $COMP_CWORD -ge 3 && ${COMP_WORDS[2]} == propkit ]]; then
        local COMP_WORDS=("${COMP_WORDS[@]:2}") COMP_CWORD=$((COMP_CWORD - 2))
        _propkit
    elif [[ ${COMP_WORDS[1]} == -m && $COMP_CWORD -ge 3 && ${COMP_WORDS[2]} == @FIGURES@ ]]; then
        _propkit_complete @FIGURES@ 3
    else
        COMPREPLY=()
        compopt -o default 2>/dev/null
    fi
}

complete -F _propkit propkit
for _propkit_name in python python3; do
    # A completion of Python that is there already stays.
    complete -p $_propkit_name &>/dev/null || complete -F _propkit_python $_propkit_name
done
unset _propkit_name
"""


def script(programs: Mapping[str, Program]) -> str:
    """The script, with all words in it."""
    options, arguments, names = [], [], []
    for name, program in programs.items():
        for option in program.options:
            if option.values is not None:
                kind = "many" if option.values.many else "one"
                patterns = [f"{name} {o}" for o in option.names]
                options.append(_case(patterns, f"kind={kind} {_set(option.values)}"))
        for place, values in enumerate(program.arguments):
            pattern = f"{name} *" if values.many else f"{name} {place}"
            arguments.append(_case([pattern], _set(values)))
        names.append(_case([name], _set(Values(_option_names(program)))))
    subcommands = tuple(name for name in programs if name != FIGURES)
    arguments.append(_case(["propkit 0"], _set(Values(subcommands))))
    names.append(_case(["propkit"], _set(Values(("--help", "--version")))))
    parts = {"OPTIONS": options, "ARGUMENTS": arguments, "NAMES": ["    " + n for n in names]}
    text = _SCRIPT.replace("@FIGURES@", FIGURES)
    for key, lines in parts.items():
        text = text.replace(f"@{key}@", "\n".join(f"        {line}" for line in lines))
    return text


def _case(patterns: Iterable[str], action: str) -> str:
    quoted = (f'"{p[:-1]}"*' if p.endswith("*") else f'"{p}"' for p in patterns)
    return f"{' | '.join(quoted)}) {action} ;;"


def _set(values: Values) -> str:
    return f"words={shlex.quote(' '.join(values.words))} files={'1' if values.files else ''}"


def _option_names(program: Program) -> tuple[str, ...]:
    return tuple(name for option in program.options for name in option.names)

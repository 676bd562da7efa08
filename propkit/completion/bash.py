"""The script for bash."""

import shlex
from collections.abc import Iterable, Mapping

from propkit.completion.cases import fill
from propkit.completion.words import Program

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
    return fill(_SCRIPT, programs, _offer)


def _offer(candidates: Iterable[tuple[str, str]]) -> str:
    return f"words={shlex.quote(' '.join(word for word, _ in candidates))}"

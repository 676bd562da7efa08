"""The script for zsh."""

import shlex
from collections.abc import Iterable, Mapping

from propkit.completion.cases import fill
from propkit.completion.words import Program

_SCRIPT = """\
#compdef propkit
# Completion of propkit in zsh. In ~/.zshrc, after compinit: eval "$(python -m propkit completion zsh)"

# What an option takes: kind is flag, one or many.
_propkit_option() {
    kind=flag files='' candidates=()
    case "$1 $2" in
@OPTIONS@
    esac
}

# What the argument at a place is.
_propkit_argument() {
    files='' candidates=()
    case "$1 $2" in
@ARGUMENTS@
    esac
}

_propkit_complete() {  # name of the program, number of its first word
    local program=$1 open='' kind files word current=${words[CURRENT]}
    local -a candidates
    integer i=$2 place=0
    for ((; i < CURRENT; i++)); do
        word=${words[i]}
        if [[ $word == -*=* ]]; then
            open=''
        elif [[ $word == -* ]]; then
            _propkit_option $program $word
            open=$word
            [[ $kind == flag ]] && open=''
        elif [[ -n $open ]]; then
            [[ $kind == one ]] && open=''
        else
            ((++place))
        fi
    done
    if [[ $current == --*=* ]]; then
        open=${current%%=*}
        compset -P '*='
        _propkit_option $program $open
    elif [[ -n $open && ( $kind == one || $current != -* ) ]]; then
        _propkit_option $program $open
    elif [[ $current == -* ]]; then
        files=''
        case $program in
@NAMES@
        esac
    else
        _propkit_argument $program $place
    fi
    local done=1
    (( $#candidates )) && _describe value candidates && done=0
    [[ -n $files ]] && _files && done=0
    return done
}

_propkit() {
    integer i
    for ((i = 2; i < CURRENT; i++)); do
        if [[ ${words[i]} != -* ]]; then
            _propkit_complete ${words[i]} $((i + 1))
            return
        fi
    done
    _propkit_complete propkit 2
}

_propkit_python() {
    if [[ ${words[2]} == -m && $CURRENT -ge 4 && ${words[3]} == propkit ]]; then
        shift 2 words
        ((CURRENT -= 2))
        _propkit
    elif [[ ${words[2]} == -m && $CURRENT -ge 4 && ${words[3]} == @FIGURES@ ]]; then
        _propkit_complete @FIGURES@ 4
    else
        _python "$@"
    fi
}

compdef _propkit propkit
compdef _propkit_python python python3
"""


def script(programs: Mapping[str, Program]) -> str:
    """The script, with all words in it."""
    return fill(_SCRIPT, programs, _offer)


def _offer(candidates: Iterable[tuple[str, str]]) -> str:
    return f"candidates=({' '.join(_described(word, text) for word, text in candidates)})"


def _described(word: str, text: str) -> str:
    """As zsh's ``_describe`` takes it: a colon parts the word from its description."""
    escaped = word.replace(":", r"\:")
    return shlex.quote(f"{escaped}:{text}" if text else escaped)

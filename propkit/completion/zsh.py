"""The script for zsh."""

import shlex
from collections.abc import Iterable, Mapping

from propkit.completion.words import FIGURES, Program, Values

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
        described = [_described(o, option.help) for option in program.options for o in option.names]
        names.append(_case([name], f"candidates=({' '.join(described)})"))
    subcommands = [_described(n, p.summary) for n, p in programs.items() if n != FIGURES]
    arguments.append(_case(["propkit 0"], f"candidates=({' '.join(subcommands)})"))
    names.append(_case(["propkit"], "candidates=(--help --version)"))
    parts = {"OPTIONS": options, "ARGUMENTS": arguments, "NAMES": ["    " + n for n in names]}
    text = _SCRIPT.replace("@FIGURES@", FIGURES)
    for key, lines in parts.items():
        text = text.replace(f"@{key}@", "\n".join(f"        {line}" for line in lines))
    return text


def _case(patterns: Iterable[str], action: str) -> str:
    quoted = (f'"{p[:-1]}"*' if p.endswith("*") else f'"{p}"' for p in patterns)
    return f"{' | '.join(quoted)}) {action} ;;"


def _set(values: Values) -> str:
    words = " ".join(shlex.quote(word.replace(":", r"\:")) for word in values.words)
    return f"candidates=({words}) files={'1' if values.files else ''}"


def _described(name: str, text: str) -> str:
    return shlex.quote(f"{name}:{text}" if text else name)

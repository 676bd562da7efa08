"""The script for fish."""

from collections.abc import Iterator, Mapping

from propkit.completion.words import FIGURES, Option, Program, Values

_SCRIPT = """\
# Completion of propkit in fish. In config.fish: python -m propkit completion fish | source

# The words after the program's name, where it runs: propkit, or python -m propkit.
function __propkit_words
    set -l words (commandline -opc)
    if test "$words[1]" = propkit
        printf '%s\\n' propkit $words[2..-1]
    else if test "$words[2]" = -m; and contains -- "$words[3]" propkit @FIGURES@
        printf '%s\\n' $words[3..-1]
    end
end

# Whether this is the program or subcommand of that name; with a number, at that argument or above (n+).
function __propkit_at
    set -l words (__propkit_words)
    test (count $words) -gt 0; or return 1
    set -l program $words[1]
    set -e words[1]
    if test $program = propkit
        for i in (seq (count $words))
            if not string match -q -- '-*' $words[$i]
                set program $words[$i]
                set -e words[1..$i]
                break
            end
        end
    end
    test "$program" = $argv[1]; or return 1
    test (count $argv) -gt 1; or return 0
    set -l place 0
    set -l open ''
    for word in $words
        if string match -q -- '-*=*' $word
            set open ''
        else if string match -q -- '-*' $word
            set open ''
            contains -- "$program $word" @ONE@; and set open one
            contains -- "$program $word" @MANY@; and set open many
        else if test "$open" = one
            set open ''
        else if test "$open" != many
            set place (math $place + 1)
        end
    end
    if string match -q -- '*+' $argv[2]
        test $place -ge (string trim -r -c + -- $argv[2])
    else
        test $place -eq $argv[2]
    end
end

@LINES@
"""

_COMMANDS = ("propkit", "python", "python3")


def script(programs: Mapping[str, Program]) -> str:
    """The script, with all words in it."""
    taking: dict[bool, list[str]] = {False: [], True: []}
    for name, program in programs.items():
        for option in program.options:
            if option.values is not None:
                taking[option.values.many] += [f"{name} {o}" for o in option.names]
    lines = [line for command in _COMMANDS for line in _lines(command, programs)]
    parts = {
        "FIGURES": FIGURES,
        "ONE": " ".join(map(_quote, taking[False])) or "''",
        "MANY": " ".join(map(_quote, taking[True])) or "''",
        "LINES": "\n".join(lines),
    }
    text = _SCRIPT
    for key, value in parts.items():
        text = text.replace(f"@{key}@", value)
    return text


def _lines(command: str, programs: Mapping[str, Program]) -> Iterator[str]:
    for name, program in programs.items():
        if name != FIGURES:
            at = f"complete -c {command} -f -n '__propkit_at propkit 0'"
            yield f"{at} -a {_quote(name)} -d {_quote(program.summary)}"
        here = f"complete -c {command} -n '__propkit_at {name}'"
        for option in program.options:
            yield f"{here} {_option(option)}"
        for place, values in enumerate(program.arguments):
            where = f"{place}+" if values.many else f"{place}"
            yield f"complete -c {command} -n '__propkit_at {name} {where}' {_values(values)}"
    for word in ("help", "version"):
        yield f"complete -c {command} -n '__propkit_at propkit' -l {word}"


def _option(option: Option) -> str:
    names = [f"-l {o[2:]}" if o.startswith("--") else f"-s {o[1:]}" for o in option.names]
    taken = "" if option.values is None else f" -r {_values(option.values)}"
    return f"{' '.join(names)} -d {_quote(option.help)}{taken}"


def _values(values: Values) -> str:
    words = f" -a {_quote(' '.join(values.words))}" if values.words else ""
    return f"{'-F' if values.files else '-f'}{words}"


def _quote(text: str) -> str:
    """A word for fish: in single quotes only a backslash and a quote are special."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"

"""The tables of a shell script that has them as ``case``: bash and zsh."""

from collections.abc import Callable, Iterable, Mapping

from propkit.completion.words import FIGURES, Program, Values

Offer = Callable[[Iterable[tuple[str, str]]], str]
"""(word, its line in the help or nothing) of each candidate -> the assignment that offers them."""


def fill(script: str, programs: Mapping[str, Program], offer: Offer) -> str:
    """The script with its tables in place of ``@OPTIONS@``, ``@ARGUMENTS@`` and ``@NAMES@``.

    Args:
        script: Tests ``"PROGRAM OPTION"`` for what an option takes, ``"PROGRAM PLACE"`` for what an argument is, and
            ``PROGRAM`` for the names of its options.
        programs: Name -> what can be completed there.
        offer: The shell's way to offer words.
    """

    def of(values: Values) -> str:
        return f"{offer((word, '') for word in values.words)} files={'1' if values.files else ''}"

    options, arguments, names = [], [], []
    for name, program in programs.items():
        for option in program.options:
            if option.values is not None:
                kind = "many" if option.values.many else "one"
                patterns = " | ".join(f'"{name} {o}"' for o in option.names)
                options.append(f"{patterns}) kind={kind} {of(option.values)} ;;")
        for place, values in enumerate(program.arguments):
            pattern = f'"{name} "*' if values.many else f'"{name} {place}"'
            arguments.append(f"{pattern}) {of(values)} ;;")
        described = ((o, option.help) for option in program.options for o in option.names)
        names.append(f'    "{name}") {offer(described)} ;;')
    subcommands = ((name, p.summary) for name, p in programs.items() if name != FIGURES)
    arguments.append(f'"propkit 0") {offer(subcommands)} ;;')
    names.append(f'    "propkit") {offer([("--help", ""), ("--version", "")])} ;;')
    text = script.replace("@FIGURES@", FIGURES)
    for key, lines in {"OPTIONS": options, "ARGUMENTS": arguments, "NAMES": names}.items():
        text = text.replace(f"@{key}@", "\n".join(f"        {line}" for line in lines))
    return text

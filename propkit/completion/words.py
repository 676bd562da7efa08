"""What can be completed where: read off the parsers of the command line."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FIGURES = "propkit.figures"
"""Name of the program that ``python -m propkit.figures`` is."""

_MANY = ("+", "*")


@dataclass(frozen=True)
class Values:
    """What an option or an argument takes.

    Attributes:
        words: Words to choose from; there may be others.
        files: Whether it can be a file or a folder.
        many: Whether it takes more than one.
    """

    words: tuple[str, ...] = ()
    files: bool = False
    many: bool = False


@dataclass(frozen=True)
class Option:
    """An option: its names, its line in the help, and what it takes, None for nothing."""

    names: tuple[str, ...]
    help: str
    values: Values | None


@dataclass(frozen=True)
class Program:
    """A subcommand, or ``propkit.figures``: its summary, its options, and its arguments in their order."""

    summary: str
    options: tuple[Option, ...]
    arguments: tuple[Values, ...]


def programs() -> dict[str, Program]:
    """Name -> what can be completed there, for each subcommand, and for ``propkit.figures``."""
    from propkit.commands import commands
    from propkit.figures.__main__ import _parser

    words = _words()
    found = {}
    for name, command in commands().items():
        parser = argparse.ArgumentParser()
        command.configure(parser)
        found[name] = _program(command.SUMMARY, parser, words)
    return {**found, FIGURES: _program("draw a figure of runs", _parser(), words)}


def _words() -> dict[str, tuple[str, ...]]:
    """What arguments and options of a name have as values."""
    from propkit import recipes
    from propkit.figures import registry

    figures = tuple(registry.names())
    return {
        "recipe": (*(r.name for r in recipes.listed()), *(s.name for s in recipes.sweeps())),
        "figure": figures,
        "figures": figures,
        "data": ("digits", "digits16", "digits32"),
        "device": ("cpu", "cuda"),
        "style": ("screen", "paper", "dark"),
    }


def _program(
    summary: str, parser: argparse.ArgumentParser, words: Mapping[str, Sequence[str]]
) -> Program:
    options, arguments = [], []
    for action in parser._actions:  # argparse has no public way to ask
        values = _values(action, words)
        if action.option_strings:
            text = " ".join((action.help or "").split())
            taken = None if action.nargs == 0 else values
            options.append(Option(tuple(action.option_strings), text, taken))
        else:
            arguments.append(values)
    return Program(summary, tuple(options), tuple(arguments))


def _values(action: argparse.Action, words: Mapping[str, Sequence[str]]) -> Values:
    known = [str(choice) for choice in action.choices or words.get(action.dest, ())]
    files = action.type is Path or action.dest in ("runs", "output", "data")
    return Values(tuple(known), files, action.nargs in _MANY)

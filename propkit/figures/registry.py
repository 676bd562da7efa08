"""Figures by name: the file of that name here, else an entry point of group ``propkit.figures``.

Nothing is imported to find or to list them.
"""

import ast
import difflib
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

GROUP = "propkit.figures"


class _Modules(Mapping[str, str]):
    """Name -> full name of the module; a file here comes before an entry point of its name."""

    def __getitem__(self, name: str) -> str:
        if name in _files():
            return f"{__package__}.{name}"
        return _entry_points()[name].module

    def __iter__(self) -> Iterator[str]:
        ours = sorted(_files())
        yield from ours
        yield from sorted(set(_entry_points()) - set(ours))

    def __len__(self) -> int:
        return len(set(_files()) | set(_entry_points()))


MODULES: Mapping[str, str] = _Modules()
"""Name of each figure -> full name of its module, in-tree ones first."""


@functools.cache
def _files() -> Mapping[str, Path]:
    files = Path(__file__).parent.glob("[!_]*.py")
    return {f.stem: f for f in files if f"\ndef {f.stem}(" in f.read_text(encoding="utf-8")}


@functools.cache
def _entry_points() -> Mapping[str, EntryPoint]:
    return {e.name: e for e in entry_points(group=GROUP)}


def names() -> list[str]:
    """Names of all figures that can be drawn here, in-tree ones first."""
    return list(MODULES)


def describe(name: str) -> str:
    """What a figure shows and how to read it: its module's docstring.

    The docstring of a figure in this package is read without importing it; a third party's module
    is not looked into, and only named.

    Raises:
        ValueError: No figure has that name.
    """
    _check(name)
    if name in _files():
        return ast.get_docstring(ast.parse(_files()[name].read_text(encoding="utf-8"))) or ""
    entry = _entry_points()[name]
    origin = f" of {entry.dist.name} {entry.dist.version}" if entry.dist else ""
    return f"{entry.value}{origin}"


def find(name: str) -> Callable[..., Any]:
    """The function that draws the figure of that name.

    Raises:
        ValueError: No figure has that name; the message lists those there are.
        ImportError: An entry point's module cannot be imported or has no such function.
    """
    _check(name)
    try:
        module = importlib.import_module(MODULES[name])
        function = getattr(module, name)
    except Exception as error:  # anything can go wrong in a third party's module
        raise ImportError(
            f"figure {name!r} cannot be loaded from {MODULES[name]}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not callable(function):
        raise ImportError(f"figure {name!r}: {MODULES[name]}.{name} is not a function")
    return function  # type: ignore[no-any-return]  # an attribute of a module found by name


def _check(name: str) -> None:
    if name not in MODULES:
        close = difflib.get_close_matches(name, names(), 3, 0.5)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"unknown figure {name!r}.{hint} There are: {', '.join(names())}")

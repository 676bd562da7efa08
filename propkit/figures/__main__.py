"""Figures from a shell: ``python -m propkit.figures fig3 run.zarr [more.zarr ...] -o fig3.pdf``."""

import argparse
import ast
import inspect
import sys
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn

from propkit.figures import registry

SUFFIXES = (".png", ".pdf", ".svg")
"""File types that a figure is written as."""

_PROG = "python -m propkit.figures"
_DPI = 200.0
_MOST_PIXELS = 16384


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse would print the usage too; one line says what is wrong.
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the figure that the arguments ask for and print the path written.

    Args:
        argv: Arguments, without the program's name; `sys.argv` if None.

    Returns:
        Exit status: 0, or 2 with one line on stderr that says what is wrong and what to do.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        if arguments.list:
            print(_listing())
        elif arguments.help:
            print(_help(parser, arguments.figure))
        elif arguments.figure is None:
            parser.error("expected the name of a figure and at least one run")
        else:
            with warnings.catch_warnings(record=True) as caught:
                path = _draw(arguments)
            for text in dict.fromkeys(str(w.message) for w in caught):
                _say(f"warning: {text}")
            print(path)
    except (OSError, ValueError, ImportError) as error:
        _say(str(error))
        return 2
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        _say(f"{type(error).__name__}: {error} (`python -X dev -m ...` shows where)")
        return 2
    return 0


def _say(text: str) -> None:
    print(f"{_PROG}: {' '.join(text.split())}", file=sys.stderr)


def _parser() -> _Parser:
    parser = _Parser(
        prog=_PROG,
        description="Draw a figure of one run, or of several to compare them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("figure", nargs="?", help="name of the figure, see --list")
    add("runs", nargs="*", metavar="run.zarr", help="one or more runs, folders or patterns of runs")
    add("-o", "--output", type=Path, help="file to write: .png, .pdf or .svg (default: NAME.png)")
    add("--label", nargs="+", action="extend", metavar="L", help="one label per run")
    add(
        "--steps",
        nargs="+",
        type=int,
        metavar="N",
        help="iterations to show, where a figure has snapshots",
    )
    add("--layers", metavar="REGEX", help="layers (or blocks) to show, by their whole names")
    add("--style", metavar="STYLE", help="screen (default), paper or dark")
    add("--size", nargs=2, type=float, metavar=("W", "H"), help="size in inches")
    add("--dpi", type=float, help=f"pixels per inch of a PNG (default: {_DPI:g})")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="other arguments of the figure",
    )
    add("--list", action="store_true", help="list the figures there are")
    add("-h", "--help", action="store_true", help="this help; with a figure's name, how to read it")
    return parser


def _listing() -> str:
    width = max(map(len, registry.names()), default=0)
    return "\n".join(
        f"{name:<{width}}  {(registry.describe(name).splitlines() or [''])[0]}"
        for name in registry.names()
    )


def _help(parser: _Parser, figure: str | None) -> str:
    if figure is not None:
        parser.description = registry.describe(figure)
        parser.usage = f"{_PROG} {figure} run.zarr [more.zarr ...] [options]"
    return parser.format_help().rstrip()


def _draw(arguments: argparse.Namespace) -> Path:
    name: str = arguments.figure
    registry.describe(name)  # an unknown name is the first thing to say
    output: Path = arguments.output or Path(f"{name}.png")
    _check_output(output)
    if not arguments.runs:
        raise ValueError(f"expected at least one run: {_PROG} {name} run.zarr")
    dpi = _DPI if arguments.dpi is None else arguments.dpi
    _check_size(arguments.size or [1.0], dpi)
    function = registry.find(name)
    options = _options(arguments)
    known = inspect.signature(function).parameters
    for option in options:
        if option not in known:
            allowed = [k for k, p in known.items() if p.kind is p.KEYWORD_ONLY]
            raise ValueError(
                f"{name} has no option {option!r}; it has {', '.join(allowed) or 'none'}"
            )
    with _styled(arguments.style):
        figure = function(*arguments.runs, **options)
    # Files carry no date, so that the same run gives the same file.
    date = {".pdf": "CreationDate", ".svg": "Date"}.get(output.suffix.lower())
    metadata = {date: None} if date else None
    figure.savefig(output, dpi=dpi, metadata=metadata)
    return output


def _styled(name: str | None) -> AbstractContextManager[None]:
    # Imported only where a figure is drawn: it imports matplotlib.
    from propkit.figures.style import use_style

    return use_style(name or "screen")


def _check_size(inches: Sequence[float], dpi: float) -> None:
    if not all(0 < v < float("inf") for v in (*inches, dpi)):
        raise ValueError("--size and --dpi must be positive numbers")
    if max(inches) * dpi > _MOST_PIXELS:
        raise ValueError(
            f"--size {max(inches):g} inches at --dpi {dpi:g} is more than {_MOST_PIXELS:,} pixels"
        )


def _check_output(output: Path) -> None:
    if output.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"cannot write {str(output)!r}: expected a file name that ends in {', '.join(SUFFIXES)}"
        )
    if not output.parent.is_dir():
        raise FileNotFoundError(
            f"cannot write {str(output)!r}: there is no folder {str(output.parent)!r}"
        )


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pair in arguments.set:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"--set expects KEY=VALUE, found {pair!r}")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value  # a plain word is a string
    given = {"labels": arguments.label, "steps": arguments.steps}
    given |= {"layers": arguments.layers, "size": arguments.size}
    return options | {k: v for k, v in given.items() if v is not None}


if __name__ == "__main__":
    raise SystemExit(main())

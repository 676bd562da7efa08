"""``propkit repair``: restore runs whose root metadata were damaged."""

import argparse
from pathlib import Path

from propkit.commands import UsageError

SUMMARY = "restore runs whose root metadata were damaged"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("runs", nargs="+", metavar="RUN.zarr", help="the runs to restore")


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status."""
    from propkit.store.repair import repair

    for path in arguments.runs:  # before anything is repaired
        if Path(path).expanduser().is_file():
            raise UsageError(
                f"{path}: expected the directory of a run, found a file, which cannot be repaired: "
                "copy it again from where it is whole"
            )
    try:
        print(*map(repair, arguments.runs), sep="\n")
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from None
    return 0

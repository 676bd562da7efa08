"""``propkit repair``: restore runs whose root metadata were damaged."""

import argparse

from propkit.commands import UsageError

SUMMARY = "restore runs whose root metadata were damaged"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("runs", nargs="+", metavar="RUN.zarr", help="the runs to restore")


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status."""
    from propkit.store.repair import repair

    try:
        print(*map(repair, arguments.runs), sep="\n")
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from None
    return 0

"""The command line: ``python -m propkit COMMAND``."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from propkit.commands import USAGE, UsageError, commands


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line.

    Args:
        arguments: Without the program's name; those of the process if None.

    Returns:
        The exit status: 0, 1 if the training failed, 2 for a wrong command line, 130 if interrupted.
    """
    parser = _Parser(prog="propkit", description="What happens to the signals in your network?")
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    found = commands()
    for name, command in found.items():
        summary: str = command.SUMMARY
        # Only the first letter: capitalize() would write "html".
        described = f"{summary[:1].upper()}{summary[1:]}."
        sub = subparsers.add_parser(name, help=summary, description=described)
        command.configure(sub)
    parsed = parser.parse_args(arguments)
    if parsed.version:
        from propkit import __version__

        print(__version__)
        return 0
    if parsed.command is None:
        parser.print_help()
        return 0
    try:
        return int(found[parsed.command].run(parsed))
    except UsageError as error:
        print(f"propkit {parsed.command}: {error}", file=sys.stderr)
        return USAGE


if __name__ == "__main__":
    sys.exit(main())

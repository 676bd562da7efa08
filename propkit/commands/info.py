"""``propkit info``: show what runs contain."""

import argparse
import sys

from propkit.commands import USAGE

SUMMARY = "show what runs contain"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    what = "runs, finished or still being written: paths, URLs, patterns, folders of runs"
    add("runs", nargs="+", metavar="RUN.zarr", help=what)
    add("--json", action="store_true", help="print a JSON array, for other programs")
    add("--sites", action="store_true", help="show all sites, however many there are")


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status."""
    from propkit.info import print_info

    errors = print_info(arguments.runs, as_json=arguments.json, all_sites=arguments.sites)
    for error in errors:
        print(f"propkit info: {error}", file=sys.stderr)
    return USAGE if errors else 0

"""The subcommands of ``python -m propkit``: one file each.

A file ``NAME.py`` here is the subcommand NAME. It has ``SUMMARY`` (its line in the help), ``configure(parser)``, which
adds its arguments, and ``run(arguments)``, which returns the exit status. It imports what it needs when it runs: the
help must not wait for PyTorch.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType

USAGE = 2
FAILED = 1
INTERRUPTED = 130


class UsageError(Exception):
    """The command line cannot be carried out as it stands; nothing has been changed."""


def commands() -> Mapping[str, ModuleType]:
    """Name -> module of each subcommand, in the order of their names."""
    names = sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py"))
    return MappingProxyType({n: importlib.import_module(f"{__package__}.{n}") for n in names})

"""``propkit report``: one self-contained HTML page about a run, or several."""

import argparse
import contextlib
from pathlib import Path

from propkit.commands import UsageError

SUMMARY = "write one HTML page about a run, or several"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN.zarr", help="runs, finished or still being written")
    add("-o", "--output", type=Path, help="file to write (default: the first run's label.html)")
    add("--label", nargs="+", action="extend", metavar="L", help="one label per run")
    add("--figures", nargs="+", metavar="NAME", help="figures to draw (default: all that can be)")


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status."""
    from rich.console import Console

    from propkit.figures import registry
    from propkit.figures.runs import gather
    from propkit.report.page import check_output, write_page
    from propkit.store.run import open as open_run

    console = Console(stderr=True)
    try:
        for name in arguments.figures or ():
            registry.describe(name)  # an unknown name is the first thing to say
        if arguments.output:
            check_output(arguments.output)
        opened = [open_run(path) for path in arguments.runs]
        runs = dict(zip(gather(opened, arguments.label), opened, strict=True))
        output = arguments.output or Path(f"{opened[0].label.replace('/', '-')}.html")
        busy = console.status("") if console.is_terminal else contextlib.nullcontext()
        with busy as status:
            path = write_page(
                output,
                runs,
                figures=arguments.figures,
                progress=lambda text: status.update(text) if status else None,
            )
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(str(error)) from None
    print(path)
    return 0

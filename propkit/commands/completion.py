"""``propkit completion``: print a script that makes a shell complete propkit's command line."""

import argparse

SUMMARY = "print a script for completion in bash, zsh or fish"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "shell",
        choices=["bash", "fish", "zsh"],
        help='for bash, in ~/.bashrc: eval "$(python -m propkit completion bash)"; the script says it for the others',
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status."""
    from propkit.completion import completion_script

    print(completion_script(arguments.shell), end="")
    return 0

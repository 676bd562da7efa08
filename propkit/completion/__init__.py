"""Completion of the command line in a shell: scripts that hold all words, so that completing runs no Python.

The words are read off the parsers when a script is printed; after an update of propkit, or of a package that brings
figures, it is printed anew.
"""

from propkit.completion import bash, fish, zsh
from propkit.completion.words import programs

SHELLS = {"bash": bash.script, "fish": fish.script, "zsh": zsh.script}
"""Shell -> the function that writes its script."""


def completion_script(shell: str) -> str:
    """The script that makes a shell complete propkit's commands, options, recipes and figures.

    Args:
        shell: ``bash``, ``zsh`` or ``fish``.

    Raises:
        ValueError: Another shell.

    Example:
        >>> completion_script("bash").splitlines()[0]
        '# Completion of propkit in bash. In ~/.bashrc: eval "$(python -m propkit completion bash)"'
    """
    if shell not in SHELLS:
        raise ValueError(f"no completion for {shell!r}, only for {', '.join(SHELLS)}")
    return SHELLS[shell](programs())

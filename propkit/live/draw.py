"""The drawing process of `propkit.live`: takes what to draw from its input, gives pictures to its output.

The kernel stays free while it works, matplotlib's settings there are not touched, and a drawing that fails or crashes
takes nothing with it. It ends when its input does: with the kernel, however that ends.
"""

import contextlib
import io
import os
import pickle
import subprocess
import sys
import time
from typing import IO, Any, NamedTuple, cast

from propkit.figures import registry


class Picture(NamedTuple):
    """A drawn figure.

    Attributes:
        png: The image.
        width: Of the figure on the page, in pixels.
        height: Its height.
        seconds: CPU time that drawing it took.
    """

    png: bytes
    width: int
    height: int
    seconds: float


class DrawingError(Exception):
    """A figure could not be drawn, and another try will not help."""


class NotYetError(Exception):
    """A figure could not be drawn; it may be when the run has grown."""


class Artist:
    """A process that draws, one figure at a time."""

    def __init__(self) -> None:
        # A session of its own: interrupting the kernel is not meant for it.
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._requests = cast(IO[bytes], self._process.stdin)
        self._replies = cast(IO[bytes], self._process.stdout)

    def draw(self, figure: str, place: str, options: dict[str, Any]) -> Picture:
        """Draw a figure of the run as it is now.

        Args:
            figure: Its name.
            place: Path or URL of the run.
            options: Arguments of the figure.

        Raises:
            NotYetError: The run lacks what the figure needs.
            DrawingError: Anything else went wrong in the figure, or with the process.
        """
        try:
            request = pickle.dumps((figure, place, options))
        except Exception as error:
            raise DrawingError(f"the options cannot be sent to another process: {error}") from error
        try:
            pickle.dump(request, self._requests)
            self._requests.flush()
            kind, *reply = pickle.load(self._replies)
        except (OSError, EOFError) as error:
            status = self._process.wait(10)
            raise DrawingError(f"the drawing process ended with status {status}") from error
        if kind == "picture":
            return Picture(*reply)
        raise (NotYetError if kind == "not yet" else DrawingError)(*reply)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):  # a request that was not sent off
            self._requests.close()
        self._replies.close()
        self._process.wait()


def draw(figure: str, place: str, options: dict[str, Any]) -> Picture:
    """Draw a figure of the run at a path or URL, as it is now."""
    began = time.process_time()
    drawn = registry.find(figure)(place, **options)
    width, height = (int(n * drawn.dpi) for n in drawn.get_size_inches())
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=2 * drawn.dpi)  # sharp on dense screens
    return Picture(buffer.getvalue(), width, height, time.process_time() - began)


def answer(request: bytes) -> tuple[Any, ...]:
    """What is given back for a request: ``("picture", ...)``, ``("not yet", why)`` or ``("failed", why)``."""
    try:
        return ("picture", *draw(*pickle.loads(request)))
    except (OSError, ValueError, LookupError) as error:
        return ("not yet", str(error))
    except Exception as error:
        return ("failed", f"{type(error).__name__}: {error}")


def main() -> None:
    """Answer requests until there are no more."""
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # a figure may print
        while True:
            try:
                request = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            pickle.dump(answer(request), out)
            out.flush()


if __name__ == "__main__":
    main()

"""A figure on the page that is drawn again whenever the run has grown."""

import inspect
import threading
from typing import TYPE_CHECKING, Any

from propkit.figures import registry
from propkit.live.draw import Artist, NotYetError, Picture

if TYPE_CHECKING:
    from propkit.store.run import Run

PAUSE = 3.0
"""Between two drawings at least so many times what one takes."""


class Live:
    """A figure in a notebook that follows a run; made by `Run.live`.

    The figure is drawn by a process of its own, so that the kernel is free for the training or for anything else. It
    ends by itself when the run does, after a last drawing. What goes wrong is said where the figure would be.

    Args:
        run: A run in a store.
        figure: Name of the figure.
        interval: Seconds between two looks at the run.
        options: Arguments of the figure.

    Attributes:
        updates: How often the figure was drawn.
        error: What went wrong in the last drawing; empty if nothing did.

    Raises:
        ImportError: IPython is not installed.
        RuntimeError: This is no notebook.
        ValueError: The figure is unknown or has no such option, the run is in memory, or `interval` is not positive.
    """

    def __init__(
        self, run: "Run", figure: str = "fig3", interval: float = 2.0, **options: Any
    ) -> None:
        known = inspect.signature(registry.find(figure)).parameters
        for option in options:
            if option not in known:
                allowed = [k for k, p in known.items() if p.kind is p.KEYWORD_ONLY]
                raise ValueError(f"{figure} has no option {option!r}; it has {', '.join(allowed)}")
        if not interval > 0:
            raise ValueError(f"interval={interval!r}: expected a positive number of seconds")
        if run.path is None and "://" not in run.name:
            raise ValueError(
                f"live() follows a run in a store, this one is {run.name}: give attach() a path "
                f"('run.zarr'), or draw propkit.figures.{figure}(recorder.run) when you want to see it"
            )
        self.updates = 0
        self.error = ""
        self._run = run
        self._figure = figure
        self._interval = interval
        self._options = options
        self._stop = threading.Event()
        self._display = _display(f"{figure}: drawing it for the first time")
        self._thread = threading.Thread(target=self._follow, name=f"propkit {figure}", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether it still follows the run."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Do not follow the run any longer; the last drawing stays."""
        self._stop.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, by itself or by `stop`.

        Args:
            timeout: Seconds at most; None: as long as it takes.

        Returns:
            Whether it has ended.
        """
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def __repr__(self) -> str:
        state = "following" if self.running else "ended"
        tail = f"; {self.error}" if self.error else ""
        return f"<propkit live {self._figure} of {self._run.label!r}: {state}, {self.updates} updates{tail}>"

    def _follow(self) -> None:
        artist = Artist()
        seen: object = None
        try:
            while not self._stop.is_set():
                pause, state = self._interval, "running"
                try:
                    run = self._run.refresh()
                    state = run.state
                    commit = run.attributes.get("commit") or {}
                    now = (commit.get("seq"), run.attributes.get("created"), state)
                    if now != seen:
                        place = str(run.path or run.name)
                        picture = artist.draw(self._figure, place, self._options)
                        self._show(picture, run)
                        seen = now
                        pause = max(pause, PAUSE * picture.seconds)
                except (OSError, ValueError, LookupError, NotYetError) as error:
                    self._say(str(error))  # the next look may find more
                if state != "running":
                    return
                self._stop.wait(pause)
        except Exception as error:  # said on the page, never raised in the kernel
            self._say(f"{error} (it is not followed any longer)")
        finally:
            artist.close()

    def _show(self, picture: Picture, run: "Run") -> None:
        from IPython.display import Image

        steps = [c.last_step for c in run.contents.values() if c.last_step is not None]
        last = f"up to step {max(steps)}" if steps else "without a row"
        image = Image(  # type: ignore[no-untyped-call]
            picture.png,
            format="png",
            width=picture.width,
            height=picture.height,
            alt=f"{self._figure} of run {run.label}, {run.state}, {last}",
        )
        self._display.update(image)
        self.updates += 1
        self.error = ""

    def _say(self, text: str) -> None:
        """Put what went wrong where the figure would be, unless it is there already."""
        if text != self.error:
            self.error = text
            self._display.update(_Text(f"{self._figure}: {text}"))


class _Text:
    """Text that is shown as it is."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _display(text: str) -> Any:
    """A handle of something on the page of the notebook."""
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError as error:
        raise ImportError(
            "live() needs IPython, which notebooks run on: pip install 'propkit[jupyter]'"
        ) from error
    if get_ipython() is None:
        raise RuntimeError(
            "live() shows a figure in a notebook; in a terminal, `python -m propkit watch run.zarr` follows a run"
        )
    return display(_Text(text), display_id=True)  # type: ignore[no-untyped-call]

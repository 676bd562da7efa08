"""A figure in a notebook that follows a run while it is being written: ``run.live("fig3")``."""

from propkit.live.follow import Live

__all__ = ["Live"]

"""What propkit says to its user while training runs: once, and never as an exception."""

import logging
import warnings

_log = logging.getLogger("propkit")


class PropkitWarning(UserWarning):
    """Something was left out, or recording stopped; training is not affected."""


def say(text: str) -> None:
    """Warn with `text`; where a filter turns warnings into errors, log it, so that no hook ever raises."""
    try:
        warnings.warn(text, PropkitWarning, stacklevel=2)
    except PropkitWarning:
        _log.warning(text)

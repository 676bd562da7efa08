"""What must not get into a run or a message: passwords, tokens and keys, in URLs, command lines and settings."""

import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

HIDDEN = "***"
"""What stands in the place of a secret."""

SHORTEST = 8
"""Length from which the value of a variable of the environment is looked for in texts."""

_CONTAINER_FIRST = {"abfs", "abfss", "wasb", "wasbs"}
"""Azure's URLs have a container in front of the @, not a name."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>]+")
_PORT = re.compile(r"[^:]*(:\d*)?")
_WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z0-9]+(?![a-z])")
_SURELY = re.compile(
    r"secret|passw(or)?d|passphrase|credential|authorization|"
    r"(access|account|api|auth|bearer|private|sas|security|session|shared)(key|token)"
)
_PERHAPS = re.compile(r"\w*(key|token)|pwd|sas|sig|signature")
_NAME = re.compile(r"[-+\w.\[\]/]+")
_PAIR = re.compile(r"""([A-Za-z_][\w.-]*)(['"]?\s*[:=]\s*)("[^"]*"|'[^']*'|[^\s,;&'"(){}\[\]]+)""")


def redacted(url: str) -> str:
    """A URL without the name, password and query that may be in it.

    >>> redacted("s3://key:secret@bucket/run.zarr?token=1")
    's3://bucket/run.zarr'
    """
    scheme, _, rest = url.partition("://")
    rest = rest.partition("?")[0]
    host, slash, path = rest.partition("/")
    if "@" not in host and "@" in path and not _PORT.fullmatch(host):
        # A password with a slash in it that was not written as %2F.
        host, slash, path = rest.rpartition("@")[2].partition("/")
    user, _, place = host.rpartition("@")
    shown = host if scheme in _CONTAINER_FIRST and ":" not in user else place
    return f"{scheme}://{shown}{slash}{path}"


def redacted_text(text: str) -> str:
    """A text without what its URLs must not show, and without the secrets of the environment.

    The latter are the values of variables whose names say so, ``AWS_SECRET_ACCESS_KEY`` or ``HF_TOKEN``.
    """
    if "://" in text:
        text = _URL.sub(lambda found: redacted(found[0]), text)
    for secret in _of_environment():
        text = text.replace(secret, HIDDEN)
    return text


def redacted_command(words: Sequence[str]) -> str:
    """A command line, of which no option or assignment shows a secret.

    >>> redacted_command(["train.py", "--lr=0.1", "--api-key", "k7", "HF_TOKEN=hf7", "s3://me:pw@bucket/run.zarr"])
    'train.py --lr=0.1 --api-key *** HF_TOKEN=*** s3://bucket/run.zarr'
    """
    shown: list[str] = []
    hide = False
    for word in words:
        name, assigned, _ = word.partition("=")
        if hide and not word.startswith("--"):
            shown.append(HIDDEN)
            hide = False
            continue
        hide = word.startswith("-") and not assigned and says_secret(name)
        if assigned and _NAME.fullmatch(name) and says_secret(name):
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(_PAIR.sub(_hide_pair, redacted_text(word)))
    return " ".join(shown)


def redacted_settings(value: Any) -> Any:
    """A configuration without secrets: URLs as in `redacted`, texts under names that say secret or password hidden.

    ``key`` and ``token`` are common words in configurations of networks: they are taken for secrets only beside one, as
    in the storage options of a file system.

    >>> redacted_settings({"key": "k7", "secret": "s7"}), redacted_settings({"pad_token": "<pad>", "lr": 0.1})
    ({'key': '***', 'secret': '***'}, {'pad_token': '<pad>', 'lr': 0.1})
    """
    if isinstance(value, str):
        return redacted_text(value)
    if isinstance(value, Mapping):
        surely = any(isinstance(name, str) and says_secret(name, surely=True) for name in value)
        return {
            name: _hidden(v)
            if isinstance(name, str) and says_secret(name, surely=not surely)
            else redacted_settings(v)
            for name, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted_settings(v) for v in value]
    return value


@lru_cache(maxsize=1024)
def says_secret(name: str, surely: bool = False) -> bool:
    """Whether the name of an option, variable or setting says that its value is a secret.

    Args:
        name: Such as ``"--api-key"``, ``"AWS_SECRET_ACCESS_KEY"``, ``"secretAccessKey"``.
        surely: Do not take ``key`` or ``token`` alone for one.
    """
    if _SURELY.search(re.sub("[^a-z]", "", name.lower())):
        return True
    return not surely and any(_PERHAPS.fullmatch(word.lower()) for word in _WORD.findall(name))


def _hide_pair(found: re.Match[str]) -> str:
    name, mark, value = found.groups()
    if not says_secret(name):
        return found[0]
    quote = value[0] if value[0] in "'\"" else ""
    return f"{name}{mark}{quote}{HIDDEN}{quote}"


def _hidden(value: Any) -> Any:
    """A value under a name that says secret: numbers and switches tell nothing."""
    if isinstance(value, str):
        return HIDDEN if value else value
    if isinstance(value, Mapping):
        return {name: _hidden(v) for name, v in value.items()}
    return [_hidden(v) for v in value] if isinstance(value, list | tuple) else value


def _of_environment() -> list[str]:
    """The secrets of the environment, the longest first: one may be part of another."""
    found = {v for name, v in os.environ.items() if len(v) >= SHORTEST and says_secret(name)}
    return sorted((v for v in found if not _is_path(v)), key=len, reverse=True)


def _is_path(text: str) -> bool:
    """Whether it is where a secret is kept, not the secret."""
    try:
        return "/" in text and Path(text).exists()
    except (OSError, ValueError):
        return False

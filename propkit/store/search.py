"""Runs at URLs: those that match a pattern, those in a folder."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase

from propkit.redaction import redacted
from propkit.store.place import named, store_at, synchronous
from propkit.store.run import Run
from propkit.store.run import open as open_run

OPENED_AT_ONCE = 16
"""Runs that are opened side by side: each waits for an answer or two."""

_MAGIC = re.compile(r"[*\[]")


def runs_at(url: str) -> tuple[list[Run], list[str]]:
    """Open the runs that a URL stands for.

    Args:
        url: Of a run, of a folder of runs, or a pattern such as ``s3://bucket/runs/*.zarr``: ``*`` and ``[abc]`` within
            a name, ``**`` for any folders. A ``?`` begins the query of a URL.

    Returns:
        The runs, in the order of their names, and remarks on what was found that is no run.

    Raises:
        FileNotFoundError: There is none.
        ImportError, ValueError: As `propkit.open`.
        OSError: The store cannot be reached, or cannot list what it has.
    """
    if _MAGIC.search(redacted(url)):
        return _opened(matches(url), redacted(url))
    try:
        return [open_run(url)], []
    except FileNotFoundError:
        inside = matches(_below(url, "*"))
        if not inside:
            raise
    return _opened(inside, redacted(_below(url, "*")))


def matches(pattern: str) -> list[str]:
    """URLs that match a pattern, whatever is there, in the order of their names.

    Raises:
        ValueError: It does not begin with a place that can be listed.
    """
    main = pattern.partition("?")[0]
    scheme, _, rest = main.partition("://")
    parts = rest.strip("/").split("/") if scheme == "memory" else rest.rstrip("/").split("/")
    first = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
    if not first and scheme != "memory":
        raise ValueError(
            f"expected the name of a bucket or host at the beginning of {redacted(pattern)}, found a pattern"
        )
    query = pattern[len(main) :]
    found = _walk(f"{scheme}://{'/'.join(parts[:first])}{query}", parts[first:])
    return sorted(dict.fromkeys(found), key=natural)


def _walk(url: str, parts: list[str]) -> Iterator[str]:
    """What matches the rest of a pattern below a URL."""
    if not parts:
        yield url
        return
    part, *rest = parts
    if not _MAGIC.search(part):
        yield from _walk(_below(url, part), rest)
        return
    names = _names(url)
    if part != "**":
        for name in names:
            if fnmatchcase(name, part) and not name.startswith("."):
                yield from _walk(_below(url, name), rest)
        return
    yield from _walk(url, rest)
    if "zarr.json" not in names:  # there are no runs in a run
        for name in names:
            yield from _walk(_below(url, name), parts)


def _names(url: str) -> list[str]:
    """Names of what is directly below a URL."""
    store = store_at(url, read_only=True)

    async def listed() -> list[str]:
        return [name async for name in store.list_dir("")]

    with named(redacted(url)):
        return [name for name in synchronous(listed()) if name]


def _below(url: str, name: str) -> str:
    main, mark, query = url.partition("?")
    slash = "" if main.endswith("/") else "/"
    return f"{main}{slash}{name}{mark}{query}"


def _opened(urls: list[str], pattern: str) -> tuple[list[Run], list[str]]:
    def attempt(url: str) -> Run | str:
        try:
            return open_run(url)
        except (OSError, ValueError) as error:
            return f"left out: {error}"

    with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
        found = list(pool.map(attempt, urls))
    runs = [run for run in found if isinstance(run, Run)]
    remarks = [remark for remark in found if isinstance(remark, str)]
    if not runs:
        raise nothing_matches(pattern, remarks)
    return runs, remarks


def natural(path: str) -> list[tuple[int, str]]:
    """A key for sorting: numbers in names count as numbers.

    >>> sorted(["seed10", "seed2"], key=natural)
    ['seed2', 'seed10']
    """
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]


def nothing_matches(pattern: str, remarks: list[str]) -> FileNotFoundError:
    """The error that says so."""
    seen = f"; what is there is no run: {'; '.join(remarks[:3])}" if remarks else ""
    return FileNotFoundError(f"no run matches {pattern}{seen}")

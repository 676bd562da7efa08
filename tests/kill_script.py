"""Kills a writing process at random moments, again and again, and looks at what is left: see `test_recovery.py`.

    python -m tests.kill_script FOLDER KILLS SEED

A process that has loaded everything forks the writers, since loading takes longer than writing. Each one resumes the
run that the one before left, sometimes some steps back, adds rows, curves, sites and variables, and says after each
commit which step it has reached. After each kill the run is opened as any reader would, and every value is compared
with the one that belongs there. Another process polls the run all the time. Prints its counts as JSON.
"""

import json
import os
import random
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import xarray as xr

from propkit.schema import Group, Variable
from propkit.store import arrays
from propkit.store.resume import take_up
from propkit.store.run import open as open_run
from propkit.store.writer import ZarrWriter

SITES = np.array(["a", "b", "c", "d", "e", "f"])
SIZES = np.array([2, 0, 3, 1, 4, 2])
FLUSH = 16


def described(sites: int, variables: int) -> Group:
    axes = {"singular_value": None, "quantile": np.array([0.0, 0.5, 1.0])}
    own = (
        Variable("value", dim="singular_value", dtype="float32"),
        Variable("quantiles", dim="quantile"),
        Variable("norm"),
        Variable("late"),
    )
    return Group(
        "spectra",
        own[:variables],
        {"site": SITES[:sites], "row_size": SIZES[:sites]},
        {},
        axes,
    )


def values(steps: np.ndarray, sites: int) -> dict[str, np.ndarray]:
    """Values that say where they belong; exact in float32, and never 0."""
    at = np.asarray(steps, float)[:, None] + 1
    norm = at * 16 + np.arange(sites)
    return {
        "value": at * 16 + np.arange(SIZES[:sites].sum()),
        "quantiles": norm[..., None] + np.array([0.0, 0.25, 0.5]),
        "norm": norm,
        "late": -norm,
    }


def write(path: Path, seed: int, report: int) -> None:
    """A writer that is killed sooner or later: resumes, then appends and commits without end."""
    chance = random.Random(seed)
    if path.exists():
        left = take_up(path)
        step = max(0, left.steps - chance.choice([0, 0, 0, 3, 20, 40]))
        os.write(report, b"cut %d\n" % step)
        writer = ZarrWriter.resume(left, step, {"state": "running", "pid": os.getpid()})
        groups = {name: stored.group for name, stored in left.groups.items()}
    else:
        step, groups = 0, {}
        writer = ZarrWriter.create(path, {"label": "killed"})
    if groups:
        sites, variables = groups["spectra"].width, len(groups["spectra"].variables)
    else:
        sites, variables = 1, 3
        writer.define(described(sites, variables))
        writer.define(Group("log", (Variable("loss"),)))
        writer.commit()
    os.write(report, b"committed %d\n" % step)
    while True:
        if sites < len(SITES) and chance.random() < 0.1:
            sites += 1
            writer.define(described(sites, variables))
        if variables < 4 and chance.random() < 0.05:
            variables += 1
            writer.define(described(sites, variables))
        steps = np.arange(step, step + FLUSH)
        columns = values(steps, sites)
        writer.append("spectra", steps, {n: columns[n] for n in list(columns)[:variables]})
        writer.append("log", steps, {"loss": steps + 0.5})
        step += FLUSH
        writer.commit()
        os.write(report, b"committed %d\n" % step)


def check(path: Path) -> int:
    """Number of rows; raises where one is not what was written."""
    tree = xr.open_datatree(path, engine="zarr", chunks=None)
    if not tree.children:  # killed before the first commit
        return 0
    spectra, log = tree["spectra"].to_dataset().load(), tree["log"].to_dataset().load()
    rows = spectra.sizes["step"]
    steps = np.arange(rows)
    assert log.sizes["step"] == rows
    np.testing.assert_array_equal(spectra.step, steps)
    np.testing.assert_array_equal(log.step, steps)
    np.testing.assert_array_equal(log.loss, steps + 0.5)
    sites = spectra.sizes["site"]
    assert spectra.site.values.tolist() == SITES[:sites].tolist()
    expected = values(steps, sites)
    whole = None
    for name in spectra.data_vars:
        found = spectra[name].values
        there = ~np.isnan(found)
        np.testing.assert_array_equal(found[there], expected[name][there])
        if (
            name == "norm"
        ):  # a site that came later has NaN before, and none of the first site's values is missing
            assert there[:, 0].all()
            whole = there
        elif name == "quantiles":
            assert (there == there[..., :1]).all()
    assert whole is not None
    sizes = spectra.row_size.values
    starts = np.cumsum([0, *sizes])
    for site in range(sites):
        of_site = ~np.isnan(spectra["value"].values[:, starts[site] : starts[site + 1]])
        assert (of_site == whole[:, site, None]).all()
        if (~whole[:, site]).any():  # NaN at the beginning only: nothing that was written is lost
            first = int(whole[:, site].argmax()) if whole[:, site].any() else rows
            assert whole[first:, site].all()
    return rows


def generation(path: Path) -> int:
    return json.loads((path / "zarr.json").read_bytes())["attributes"]["commit"]["generation"]


class Poller(threading.Thread):
    """A live reader."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path, self.polls, self.again, self.failures, self.ended = path, 0, 0, [], False

    def run(self) -> None:
        while not self.ended:
            if not self.path.exists():
                time.sleep(0.001)
                continue
            before, failure = generation(self.path), ""
            try:
                check(self.path)
            except Exception as error:
                failure = repr(error)[:300]
            if generation(self.path) != before:  # rows were removed meanwhile: read again
                self.again += 1
                continue
            self.polls += 1
            time.sleep(0.005)  # the writers need the processor too
            if failure:
                self.failures.append(failure)


def main(folder: str, kills: int, seed: int) -> dict[str, object]:
    warnings.simplefilter("error")
    arrays.LONGEST_CHUNK = 64  # so that many commits begin a new chunk
    path = Path(folder) / "killed.zarr"
    chance = random.Random(seed)
    counts = {"kills": 0, "unopenable": 0, "torn": 0, "rows_lost": 0, "flushes": 0, "resumed": 0}
    errors: list[str] = []
    ready, wake = os.pipe()
    reader = os.fork()
    if not reader:  # the live reader, in a process of its own
        os.close(wake)
        poller = Poller(path)
        poller.start()
        os.read(ready, 1)
        poller.ended = True
        poller.join()
        Path(folder, "polls.json").write_text(
            json.dumps([poller.polls, poller.again, poller.failures])
        )
        os._exit(0)
    os.close(ready)
    for number in range(kills):
        if number % 50 == 49:  # a run does not grow for ever
            clean(path)
        inlet, outlet = os.pipe()
        child = os.fork()
        if not child:
            os.close(inlet)
            try:
                write(path, seed * 1_000_003 + number, outlet)
            except BaseException as error:
                os.write(outlet, f"error {error!r}\n".encode())
            os._exit(1)
        os.close(outlet)
        said = b""
        if chance.random() < 0.6:  # while it writes; else while it takes up the run
            said += os.read(inlet, 1 << 16)
            while b"committed" not in said and (part := os.read(inlet, 1 << 16)):
                said += part
        time.sleep(chance.uniform(0.0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while part := os.read(inlet, 1 << 16):
            said += part
        os.close(inlet)
        counts["kills"] += 1
        lines = [line.split(" ", 1) for line in said.decode().splitlines()]
        errors += [text for word, text in lines if word == "error"]
        acknowledged = [int(text) for word, text in lines if word == "committed"]
        counts["flushes"] += max(0, len(acknowledged) - 1)
        counts["resumed"] += any(word == "cut" for word, _ in lines) and bool(acknowledged)
        if not path.exists():
            continue
        try:
            rows = check(path)
        except AssertionError as error:
            counts["torn"] += 1
            errors.append(str(error)[:300])
        except Exception as error:
            counts["unopenable"] += 1
            errors.append(repr(error)[:300])
        else:
            if acknowledged:
                counts["rows_lost"] += max(0, acknowledged[-1] - rows)
    os.write(wake, b".")
    os.waitpid(reader, 0)
    polls, again, failures = json.loads(Path(folder, "polls.json").read_text())
    return {
        **counts,
        "polls": polls,
        "polls_repeated": again,
        "polls_failed": len(failures),
        "errors": [*errors, *failures][:5],
    }


def clean(path: Path) -> None:
    """Begin anew."""
    left = take_up(path)
    ZarrWriter.resume(left, 0, {}).close("complete")
    open_run(path)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))

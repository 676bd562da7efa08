# ruff: noqa: F811 - fixtures are imported
"""What goes wrong at a URL: no bucket, wrong keys, a server that dies; and what must never be there: the keys."""

import json
import sys
import time
import traceback
import warnings
from datetime import timedelta
from urllib.parse import quote

import numpy as np
import pytest

import propkit
from propkit.info import print_info
from propkit.notices import PropkitWarning
from propkit.recording import outbox, patience
from propkit.store import place
from propkit.store.objects import Objects
from tests.conftest import cross_entropy, make_case, sgd
from tests.s3_server import KEYS, s3, s3_server  # noqa: F401

URL = "s3://bucket/runs/run.zarr"


@pytest.fixture
def train():
    """A training loop: so many steps more."""
    model, x, y = make_case("mlp")
    optimizer, loss = sgd(model), cross_entropy(x, y)

    def go(recorder, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            value = loss(model)
            value.backward()
            recorder.log(loss=value)
            optimizer.step()

    go.model = model
    return go


@pytest.fixture
def impatient(monkeypatch):
    """A server that is gone is given up at once."""
    retries = {"max_retries": 1, "retry_timeout": timedelta(seconds=1)}
    monkeypatch.setattr(place, "_RETRIES", retries)
    monkeypatch.setattr(outbox, "FLUSH_ROWS", 2)


# --- servers that say no --------------------------------------------------------------------------


def test_a_missing_bucket(s3, train):
    with pytest.raises(OSError, match=r"NoSuchBucket: .*s3://missing/run\.zarr"):
        propkit.attach(train.model, "s3://missing/run.zarr")
    with pytest.raises(FileNotFoundError, match=r"no run at s3://missing/run\.zarr"):
        propkit.open("s3://missing/run.zarr")
    with pytest.raises(OSError, match="NoSuchBucket"):
        propkit.open_study("s3://missing/*.zarr")


@pytest.fixture
def keys(s3):
    """The key of somebody who may do all; from here on the server asks for it."""
    iam = s3.client("iam")
    iam.create_user(UserName="somebody")
    allowed = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    iam.put_user_policy(UserName="somebody", PolicyName="all", PolicyDocument=policy)
    found = iam.create_access_key(UserName="somebody")["AccessKey"]
    s3.ask_for_keys()
    return found["AccessKeyId"], found["SecretAccessKey"]


@pytest.mark.parametrize("wrong", ["key", "secret"])
def test_wrong_credentials(s3, keys, train, monkeypatch, wrong):
    right = dict(zip(KEYS, keys, strict=True))
    shown = KEYS if wrong == "key" else right | {"AWS_SECRET_ACCESS_KEY": "wrongwrongwrong"}
    for name, value in shown.items():
        monkeypatch.setenv(name, value)
    why = "InvalidAccessKeyId" if wrong == "key" else "SignatureDoesNotMatch"
    for attempt in (
        lambda: propkit.attach(train.model, URL),
        lambda: propkit.open(URL),
        lambda: propkit.open_study("s3://bucket/runs/*"),
    ):
        with pytest.raises(OSError, match=why) as error:
            attempt()
        told = "".join(traceback.format_exception(error.value))
        assert not [secret for secret in [*KEYS.values(), *keys, "wrongwrong"] if secret in told]
    for name, value in right.items():
        monkeypatch.setenv(name, value)
    propkit.attach(train.model, URL).detach()
    assert propkit.open(URL).state == "complete"


def test_no_key_is_written_or_shown(s3, keys, train, monkeypatch, capsys):
    """Given in the URL, where they work; in storage options; in the command line."""
    for name in KEYS:
        monkeypatch.delenv(name)
    key, secret = keys
    secrets = [key, secret, quote(secret, safe=""), "tokNOTTOBEFOUND", "pwdNOTTOBEFOUND"]
    url = f"s3://{key}:{quote(secret, safe='')}@bucket/runs/run.zarr"
    argv = [
        "train.py",
        "-o",
        url,
        "--api-token",
        secrets[3],
        f"DB_PASSWORD={secrets[4]}",
        "--aws-key",
        key,
    ]
    monkeypatch.setattr(sys, "argv", argv)
    config = {"lr": 0.1, "storage_options": {"key": key, "secret": secret}, "out": url}
    with propkit.attach(train.model, url, probes="weight", config=config) as recorder:
        train(recorder, 3)
        shown = [repr(recorder), repr(recorder.run)]
    with propkit.attach(train.model, url, probes="weight", config=config, resume=True) as recorder:
        train(recorder, 2)
    run = propkit.open(url)
    study = propkit.open_study([url, url.replace("run.zarr", "*.zarr")])
    assert run["log"].sizes["step"] == 5
    shown += [repr(run), run._repr_html_(), run.label, repr(study), study._repr_html_()]
    shown.append(str(study.coordinates.path.values.tolist()))
    assert print_info([url]) == []
    assert print_info([url], as_json=True) == []
    shown.append(capsys.readouterr().out)
    for attempt in (
        lambda: propkit.attach(train.model, url),
        lambda: propkit.open(url.replace("run.zarr", "none.zarr")),
        lambda: propkit.open_study(url.replace("run.zarr", "none*")),
        lambda: propkit.open(url.replace("@", "x@")),
        lambda: run.compact(),
    ):
        with pytest.raises((OSError, ValueError)) as error:
            attempt()
        shown += traceback.format_exception(error.value)
    s3.ask_for_keys(after=float("inf"))
    objects = s3.objects
    assert len(objects) > 10
    everything = b"".join(name.encode() + data for name, data in objects.items())
    for secret in secrets:
        assert secret.encode() not in everything
        assert not [text for text in shown if secret in text]
    assert (
        b"train.py -o s3://bucket/runs/run.zarr --api-token *** DB_PASSWORD=*** --aws-key ***"
        in everything
    )


def test_errors_of_other_packages_show_none(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "tokNOTTOBEFOUND")
    text = "GET https://me:pwdNOTTOBEFOUND@host/x?sig=sigNOTTOBEFOUND with tokNOTTOBEFOUND: gone\nsigNOTTOBEFOUND"
    for kind in (RuntimeError, ValueError, FileNotFoundError):
        with (
            pytest.raises(
                OSError, match=r"cannot be reached: GET https://host/x with \*\*\*: gone"
            ) as error,
            place.named("run"),
        ):
            raise kind(text)
        assert isinstance(error.value.__cause__, kind)
        assert "NOTTOBEFOUND" not in str(error.value) + str(error.value.__cause__)
        assert "NOTTOBEFOUND" not in "".join(traceback.format_exception(error.value))


def test_keys_in_urls_that_cannot_be_used():
    with pytest.raises(ValueError, match=r"gs://bucket/x: expected no more than s3://KEY") as error:
        propkit.open("gs://a:bsecretb@bucket/x")
    with pytest.raises(ValueError, match=r"s3://bucket/x: .* written as %2F") as other:
        propkit.open("s3://a:bsec/retb@bucket/x")
    assert "bsec" not in str(error.value) + str(other.value)


# --- servers that die -----------------------------------------------------------------------------


def test_a_server_that_dies_and_comes_back(s3, train, impatient, monkeypatch):
    """The training goes on, one warning is given, and nothing is missing in the end."""
    monkeypatch.setattr(patience, "PAUSE", 1)
    recorder = propkit.attach(train.model, URL, probes="error_moment")
    train(recorder, 4)
    recorder.flush()
    before = propkit.open(URL)["error_moment"].load()
    s3.stop()
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            begun = time.monotonic()
            train(recorder, 20)
            recorder._outbox.drain()
            train(recorder, 20)
            took = time.monotonic() - begun
            assert [w.category for w in said] == [PropkitWarning]
            assert "cannot be reached" in str(said[0].message)
            assert "kept in memory" in str(said[0].message)
            assert took < 10
            with pytest.raises(OSError, match="cannot be reached"):
                propkit.open(URL)
            assert recorder.steps == 44
    finally:
        s3.start()
    run = propkit.open(URL)
    assert run["error_moment"].load().identical(before)
    assert run.state == "running"
    recorder.detach()
    run = run.refresh()
    assert run.state == "complete"
    assert run["error_moment"].step.values.tolist() == list(range(44))
    assert run["log"].loss.notnull().all()


def test_a_server_that_dies_for_good(s3, train, impatient):
    recorder = propkit.attach(train.model, URL, probes="error_moment")
    train(recorder, 4)
    recorder.flush()
    s3.stop()
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            train(recorder, 10)
            recorder._outbox.drain()
            train(recorder, 1)
            recorder.detach()
        assert [str(w.message).partition("(")[0] for w in said][1:] == [
            "the run could not be closed "
        ]
    finally:
        s3.start()
    run = propkit.open(URL)
    assert (run.state, run["log"].sizes["step"]) == ("running", 4)


@pytest.mark.parametrize(("took", "gap"), [(3.0, 33.0), (0.5, 1.5)])
def test_a_flush_that_takes_long_to_fail_is_not_tried_all_the_time(monkeypatch, took, gap):
    """By a clock of our own, at a flush a second."""
    now, tries = 0.0, []

    class Down:
        def commit(self):
            nonlocal now
            tries.append(now)
            now += took
            raise OSError("down")

    monkeypatch.setattr(patience.time, "monotonic", lambda: now)
    writer = patience.PatientWriter(Down())
    for _ in range(100):
        writer.commit()
        assert writer.trouble is not None
        now += 1
    assert set(np.diff(tries)) == {gap}


def test_a_store_without_conditions_is_looked_at():
    """A look before each commit: somebody else's root is not overwritten."""
    first, second = Objects.at("memory://x.zarr"), Objects.at("memory://x.zarr")
    first.create_root(b"1")
    second.take_root()
    second.replace_root(b"2")
    with pytest.raises(FileNotFoundError, match="taken over"):
        first.check()
    second.check()

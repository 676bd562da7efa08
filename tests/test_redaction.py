"""Secrets are neither written nor shown, wherever they stand."""

import json
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import propkit
from propkit.recording.provenance import describe_run
from propkit.redaction import (
    redacted,
    redacted_command,
    redacted_settings,
    redacted_text,
    says_secret,
)
from propkit.store.attributes import ending
from propkit.testing import mlp

NAME = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8)
SECRET = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/=._-:", min_size=12).map("q".__add__)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/run.zarr", "s3://bucket/run.zarr"),
        ("s3://k:s@bucket/run.zarr", "s3://bucket/run.zarr"),
        ("s3://k@bucket/run.zarr?a=1&token=s", "s3://bucket/run.zarr"),
        ("ftp://u:p@ss@host:21/x", "ftp://host:21/x"),
        ("s3://k:se/cr/et@bucket/x", "s3://bucket/x"),
        ("https://host:80/x@2.zarr", "https://host:80/x@2.zarr"),
        ("s3://bucket/x@2.zarr", "s3://bucket/x@2.zarr"),
        ("memory://", "memory://"),
        ("abfss://container@account.dfs/x", "abfss://container@account.dfs/x"),
        ("abfss://u:p@account.dfs/x", "abfss://account.dfs/x"),
        ("simplecache::s3://k:s@bucket/x", "simplecache::s3://bucket/x"),
        ("zip://a.zip::https://u:pw@host/x", "zip://host/x"),
    ],
)
def test_urls(url, shown):
    assert redacted(url) == shown
    assert redacted(shown) == shown


@given(NAME, SECRET, NAME, NAME)
@example("u", "qsecretsecret/a:b", "bucket", "run")
def test_no_password_of_a_url_is_shown(user, secret, host, path):
    url = f"s3://{user}:{secret}@{host}/{path}"
    assert redacted(url) == f"s3://{host}/{path}"
    assert secret not in redacted_text(f'cannot open "{url}", nor {url}')
    assert redacted(f"https://{host}/{path}?sig={secret}&x=1") == f"https://{host}/{path}"


SECRETIVE = [
    "secret",
    "api-key",
    "api_key",
    "apikey",
    "token",
    "hf_token",
    "HF_TOKEN",
    "password",
    "db.passwd",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_ACCESS_KEY_ID",
    "secretAccessKey",
    "AWSSessionToken",
    "key",
    "credentials",
    "sas",
]
HARMLESS = [
    "lr",
    "tokens",
    "max-tokens",
    "tokenizer",
    "keys_shape",
    "monkeys",
    "seed",
    "path",
    "sass",
]


@given(name=st.sampled_from(SECRETIVE), secret=SECRET)
@settings(max_examples=200)
@example("sas", "q00000000000=")
def test_no_secret_of_a_command_line_is_shown(name, secret):
    for words in (
        [f"--{name}={secret}"],
        [f"--{name}", secret],
        [f"{name}={secret}"],
        ["--set", f"data.{name}={secret}"],
        ["--options", json.dumps({name: secret, "anon": False})],
        ["--options", f"anon=0,{name}={secret}"],
        [f"--url=https://host/x?{name}={secret}"],
    ):
        line = redacted_command(["train.py", *words, "--lr", "0.1"])
        assert secret not in line, line
        assert line.startswith("train.py ")
        assert line.endswith(" --lr 0.1")


@pytest.mark.parametrize("name", HARMLESS)
def test_all_else_of_a_command_line_stays(name):
    words = [
        "train.py",
        f"--{name}",
        "three",
        f"--{name}=three",
        f"{name}=three",
        "a b",
        "-o",
        "x@y",
    ]
    assert redacted_command(words) == " ".join(words)


def test_names_that_say_secret():
    assert [name for name in SECRETIVE + HARMLESS if says_secret(name)] == SECRETIVE


def test_a_flag_that_says_secret_hides_no_option():
    assert redacted_command(["x", "--no-password", "--lr", "3"]) == "x --no-password --lr 3"


def test_secrets_of_the_environment_are_found_anywhere(monkeypatch, tmp_path):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "tok12345")
    monkeypatch.setenv("OTHER_KEY", "tok12345-longer")
    monkeypatch.setenv("SHORT_KEY", "abc")
    monkeypatch.setenv("TLS_KEY", str(tmp_path))
    monkeypatch.setenv("PLAIN", "plainplain")
    text = f"abc tok12345-longer Xtok12345X plainplain {tmp_path}"
    assert redacted_text(text) == f"abc *** X***X plainplain {tmp_path}"
    assert redacted_command(["x", "tok12345"]) == "x ***"
    assert ending("failed", "bad tok12345 at ftp://a:b@h/x")["reason"] == "bad *** at ftp://h/x"


def test_settings():
    config = {
        "lr": 0.1,
        "pad_token": "<pad>",
        "attention": {"key": "linear"},
        "password": "p",
        "secret": 3,
        "nested": [{"api_key": "k", "n": None}, "s3://a:b@bucket/x"],
        "storage_options": {"key": "AK", "secret": "s", "token": "t", "anon": False},
        "credentials": {"user": "u", "list": ["a", 1]},
        3: "three",
    }
    assert redacted_settings(config) == {
        "lr": 0.1,
        "pad_token": "***",  # beside a password
        "attention": {"key": "linear"},
        "password": "***",
        "secret": 3,
        "nested": [{"api_key": "***", "n": None}, "s3://bucket/x"],
        "storage_options": {"key": "***", "secret": "***", "token": "***", "anon": False},
        "credentials": {"user": "***", "list": ["***", 1]},
        3: "three",
    }


def test_a_run_holds_none(monkeypatch):
    argv = ["train.py", "--api-key", "k1k1k1", "-o", "s3://AK:s1s1s1@bucket/run.zarr?x=q1q1q1"]
    monkeypatch.setattr(sys, "argv", argv)
    config = {"storage": {"secret": "c1c1c1"}, "out": "s3://AK:s1s1s1@b/x"}
    attributes = describe_run(mlp(), None, config, None)
    assert attributes["command"] == "train.py --api-key *** -o s3://bucket/run.zarr"
    assert attributes["config"] == {"storage": {"secret": "***"}, "out": "s3://b/x"}
    assert config["storage"]["secret"] == "c1c1c1"
    model = mlp()
    with propkit.attach(model, config=config, probes="weight") as recorder:
        pass
    run = recorder.run
    for text in (repr(run), run._repr_html_(), json.dumps(run.attributes)):
        assert not [secret for secret in ("k1k1k1", "s1s1s1", "q1q1q1", "c1c1c1") if secret in text]

"""A packaged S3 server (moto's) on loopback, with faults: refused puts, and a server that goes away and comes back."""

import logging
from urllib.parse import unquote
from urllib.request import Request, urlopen

import pytest

KEYS = {"AWS_ACCESS_KEY_ID": "AKIDNOTTOBEFOUND", "AWS_SECRET_ACCESS_KEY": "sesam/NOT+TO/BE/FOUND"}


class S3:
    """The server, and a bucket called ``bucket`` in it.

    Attributes:
        requests: Method and path of each request so far.
        failing: Whether to refuse to put an object, by its key; to be replaced.
    """

    def __init__(self):
        self.requests = []
        self.failing = lambda key: False
        self.port = 0
        self._server = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]
        self._server._server.app = self._watched(self._server._server.app)

    def stop(self):
        """Nobody answers from here on; what was put is there again after `start`."""
        self._server.stop()
        self._server._server.server_close()

    def _watched(self, app):
        def watched(environ, start_response):
            method, key = environ["REQUEST_METHOD"], unquote(environ["PATH_INFO"]).lstrip("/")
            self.requests.append((method, key))
            if method == "PUT" and self.failing(key):
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response("403 Forbidden", [("Content-Type", "application/xml")])
                return [
                    b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>No.</Message></Error>"
                ]
            return app(environ, start_response)

        return watched

    def ask(self, method, path, data=None):
        with urlopen(Request(self.url + path, data, method=method)) as answer:
            return answer.read()

    def reset(self):
        """As it was in the beginning, with an empty bucket."""
        self.failing = lambda key: False
        self.ask_for_keys(after=float("inf"))
        self.ask("POST", "/moto-api/reset")
        self.ask("PUT", "/bucket")
        self.requests.clear()

    def ask_for_keys(self, after=0):
        """Look at the keys of requests, and whether they are signed by them, after as many more."""
        from moto import settings
        from moto.core.authorization import ActionAuthenticatorMixin

        ActionAuthenticatorMixin.request_count = 0
        settings.INITIAL_NO_AUTH_ACTION_COUNT = after

    def client(self, service="s3"):
        """Another client than the one under test."""
        import boto3

        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="another",
            aws_secret_access_key="another",
        )

    @property
    def objects(self):
        """All that is in the bucket."""
        client = self.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket="bucket")
        keys = [o["Key"] for page in pages for o in page.get("Contents", ())]
        return {k: client.get_object(Bucket="bucket", Key=k)["Body"].read() for k in keys}

    def put(self, key, data):
        self.client().put_object(Bucket="bucket", Key=key, Body=data)


@pytest.fixture(scope="session")
def s3_server():
    pytest.importorskip("obstore")
    pytest.importorskip("moto.server")
    server = S3()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """The server with an empty bucket, known to the environment."""
    s3_server.reset()
    environment = {
        **KEYS,
        "AWS_ENDPOINT_URL": s3_server.url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return s3_server

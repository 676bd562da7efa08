"""A server on loopback that speaks as much of S3 as a run needs, in memory, with its conditions for puts."""

import hashlib
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def key(self):
        return unquote(urlsplit(self.path).path).lstrip("/")

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(("PUT", self.key))
        if self.server.failing(self.key):
            return self.answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        with self.server.lock:
            old = self.server.objects.get(self.key)
            wanted = self.headers.get("If-Match")
            if self.headers.get("If-None-Match") == "*" and old is not None:
                return self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            if wanted is not None and (old is None or wanted != tag(old)):
                return self.answer(412 if old else 404, b"<Error><Code>NoSuchKey</Code></Error>")
            self.server.objects[self.key] = body
        return self.answer(200, ETag=tag(body))

    def do_GET(self):
        query = parse_qs(urlsplit(self.path).query)
        self.server.requests.append((self.command, self.key))
        if "list-type" in query:
            return self.answer(200, self.listing(query), Content_Type="application/xml")
        body = self.server.objects.get(self.key)
        if body is None:
            return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        marks = {"ETag": tag(body), "Last_Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
        part = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if part is None:
            return self.answer(200, body, **marks)
        first, last = part.groups()
        start = int(first) if first else max(0, len(body) - int(last))
        stop = min(int(last) + 1, len(body)) if first and last else len(body)
        marks["Content_Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
        return self.answer(206, body[start:stop], **marks)

    do_HEAD = do_GET  # noqa: N815

    def do_DELETE(self):
        self.server.objects.pop(self.key, None)
        self.answer(204)

    def do_POST(self):
        """Delete several."""
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        keys = re.findall(r"<Key>(.*?)</Key>", body)
        for key in keys:
            self.server.objects.pop(f"{self.key.strip('/')}/{key}", None)
        gone = "".join(f"<Deleted><Key>{k}</Key></Deleted>" for k in keys)
        answer = f"<DeleteResult>{gone}</DeleteResult>".encode()
        self.answer(200, answer, Content_Type="application/xml")

    def listing(self, query):
        bucket = self.key.strip("/")
        prefix = query.get("prefix", [""])[0]
        found = sorted(k.removeprefix(f"{bucket}/") for k in self.server.objects)
        found = [k for k in found if k.startswith(prefix)]
        entries = "".join(
            f"<Contents><Key>{escape(k)}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>{tag(self.server.objects[f'{bucket}/{k}'])}</ETag>"
            f"<Size>{len(self.server.objects[f'{bucket}/{k}'])}</Size></Contents>"
            for k in found
        )
        return (
            f"<ListBucketResult><Name>{bucket}</Name><KeyCount>{len(found)}</KeyCount>"
            f"<IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        ).encode()


def tag(body):
    return f'"{hashlib.md5(body).hexdigest()}"'


@contextmanager
def s3_server():
    """The running server: its ``url``, its ``objects``, its ``requests``, and ``failing(key)`` to be replaced."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.objects, server.requests, server.lock = {}, [], threading.Lock()
    server.failing = lambda _: False
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

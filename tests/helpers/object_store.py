"""An S3-compatible server within the tests' process, and what is asked of it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from stores import objects
from stores.paths import as_path

LINE = re.compile(r'"(GET|PUT|HEAD|POST|DELETE) (\S+) HTTP/[\d.]+" (\d+)')


class _Requests(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.seen: list[tuple[str, str, int]] = []

    def emit(self, record: logging.LogRecord) -> None:
        found = LINE.search(re.sub(r"\x1b\[[\d;]*m", "", record.getMessage()))
        if found:
            self.seen.append((found[1], found[2], int(found[3])))


@dataclass
class Server:
    """``bucket()`` makes one; ``asked`` are the requests of a block."""

    environment: dict[str, str]
    client: Any
    handler: _Requests
    buckets: list[str] = field(default_factory=list)

    def bucket(self) -> str:
        """The URL of a new bucket."""
        self.buckets.append(f"bucket-{len(self.buckets)}")
        self.client.create_bucket(Bucket=self.buckets[-1])
        return f"s3://{self.buckets[-1]}"

    @contextmanager
    def asked(self) -> Iterator[list[tuple[str, str, int]]]:
        """The requests that arrive within the block: method, path, status."""
        begun: list[tuple[str, str, int]] = []
        start = len(self.handler.seen)
        yield begun
        begun += self.handler.seen[start:]


@contextmanager
def serving() -> Iterator[Server]:
    """The server, and the environment by which S3 clients of this process and its children find it."""
    log, handler = logging.getLogger("werkzeug"), _Requests()
    kept = log.level, log.propagate
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    environment = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:{1}".format(*server.get_host_and_port()),
    }
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            forget()
            yield Server(environment, boto3.client("s3"), handler)
    finally:
        forget()
        log.removeHandler(handler)
        log.setLevel(kept[0])
        log.propagate = kept[1]
        server.stop()


def forget() -> None:
    """Connect anew the next time, as the environment says then."""
    objects._systems.clear()


def remote_contents(url: str | Path) -> dict[str, bytes]:
    """Every object below a URL by its relative name."""
    root: Any = as_path(url)
    return {name: (root / name).read_bytes() for name in objects.sizes_below(root)}

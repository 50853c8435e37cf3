"""A real S3 API on loopback (moto's server, a process of its own), with credentials that open nothing else."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

KEY, SECRET = "AKIATESTTESTTESTTEST", "test/secret+that/must+never/be+seen"
LIMIT_S = 240.0


@dataclass(frozen=True)
class S3Server:
    """A running server with one bucket.

    Attributes:
        url: `storage.endpoint_url`.
        bucket: its name.
    """

    url: str
    bucket: str

    def path(self, *names: str) -> str:
        """URI of a key."""
        return "/".join([f"s3://{self.bucket}", *names])

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a process that may read and write there, and reaches no other S3."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """A boto3 client, which shares no code with what is tested."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )

    def put(self, key: str, data: bytes = b"x") -> None:
        """Write a key behind the back of what is tested."""
        self.client().put_object(Bucket=self.bucket, Key=key, Body=data)

    def get(self, key: str) -> bytes:
        """Read a key."""
        data: bytes = self.client().get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return data

    def list_keys(self, prefix: str = "") -> list[str]:
        """Every key below a prefix, sorted."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return sorted(one["Key"] for page in pages for one in page.get("Contents", []))


def free_port() -> int:
    """A port of loopback on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running_s3(bucket: str = "warehouse") -> Iterator[S3Server]:
    """Start a server with one empty bucket; it ends with the context."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(port, process)
        server = S3Server(f"http://127.0.0.1:{port}", bucket)
        server.client().create_bucket(Bucket=bucket)
        yield server
    finally:
        process.terminate()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while True:
        assert process.poll() is None, "moto's server did not start; pip install 'moto[server]'"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert time.monotonic() < deadline, "moto's server does not answer"
        time.sleep(0.05)

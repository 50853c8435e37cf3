"""S3 through s3fs: what it says when something is wrong in one line, and folders where there are none.

s3fs as pyarrow sees it has traps, each mended here: making a folder creates a missing bucket, deleting the
topmost folder deletes the bucket, deletions that the server refuses go unnoticed, listings are cached though
other processes write the same folders, files have no time, and markers of empty folders pass for files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import s3fs
from botocore import exceptions as boto
from fsspec.config import conf
from fsspec.core import has_magic
from pyarrow import PythonFile, fs

from beeray.errors import DataError, UnansweredError

PROTOCOLS = ("s3", "s3a")
READ_BLOCK_BYTES = 8 << 20
REQUESTS = {"connect_timeout": 5, "read_timeout": 8, "retries": {"mode": "standard", "total_max_attempts": 3}}
"""A server that refuses or cannot be reached is given up after seconds, a mute one in less than a minute."""
MARKERS = ("/", "_$folder$")
"""Endings of empty objects that stand for folders: the console's and Hadoop's."""
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.NoAuthTokenError,
    boto.TokenRetrievalError,
    boto.SSOError,
)
_NO_ANSWER = (boto.ConnectionError, boto.HTTPClientError, TimeoutError, ConnectionError)
_DENIED = {"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_CHANGED = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchKey", "404"}
_UNCONDITIONAL = {"NotImplemented", "501"}
_ELSEWHERE = {"PermanentRedirect", "301", "307", "TemporaryRedirect", "AuthorizationHeaderMalformed"}


class S3FileSystem(s3fs.S3FileSystem):
    """s3fs without a cache of listings, and with fewer retries on top of botocore's own."""

    retries = 2


def s3_filesystem() -> fs.PyFileSystem:
    """The S3 of fsspec's configuration (`storage_options`, `FSSPEC_S3_…`) as pyarrow reads it."""
    options: dict[str, Any] = {"use_listings_cache": False}
    if not any("config_kwargs" in conf.get(protocol, {}) for protocol in PROTOCOLS):
        options["config_kwargs"] = REQUESTS
    with s3_errors(""):
        return fs.PyFileSystem(S3Handler(S3FileSystem(**options)))


class S3Handler(fs.FSSpecHandler):
    """s3fs for pyarrow. Missing files raise FileNotFoundError, anything else that is wrong a DataError.

    Attributes:
        etags: of the files that this handler has told of, path → ETag: pyarrow's `FileInfo` has no place for it.
    """

    def __init__(self, filesystem: S3FileSystem) -> None:
        super().__init__(filesystem)
        self.etags: dict[str, str] = {}

    def get_type_name(self) -> str:
        """Name of the filesystem's type."""
        return "fsspec+s3"

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        """What stands at each path; a prefix of keys is a folder."""
        found = []
        for path in paths:
            try:
                with s3_errors(path):
                    found.append(self._file_info(path, self.fs.info(path)))
            except FileNotFoundError:
                found.append(fs.FileInfo(path, fs.FileType.NotFound))
        return found

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        """What stands below a folder."""
        base = selector.base_dir.strip("/")
        entries: list[dict[str, Any]] = []
        with contextlib.suppress(FileNotFoundError), s3_errors(base):
            if selector.recursive:
                entries = list(self.fs.find(base, withdirs=True, detail=True).values())
            else:
                entries = self.fs.ls(base, detail=True)
        below: dict[str, fs.FileInfo] = {}
        for entry in entries:
            path = entry["name"].rstrip("/")
            if path == base and entry["type"] == "file" and not entry["name"].endswith("/"):
                raise NotADirectoryError(base)
            if path.startswith(f"{base}/") and not path.endswith(MARKERS):
                below.setdefault(path, self._file_info(path, entry))
        if not entries and not selector.allow_not_found:
            raise FileNotFoundError(base)
        return list(below.values())

    def _file_info(self, path: str, entry: dict[str, Any]) -> fs.FileInfo:
        info = _file_info(path, entry)
        if info.type == fs.FileType.File:
            self.etags[path] = str(entry.get("ETag", "")).strip('"')
        return info

    def create_dir(self, path: str, recursive: bool) -> None:
        """Nothing: a folder is there as soon as something is in it."""

    def delete_dir(self, path: str) -> None:
        """Delete every key below a folder."""
        path = path.strip("/")
        if "/" not in path:
            raise DataError(f"s3://{path}: is a whole bucket, which is never removed; give a folder in it")
        with s3_errors(path):
            if has_magic(path):  # `rm` would take it for a pattern, and remove what is beside it
                for key in self.fs.find(path):
                    self.fs.rm_file(key)
            else:
                self.fs.rm(path, recursive=True)
            left = self.fs.find(path)
        if left:
            raise DataError(f"s3://{left[0]}: access denied: it cannot be deleted; {_RIGHTS}")

    def delete_file(self, path: str) -> None:
        """Delete a key."""
        with s3_errors(path):
            if self.fs.info(path)["type"] != "file":
                raise FileNotFoundError(path)
            self.fs.rm_file(path)

    def copy_file(self, src: str, dest: str) -> None:
        """Copy a key to another, inside S3."""
        with s3_errors(src):
            self.fs.cp_file(src, dest)

    def put_object(self, path: str, data: bytes) -> None:
        """Write a key in one request; more than 100 MB in several, of which readers see nothing before the last."""
        with s3_errors(path):
            self.fs.pipe_file(path, data)

    def read_tagged(self, path: str) -> tuple[bytes, str]:
        """What a key holds, and its ETag; read first, so where it is still the same, so is what was read."""
        with s3_errors(path):
            etag = str(self.fs.info(path).get("ETag", ""))
            return bytes(self.fs.cat_file(path)), etag

    def put_tagged(self, path: str, data: bytes, etag: str | None) -> None:
        """Write a key where it still has an ETag (None: where there is none), and leave it as it is elsewhere."""
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag} if etag else {}
        with s3_errors(path):
            try:
                self.fs.pipe_file(path, data, **condition)
            except OSError as error:
                if _code(error) in _UNCONDITIONAL:
                    self.fs.pipe_file(path, data)
                elif _code(error) not in _CHANGED:
                    raise

    def put_file(self, path: str, local: str) -> None:
        """Write a key from a local file, as `put_object` does."""
        with s3_errors(path):
            self.fs.put_file(local, path)

    def open_input_stream(self, path: str) -> PythonFile:
        """Open a key for reading."""
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> PythonFile:
        """Open a key for reading at any place."""
        with s3_errors(path):
            file = self.fs.open(path, "rb", block_size=READ_BLOCK_BYTES)
            if file.details["type"] != "file":
                raise FileNotFoundError(path)
            return PythonFile(_File(path, file), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> PythonFile:
        """Open a key for writing; it appears when it is closed."""
        with s3_errors(path):
            return PythonFile(_File(path, self.fs.open(path, "wb")), mode="w")


class _File:
    """An open key whose errors are told as the filesystem's are."""

    def __init__(self, path: str, file: Any) -> None:
        self._path, self._file = path, file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, *size: int) -> bytes:
        with s3_errors(self._path):
            data: bytes = self._file.read(*size)
            return data

    def write(self, data: Any) -> int:
        with s3_errors(self._path):
            number: int = self._file.write(data)
            return number

    def close(self) -> None:
        with s3_errors(self._path):
            self._file.close()


@contextlib.contextmanager
def s3_errors(path: str) -> Iterator[None]:
    """Tell what s3fs and botocore raise in one line; that a file is missing stays a FileNotFoundError.

    Args:
        path: bucket and key.

    Raises:
        DataError: access denied, no such bucket, no answer, no credentials …
    """
    try:
        yield
    except FileNotFoundError as error:
        if _code(error) == "NoSuchBucket" or (path and "/" not in path.strip("/")):
            raise DataError(f"s3://{path}: {_NO_BUCKET.format(path.partition('/')[0])}") from error
        raise
    except (OSError, boto.BotoCoreError, boto.ClientError) as error:
        told = _told(error)
        if told is None:
            raise
        kind = UnansweredError if isinstance(error, _NO_ANSWER) and told.startswith(_endpoint(error)) else DataError
        raise kind(f"s3://{path}: {told}") from error


_RIGHTS = (
    "check what the credentials in use (storage.profile, AWS_* variables, the node's role) may do there, "
    "s3:ListBucket included"
)
_NO_BUCKET = "no such bucket {!r}; check its name, storage.endpoint_url and the credentials in use"


def _told(error: Exception) -> str | None:
    code = _code(error)
    if isinstance(error, boto.ProfileNotFound):
        return f"{_one_line(error)}; check storage.profile and the AWS config files of this node"
    if isinstance(error, _NO_CREDENTIALS):
        return (
            f"no usable credentials ({type(error).__name__}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
            "storage.profile, give the node a role, or set storage.anonymous: true for a public bucket"
        )
    if code in _ELSEWHERE:
        return f"the bucket is in another region ({code}); set storage.region"
    if isinstance(error, PermissionError) or code in _DENIED:
        return f"access denied ({code or _one_line(error)}); {_RIGHTS}"
    if isinstance(error, _NO_ANSWER):
        return (
            f"{_endpoint(error)} does not answer ({type(error).__name__}); "
            "check storage.endpoint_url, storage.region and the network"
        )
    if code is not None or isinstance(error, boto.BotoCoreError):
        return f"the server refuses it ({code or type(error).__name__}: {_one_line(error)}); check the path"
    return None


def _code(error: BaseException) -> str | None:
    """The server's error code, behind an error that s3fs may have translated."""
    waiting: list[BaseException | None] = [error, error.__cause__, error.__context__]
    for one in waiting:
        if isinstance(one, boto.ClientError):
            return str(one.response.get("Error", {}).get("Code", "unknown"))
    return None


def _endpoint(error: Exception) -> str:
    url = urlsplit(str(getattr(error, "kwargs", {}).get("endpoint_url", "")))
    host = url.netloc.rpartition("@")[2]
    return f"{url.scheme}://{host}" if host else "the endpoint"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _file_info(path: str, entry: dict[str, Any]) -> fs.FileInfo:
    if entry["type"] == "directory" or entry["name"].endswith("/"):
        return fs.FileInfo(path, fs.FileType.Directory)
    when = entry.get("LastModified")
    # whole seconds: a HEAD knows no more, and a file must have one time however it was found
    mtime = float(int(when.timestamp())) if isinstance(when, datetime) else None
    return fs.FileInfo(path, fs.FileType.File, size=entry["size"], mtime=mtime)

"""Fetches public data sets in their original files: `python -m beeray.data.download goodbooks`.

What there is to fetch is data: `downloads.yaml` beside this file, or `--list`. A file is written beside its
final name, checked against the list (and the length that the server promised), and renamed when it is right,
so a file of the final name is always whole. Archives stay beside what was unpacked from them: their directory
is what tells, without the network, whether the unpacked files are still right.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import http.client
import sys
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from beeray import __version__
from beeray.config.paths import root
from beeray.console import EXIT_USER_ERROR, Console, Progress
from beeray.data.staging import staged_file
from beeray.errors import BeerayError, DataError

DOWNLOADS = Path(__file__).with_name("downloads.yaml")
RETRIES = 3
PAUSE_S = 1.0
TIMEOUT_S = 30.0
CHUNK_BYTES = 1 << 18
TRY_AGAIN = "try again, or pass a corrected --list if the publisher changed the file"
BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError)

Text = Annotated[str, Field(min_length=1)]


class RemoteFile(BaseModel):
    """One file to fetch, and what is known of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Text
    """Name in the folder."""
    url: Text
    size: int | None = Field(None, ge=0)
    """Bytes."""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    md5: str | None = Field(None, pattern="^[0-9a-f]{32}$")
    unpack: tuple[Text, ...] = ()
    """Members of a zip that are written into the folder, each under the last part of its name."""

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} must be an http or https address")
        return url

    @field_validator("name")
    @classmethod
    def _is_plain(cls, name: str) -> str:
        if name in (".", "..") or any(sign in name for sign in "/\\\0"):
            raise ValueError(f"{name!r} must be a plain file name, without folders")
        return name

    @field_validator("unpack")
    @classmethod
    def _stay_inside(cls, members: tuple[str, ...]) -> tuple[str, ...]:
        for member in members:
            if member.startswith("/") or member.endswith("/") or "\\" in member or {"..", "."} & set(member.split("/")):
                raise ValueError(f"{member!r} must be a relative path inside the zip, without '..'")
        return members

    @property
    def written(self) -> list[str]:
        """Names in the folder: its own, then those of what is unpacked."""
        return [self.name, *(PurePosixPath(member).name for member in self.unpack)]


class RemoteDataset(BaseModel):
    """A public data set: provenance and files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: Text
    licence: Text
    citation: Text
    files: tuple[RemoteFile, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> RemoteDataset:
        names = [name for file in self.files for name in file.written]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} would be written twice; give every file another name")
        return self


@dataclass(frozen=True)
class Content:
    """Length and checksums (hex digits) of a file."""

    num_bytes: int
    sha256: str
    md5: str
    crc32: int


class _BrokenConnection(Exception):
    """What another attempt may mend."""


def read_downloads(path: Path = DOWNLOADS) -> dict[str, RemoteDataset]:
    """The data sets of a list, by name.

    Raises:
        DataError: no such file, or it does not hold what a list holds.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        return TypeAdapter(dict[str, RemoteDataset]).validate_python(tree)
    except OSError as error:
        raise DataError(f"{path}: the list of downloads cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the list"
        raise DataError(f"{path}: {where}: {first['msg']}") from None


def download(name: str, folder: Path, downloads: Path = DOWNLOADS, console: Console | None = None) -> dict[str, Any]:
    """Bring the files of a data set into a folder; what is there and right is not fetched again.

    Args:
        name: of the data set, in the list.
        folder: made where it is missing.
        downloads: the list.
        console: for progress.

    Returns:
        dataset, folder, licence, citation, and files: name, bytes, sha256, and whether it was written now.

    Raises:
        DataError: unknown data set, unreachable address, or a file that is not what the list or the server
            said. Nothing half-written is left.
    """
    console = console or Console()
    known = read_downloads(downloads)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(f"data set {name!r} is not in {downloads.name}; {hint}there are: {', '.join(known)}")
    files: list[dict[str, Any]] = []
    with _made(folder):
        for file in known[name].files:
            files += _bring(file, folder, console)
    provenance = {"licence": known[name].licence, "citation": known[name].citation}
    return {"dataset": name, "folder": str(folder), **provenance, "files": files}


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder; on an error, remove what was made, if it is empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        if isinstance(error, OSError):
            where = error.filename or folder
            raise DataError(
                f"{where}: cannot be written ({error.strerror}); make room or choose another --to"
            ) from error
        raise


def _bring(file: RemoteFile, folder: Path, console: Console) -> list[dict[str, Any]]:
    target = folder / file.name
    content = _right_already(file, target, console)
    with ExitStack() as stack:  # at whose end all of them get their final names, if all are right
        archive, written = target, set[Path]()
        if content is None:
            archive = stack.enter_context(staged_file(target))
            written.add(target)
            content = _fetch(file, archive, console)
            if wrong := _difference(file, content):
                raise DataError(f"{file.name}: {wrong} ({file.url}); {TRY_AGAIN}")
            if file.sha256 is None and file.md5 is None:
                console.line(f"{file.name}: the list pins no checksum; to pin what came: sha256: {content.sha256}")
        contents = {target: content}
        for member in file.unpack:
            final = folder / PurePosixPath(member).name
            contents[final], is_new = _unpack(file, member, archive, final, stack)
            if is_new:
                written.add(final)
    return [
        {"name": path.name, "bytes": one.num_bytes, "sha256": one.sha256, "new": path in written}
        for path, one in contents.items()
    ]


def _right_already(file: RemoteFile, target: Path, console: Console) -> Content | None:
    if not target.is_file():
        return None
    content = _content_of(target)
    wrong = _difference(file, content)
    if wrong is None:
        return content
    console.line(f"{target} is there, but {wrong}: fetching it again")
    return None


def _difference(file: RemoteFile, content: Content) -> str | None:
    for kind, expected, got in (
        ("size", file.size, content.num_bytes),
        ("sha256", file.sha256, content.sha256),
        ("md5", file.md5, content.md5),
    ):
        if expected is not None and expected != got:
            return f"expected {kind} {expected}, got {got}"
    return None


def _fetch(file: RemoteFile, partial: Path, console: Console) -> Content:
    attempt = 0
    while True:
        try:
            return _fetch_once(file, partial, console)
        except _BrokenConnection as error:
            if attempt == RETRIES:
                raise DataError(
                    f"{file.name}: {error} ({file.url}, {RETRIES + 1} attempts); check the connection and try again"
                ) from error
            time.sleep(PAUSE_S * 2**attempt)
            attempt += 1


def _fetch_once(file: RemoteFile, partial: Path, console: Console) -> Content:
    with _response(file) as response:
        promised = response.length
        if file.size is not None and promised is not None and promised != file.size:
            raise DataError(
                f"{file.name}: expected size {file.size}, got {promised} from the server ({file.url}); {TRY_AGAIN}"
            )
        with open(partial, "wb") as sink, console.progress(file.name, promised or file.size, "B") as bar:
            content = _copy(_body(response, bar, file.size), sink)
    if promised is not None and content.num_bytes != promised:
        raise _BrokenConnection(f"expected {promised} bytes as the server promised, got {content.num_bytes}")
    return content


@contextmanager
def _response(file: RemoteFile) -> Iterator[http.client.HTTPResponse]:
    request = urllib.request.Request(file.url, headers={"User-Agent": f"beeray/{__version__}"})
    try:
        response = _http_only().open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        answer = f"the server answers {error.code} {_words(error.reason)}"
        if error.code >= 500:
            raise _BrokenConnection(answer) from error
        raise DataError(
            f"{file.name}: {answer} ({file.url}); if the file has moved, pass a corrected --list"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenConnection(f"cannot be reached, {_words(getattr(error, 'reason', error))}") from error
    with response:
        yield response


def _http_only() -> urllib.request.OpenerDirector:
    """An opener that follows redirects, but to http and https only."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _body(response: http.client.HTTPResponse, bar: Progress, limit: int | None) -> Iterator[bytes]:
    """What the server sends, and no more than one chunk beyond the size that is expected."""
    received = 0
    while limit is None or received <= limit:
        try:
            chunk = response.read(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenConnection(f"the connection broke, {_words(error)}") from error
        if not chunk:
            return
        received += len(chunk)
        bar.update_to(received)
        yield chunk


def _unpack(file: RemoteFile, member: str, archive: Path, final: Path, stack: ExitStack) -> tuple[Content, bool]:
    """Content of a member, and whether it was written now; it gets its final name at the end of `stack`."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            if member not in zipped.namelist():
                raise DataError(f"{file.name}: expected a member {member!r}, got {zipped.namelist()[:10]}; {TRY_AGAIN}")
            info = zipped.getinfo(member)
            if final.is_file() and final.stat().st_size == info.file_size:
                there = _content_of(final)
                if there.crc32 == info.CRC:
                    return there, False
            partial = stack.enter_context(staged_file(final))
            with zipped.open(info) as stream, open(partial, "wb") as sink:
                return _copy(_chunks(stream), sink), True
    except BROKEN_ZIP as error:
        raise DataError(f"{file.name}: no whole zip, {_words(error)} ({file.url}); remove it and try again") from error


def _content_of(path: Path) -> Content:
    with open(path, "rb") as stream:
        return _copy(_chunks(stream))


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK_BYTES):
        yield chunk


def _copy(chunks: Iterable[bytes], sink: IO[bytes] | None = None) -> Content:
    num_bytes, crc32, sha256, md5 = 0, 0, hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    for chunk in chunks:
        num_bytes += len(chunk)
        crc32 = zlib.crc32(chunk, crc32)
        sha256.update(chunk)
        md5.update(chunk)
        if sink is not None:
            sink.write(chunk)
    return Content(num_bytes, sha256.hexdigest(), md5.hexdigest(), crc32)


def _words(reason: object) -> str:
    return " ".join(str(reason).split()) or type(reason).__name__


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, download, print the result as one line of JSON; returns the exit code (2: the user can put it right)."""
    parser = argparse.ArgumentParser(prog="python -m beeray.data.download", description="Fetch a public data set.")
    parser.add_argument("dataset", help="goodbooks, movielens-small, movielens-20m, or another name in the list")
    parser.add_argument("--to", type=Path, help="folder for the files (default: data/<dataset>)")
    parser.add_argument("--list", type=Path, default=DOWNLOADS, help="YAML list (default: the packaged one)")
    arguments = parser.parse_args(argv)
    console = Console()
    try:
        folder = arguments.to or root() / "data" / arguments.dataset
        console.result(download(arguments.dataset, folder, arguments.list, console))
    except BeerayError as error:
        console.line(f"beeray.data.download: {error}")
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        console.line("beeray.data.download: interrupted; run the same command again")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m beeray.data.download` against a real HTTP server on loopback."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from two_writers import second_writer

from beeray.config import DataConfig
from beeray.data import download as download_module
from beeray.data.download import DOWNLOADS, download, main, read_downloads
from beeray.data.sources import open_source
from beeray.errors import DataError

BODY = b"user_id,book_id,rating\n1,258,5\n2,4081,4\n"
SHA256 = hashlib.sha256(BODY).hexdigest()
MD5 = hashlib.md5(BODY).hexdigest()


@dataclass
class Site:
    """What the server has, what is wrong with it, and what was asked for."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    status: dict[str, list[int]] = field(default_factory=dict)
    cut: dict[str, list[int]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    without_length: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)

    def url(self, name: str) -> str:
        return f"{self.address}/{name}"


def handler_of(site: Site) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            site.requests.append(name)
            if name in site.redirects:
                self.send_response(302)
                self.send_header("Location", site.redirects[name])
                self.end_headers()
                return
            status = site.status[name].pop(0) if site.status.get(name) else 200
            if name not in site.files or status != 200:
                self.send_error(404 if status == 200 else status)
                return
            body = site.files[name]
            self.send_response(200)
            if name not in site.without_length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: site.cut[name].pop(0)] if site.cut.get(name) else body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download_module, "PAUSE_S", 0.0)
    site = Site()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_of(site)) as server:
        site.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield site
        server.shutdown()
        thread.join()


def listing(folder: Path, *files: dict[str, Any], name: str = "books") -> Path:
    entry = {"description": "d", "licence": "l", "citation": "c", "files": list(files)}
    path = folder / "list.yaml"
    path.write_text(yaml.safe_dump({name: entry}))
    return path


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.run(
        [sys.executable, "-m", "beeray.data.download", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": root, "no_proxy": "*"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def zip_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)
    return buffer.getvalue()


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(site: Site, tmp_path: Path, **file: Any) -> str:
    """The one line of a download that fails, after checking that it leaves nothing behind."""
    entry = {"name": "ratings.csv", "url": site.url("ratings.csv")} | file
    with pytest.raises(DataError) as caught:
        download("books", tmp_path / "deep" / "books", listing(tmp_path, entry))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["list.yaml"]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_command_brings_the_file_to_the_default_folder_and_ends_in_one_line_of_json(
    site: Site, tmp_path: Path
) -> None:
    site.files["ratings.csv"] = BODY
    entry = {"name": "ratings.csv", "url": site.url("ratings.csv"), "size": len(BODY), "sha256": SHA256, "md5": MD5}
    result = run("books", "--list", listing(tmp_path, entry), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "data" / "books" / "ratings.csv").read_bytes() == BODY
    assert sorted(tree(tmp_path)) == ["data/books/ratings.csv", "list.yaml"]
    assert len(result.stdout.splitlines()) == 1
    record = json.loads(result.stdout)
    assert (record["dataset"], record["folder"], record["licence"]) == ("books", "data/books", "l")
    assert record["files"] == [{"name": "ratings.csv", "bytes": len(BODY), "sha256": SHA256, "new": True}]
    assert "ratings.csv" in result.stderr and SHA256 not in result.stderr


def test_an_unpinned_file_is_reported_with_the_checksum_to_pin(site: Site, tmp_path: Path) -> None:
    site.files["ratings.csv"] = BODY
    entry = {"name": "ratings.csv", "url": site.url("ratings.csv")}
    result = run("books", "--to", tmp_path / "here", "--list", listing(tmp_path, entry), cwd=tmp_path)
    assert result.returncode == 0
    assert f"sha256: {SHA256}" in result.stderr
    assert json.loads(result.stdout)["files"][0]["sha256"] == SHA256
    assert tree(tmp_path / "here") == {"ratings.csv": BODY}


def test_the_command_refuses_a_wrong_checksum_in_one_line_with_exit_code_2_and_leaves_nothing(
    site: Site, tmp_path: Path
) -> None:
    site.files["ratings.csv"] = BODY
    entry = {"name": "ratings.csv", "url": site.url("ratings.csv"), "sha256": "0" * 64}
    result = run("books", "--list", listing(tmp_path, entry), cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    last = result.stderr.splitlines()[-1]
    assert all(word in last for word in ("ratings.csv", f"expected sha256 {'0' * 64}", f"got {SHA256}", "try again"))
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["list.yaml"]


def test_a_wrong_md5_is_refused(site: Site, tmp_path: Path) -> None:
    site.files["ratings.csv"] = BODY
    assert f"expected md5 {'f' * 32}, got {MD5}" in refused(site, tmp_path, md5="f" * 32)


@pytest.mark.parametrize("expected", [len(BODY) - 1, len(BODY) + 1])
@pytest.mark.parametrize("states_length", [True, False])
def test_a_wrong_size_is_refused_whether_or_not_the_server_states_it(
    site: Site, tmp_path: Path, expected: int, states_length: bool
) -> None:
    site.files["ratings.csv"] = BODY
    if not states_length:
        site.without_length.add("ratings.csv")
    line = refused(site, tmp_path, size=expected)
    assert f"expected size {expected}, got {len(BODY)}" in line
    assert ("from the server" in line) == states_length  # then before a byte is fetched
    assert site.requests == ["ratings.csv"]


def test_an_endless_body_is_given_up_soon_after_the_expected_size(site: Site, tmp_path: Path) -> None:
    site.files["ratings.csv"] = bytes(50 * download_module.CHUNK_BYTES)
    site.without_length.add("ratings.csv")
    line = refused(site, tmp_path, size=10)
    assert int(line.partition("got ")[2].split()[0]) <= download_module.CHUNK_BYTES + 10


def test_a_body_shorter_than_promised_is_tried_four_times_and_refused(site: Site, tmp_path: Path) -> None:
    site.files["ratings.csv"] = BODY
    site.cut["ratings.csv"] = [10, 0, 10, 12]
    assert f"expected {len(BODY)} bytes as the server promised, got 12" in refused(site, tmp_path)
    assert len(site.requests) == 4


def test_a_connection_that_breaks_three_times_and_a_busy_server_are_tried_again(site: Site, tmp_path: Path) -> None:
    site.files["ratings.csv"] = BODY
    site.status["ratings.csv"] = [503, 200, 200]
    site.cut["ratings.csv"] = [10, 20]
    entry = {"name": "ratings.csv", "url": site.url("ratings.csv"), "sha256": SHA256}
    download("books", tmp_path / "books", listing(tmp_path, entry))
    assert tree(tmp_path / "books") == {"ratings.csv": BODY}
    assert len(site.requests) == 4


def test_a_missing_page_is_refused_at_once(site: Site, tmp_path: Path) -> None:
    line = refused(site, tmp_path)
    assert "404" in line and site.url("ratings.csv") in line and "--list" in line
    assert len(site.requests) == 1


def test_an_unreachable_host_is_one_line_and_exit_code_2(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/ratings.csv"
        path = listing(tmp_path, {"name": "ratings.csv", "url": url})
        code = main(["books", "--to", str(tmp_path / "books"), "--list", str(path)])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert url in err and "cannot be reached" in err and "check the connection" in err
    assert not (tmp_path / "books").exists()


def test_an_unknown_data_set_names_the_nearest_and_the_valid_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["goodboks", "--to", str(tmp_path / "x")]) == 2
    line = capsys.readouterr().err
    assert "did you mean 'goodbooks'?" in line
    assert all(name in line for name in ("goodbooks", "movielens-small", "movielens-20m"))
    assert not (tmp_path / "x").exists()


def test_a_second_call_fetches_nothing_and_a_damaged_file_is_fetched_again(site: Site, tmp_path: Path) -> None:
    site.files["ratings.csv"] = BODY
    path = listing(tmp_path, {"name": "ratings.csv", "url": site.url("ratings.csv"), "sha256": SHA256})
    first = download("books", tmp_path / "books", path)
    second = download("books", tmp_path / "books", path)
    assert len(site.requests) == 1
    assert [record["files"][0]["new"] for record in (first, second)] == [True, False]
    assert second["files"][0]["sha256"] == SHA256

    (tmp_path / "books" / "ratings.csv").write_bytes(BODY[:-3])
    download("books", tmp_path / "books", path)
    assert len(site.requests) == 2
    assert tree(tmp_path / "books") == {"ratings.csv": BODY}


def test_a_failing_download_keeps_what_the_folder_held(site: Site, tmp_path: Path) -> None:
    site.files["ratings.csv"] = b"something else"
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "ratings.csv").write_bytes(b"mine")
    (folder / "notes.txt").write_bytes(b"mine too")
    with pytest.raises(DataError, match="expected sha256"):
        path = listing(tmp_path, {"name": "ratings.csv", "url": site.url("ratings.csv"), "sha256": SHA256})
        download("books", folder, path)
    assert tree(folder) == {"ratings.csv": b"mine", "notes.txt": b"mine too"}


def test_zip_members_are_unpacked_by_their_last_name_and_repaired_without_the_network(
    site: Site, tmp_path: Path
) -> None:
    site.files["ml.zip"] = zip_of({"ml/ratings.csv": BODY, "ml/movies.csv": b"m", "ml/links.csv": b"unwanted"})
    members = ["ml/ratings.csv", "ml/movies.csv"]
    path = listing(tmp_path, {"name": "ml.zip", "url": site.url("ml.zip"), "unpack": members})
    record = download("books", tmp_path / "books", path)
    whole = {"ml.zip": site.files["ml.zip"], "ratings.csv": BODY, "movies.csv": b"m"}
    assert tree(tmp_path / "books") == whole
    assert [one["name"] for one in record["files"]] == ["ml.zip", "ratings.csv", "movies.csv"]
    assert record["files"][1] == {"name": "ratings.csv", "bytes": len(BODY), "sha256": SHA256, "new": True}

    (tmp_path / "books" / "ratings.csv").write_bytes(bytes(len(BODY)))
    (tmp_path / "books" / "movies.csv").unlink()
    record = download("books", tmp_path / "books", path)
    assert tree(tmp_path / "books") == whole
    assert [one["new"] for one in record["files"]] == [False, True, True]
    assert [one["new"] for one in download("books", tmp_path / "books", path)["files"]] == [False, False, False]
    assert len(site.requests) == 1


def test_only_listed_members_of_a_malicious_zip_are_written(site: Site, tmp_path: Path) -> None:
    bad = {"../evil.txt": b"evil", str(tmp_path / "evil.txt"): b"evil", "a/../../evil.txt": b"evil"}
    site.files["ml.zip"] = zip_of({**bad, "ml/ratings.csv": BODY})
    path = listing(tmp_path, {"name": "ml.zip", "url": site.url("ml.zip"), "unpack": ["ml/ratings.csv"]})
    download("books", tmp_path / "books", path)
    assert sorted(tree(tmp_path)) == ["books/ml.zip", "books/ratings.csv", "list.yaml"]


@pytest.mark.parametrize("member", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "a\\..\\evil.txt", "ml/.."])
def test_a_list_that_asks_for_a_member_outside_the_folder_is_refused_before_anything_is_fetched(
    site: Site, tmp_path: Path, member: str
) -> None:
    site.files["ml.zip"] = zip_of({member: b"evil"})
    assert "inside the zip" in refused(site, tmp_path, name="ml.zip", url=site.url("ml.zip"), unpack=[member])
    assert site.requests == []


def test_a_zip_without_a_listed_member_or_that_is_no_zip_or_damaged_leaves_nothing(site: Site, tmp_path: Path) -> None:
    whole = zip_of({"ml/movies.csv": b"m" * 50, "ml/ratings.csv": os.urandom(5000)})
    zipped = {"name": "ml.zip", "url": site.url("ml.zip"), "unpack": ["ml/movies.csv", "ml/ratings.csv"]}
    site.files["ml.zip"] = zip_of({"ml/movies.csv": b"m"})
    assert "expected a member 'ml/ratings.csv'" in refused(site, tmp_path, **zipped)
    site.files["ml.zip"] = b"<html>sorry</html>"
    assert "no whole zip" in refused(site, tmp_path, **zipped)
    site.files["ml.zip"] = whole[:2000] + bytes(100) + whole[2100:]
    assert "no whole zip" in refused(site, tmp_path, **zipped)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "/etc/hostname", "http:///x", "data:,x"])
def test_only_http_addresses_are_accepted(site: Site, tmp_path: Path, url: str) -> None:
    assert "http or https" in refused(site, tmp_path, url=url)


def test_a_redirect_is_followed_to_http_but_not_to_another_scheme(site: Site, tmp_path: Path) -> None:
    site.files["moved.csv"] = BODY
    site.redirects["ratings.csv"] = site.url("moved.csv")
    path = listing(tmp_path, {"name": "ratings.csv", "url": site.url("ratings.csv"), "sha256": SHA256})
    download("books", tmp_path / "books", path)
    assert tree(tmp_path / "books") == {"ratings.csv": BODY}
    (tmp_path / "books" / "ratings.csv").unlink()
    (tmp_path / "books").rmdir()
    secret = tmp_path.parent / "secret.txt"
    secret.write_text("secret")
    site.redirects["ratings.csv"] = secret.as_uri()
    assert "not allowed" in refused(site, tmp_path)
    site.redirects["ratings.csv"] = "ftp://127.0.0.1:1/x"
    assert "unknown url type: ftp" in refused(site, tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "../ratings.csv"}, "plain file name"),
        ({"sha256": "abc"}, "sha256"),
        ({"checksum": "abc"}, "checksum"),
        ({"unpack": ["a/x.csv", "b/x.csv"]}, "x.csv would be written twice"),
        ({"unpack": ["a/ratings.csv"]}, "ratings.csv would be written twice"),
        ({"url": None}, "url"),
    ],
)
def test_a_list_that_says_nonsense_is_refused(site: Site, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    line = refused(site, tmp_path, **change)
    assert words in line and "list.yaml" in line
    assert site.requests == []


def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.yaml: the list of downloads cannot be read"):
        read_downloads(tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("books: [")
    with pytest.raises(DataError, match="not valid YAML"):
        read_downloads(tmp_path / "bad.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(DataError, match=r"empty\.yaml: the list"):
        read_downloads(tmp_path / "empty.yaml")


def test_a_folder_that_cannot_be_made_is_one_line(site: Site, tmp_path: Path) -> None:
    site.files["ratings.csv"] = BODY
    (tmp_path / "file").write_text("in the way")
    path = listing(tmp_path, {"name": "ratings.csv", "url": site.url("ratings.csv")})
    with pytest.raises(DataError, match=r"cannot be written .*--to"):
        download("books", tmp_path / "file" / "books", path)
    assert site.requests == []


def test_the_packaged_list_parses_and_every_entry_says_where_it_comes_from_and_under_which_licence() -> None:
    known = read_downloads()
    assert {"goodbooks", "movielens-small", "movielens-20m"} <= set(known)
    for entry in known.values():
        assert entry.description and entry.licence and entry.citation
        assert all(file.url.startswith("https://") for file in entry.files)
    assert DOWNLOADS.parent == Path(download_module.__file__).parent


SAMPLES = {
    "ratings.csv": b"user_id,book_id,rating\n1,258,5\n",
    "ml/ratings.csv": b"userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n",
    "ml/movies.csv": b"movieId,title,genres\n31,Dangerous Minds (1995),Drama\n",
    "ml/tags.csv": b"userId,movieId,tag,timestamp\n15,31,teacher,1138537770\n",
    "ml/README.txt": b"terms",
}


@pytest.mark.parametrize(
    ("name", "source"),
    [("goodbooks", "goodbooks"), ("movielens-small", "movielens"), ("movielens-20m", "movielens")],
)
def test_what_the_packaged_list_brings_is_what_the_source_readers_open(
    site: Site, tmp_path: Path, name: str, source: str
) -> None:
    import pyarrow as pa
    import pyarrow.feather as feather

    texts = io.BytesIO()
    feather.write_feather(pa.table({"book_id": [258], "llama31_description": ["A novel."]}), texts)
    files = [file.model_dump(exclude={"size", "sha256", "md5"}) for file in read_downloads()[name].files]
    for file in files:
        site.files[file["name"]] = (
            zip_of({member: SAMPLES["ml/" + member.rpartition("/")[2]] for member in file["unpack"]})
            if file["unpack"]
            else SAMPLES.get(file["name"], texts.getvalue())
        )
        file |= {"url": site.url(file["name"]), "unpack": list(file["unpack"])}
    folder = tmp_path / name
    download(name, folder, listing(tmp_path, *files, name=name))
    tables = open_source(DataConfig.model_validate({"source": source, "path": str(folder)}))
    assert tables.interactions.check().names[:3] == ["user_id", "item_id", "value"]
    assert [row["item_id"] for f in tables.catalog.fragments() for b in f.read() for row in b.to_pylist()] in (
        [258],
        [31],
    )
    if source == "movielens":
        assert isinstance(tables.catalog.source, pa.Table)
        assert tables.catalog.source.column("tags").to_pylist() == ["teacher"]


@pytest.mark.parametrize("function", ["_fetch", "_unpack"])
def test_two_that_fetch_into_one_folder_at_once_leave_whole_files(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    site.files["ml.zip"] = zip_of({"ml/ratings.csv": BODY})
    path = listing(tmp_path, {"name": "ml.zip", "url": site.url("ml.zip"), "unpack": ["ml/ratings.csv"]})
    came = second_writer(monkeypatch, download_module, function, lambda: download("books", tmp_path / "books", path))
    download("books", tmp_path / "books", path)
    assert came and tree(tmp_path / "books") == {"ml.zip": site.files["ml.zip"], "ratings.csv": BODY}

"""Passwords in URIs: refused by the config and by paths in a line that does not show them; others are let through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from beeray.config import TrackingConfig, load_config, validate_config
from beeray.config.credentials import holds_password, redact_text, redact_uri
from beeray.data.storage import list_files, read_bytes, resolve
from beeray.data.table_files import format_of, unreadable
from beeray.errors import ConfigError, DataError

HELD = [
    ("postgresql://me:hunter2@host/db", "postgresql://***@host/db"),
    ("postgresql+psycopg2://me:hunter2@host:5432/db", "postgresql+psycopg2://***@host:5432/db"),
    ("postgresql://:hunter2@host/db", "postgresql://***@host/db"),
    ("postgresql://me:hunter2@hunter2@host/db", "postgresql://***@host/db"),
    ("postgresql://me:a/hunter2@host/db", "postgresql://***@host/db"),
    ("postgresql://me:12/hunter2@host/db", "postgresql://***@host/db"),
    ("mysql://me:a#b?hunter2@host/db", "mysql://***@host/db"),
    ("POSTGRESQL://me:hunter2@host/db", "POSTGRESQL://***@host/db"),
    ("postgresql://host/db?user=me&password=hunter2", "postgresql://host/db?***"),
    ("mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3Dhunter2", "mssql+pyodbc:///?***"),
    ("https://me:hunter2@host/x", "https://***@host/x"),
    ("https://hunter2@host/x", "https://***@host/x"),
    ("sftp://me:hunter2@host/x", "sftp://***@host/x"),
    ("ftp://me:hunter2@host:21/x", "ftp://***@host:21/x"),
    ("abfs://:hunter2@account/x", "abfs://***@account/x"),
    ("https://host/c/x.parquet?sv=2023&sig=hunter2%3D", "https://host/c/x.parquet?***"),
    ("https://bucket.host/x?X-Amz-Expires=9&X-Amz-Signature=hunter2", "https://bucket.host/x?***"),
    ("https://bucket.host/x?X-Amz-Security-Token=hunter2", "https://bucket.host/x?***"),
    ("https://host/x?AWSAccessKeyId=hunter2", "https://host/x?***"),
    ("abfs://c@account/x?client_secret=hunter2", "abfs://***@account/x?***"),
    ("abfs://c@account/x?AccountKey=hunter2", "abfs://***@account/x?***"),
    ("gs://bucket/x?access_token=hunter2", "gs://bucket/x?***"),
    ("gs://bucket/x?a=1&token=hunter2", "gs://bucket/x?***"),
    ("s3://bucket/x?secret_key=hunter2", "s3://bucket/x?***"),
    ("s3://bucket/x?Credential=hunter2", "s3://bucket/x?***"),
    ("https://host/x?api-key=hunter2", "https://host/x?***"),
    ("https://host/x?apikey=hunter2", "https://host/x?***"),
    ("https://host/x?access%5Ftoken=hunter2", "https://host/x?***"),
    ("https://host/x?db_password=hunter2", "https://host/x?***"),
    ("simplecache::sftp://me:hunter2@host/x", "simplecache::sftp://***@host/x"),
]
FREE = [
    "sqlite:////home/me@work/a:b/mlflow.db",
    "http://host:5000",
    "http://[::1]:5000/a@b",
    "postgresql://host:5432/db",
    "postgresql://me@host/db",
    "databricks://scope:prefix",
    "hdfs://me@namenode:8020/data/a@b:c",
    "hdfs://namenode:8020/data/a@b",
    "abfss://container@account.dfs.core.windows.net/x",
    "gs://anonymous@bucket/x",
    "/data/a:b@c",
    "query: what is a:b@c?",
    "https://host/x?sigma=2&tokenizer=minilm&design=1&keys=3",
    "https://host/x?assignature=1&secretary=2&monkey=3&passes=4",
    "gs://bucket/part-?/token=3/x.parquet",
    "gs://bucket/month=?/x.parquet",
]


@pytest.mark.parametrize(("uri", "shown"), HELD)
def test_a_password_is_found_and_hidden(uri: str, shown: str) -> None:
    assert holds_password(uri)
    assert redact_uri(uri) == shown


@pytest.mark.parametrize("uri", FREE)
def test_what_holds_no_password_is_let_through(uri: str) -> None:
    assert not holds_password(uri)
    assert redact_uri(uri).rpartition("@")[2] == uri.rpartition("@")[2]
    validate_config({"name": "x", "data": {"source": "shop"}, "tracking": {"uri": uri}, "embed": {"path": uri}})


def test_a_user_alone_is_not_shown_either() -> None:
    assert redact_uri("postgresql://me@host/db") == "postgresql://***@host/db"


def test_what_a_library_says_is_shown_without_the_secret_however_it_spells_it() -> None:
    uri = "postgresql://me:hunter%40two@host/db"
    said = f"cannot parse {uri}: me:hunter@two, password hunter@two; see https://other:token@host"
    shown = redact_text(said, uri)
    assert "hunter" not in shown and "token" not in shown
    assert shown == "cannot parse postgresql://***@host/db: ***, password ***; see https://***@host"


def test_what_a_library_says_is_shown_without_the_secrets_of_the_query() -> None:
    uri = "https://host/x?sv=2023&sig=hunter%2Btwo"
    said = f"{uri} cannot be reached: GET /x?sv=2023&sig=hunter%2Btwo (sig hunter+two, sv 2023)"
    assert redact_text(said, uri) == "https://host/x?*** cannot be reached: GET /x?sv=2023&sig=*** (sig ***, sv 2023)"


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"tracking": {"uri": "postgresql://me:hunter2@host/db"}}, "tracking.uri"),
        ({"tracking": {"uri": ["postgresql://me:hunter2@host/db"]}}, "tracking.uri"),
        ({"tracking": "postgresql://me:hunter2@host/db"}, "tracking"),
        ({"tracking": {"url": "postgresql://me:hunter2@host/db"}}, "tracking.url"),
        ({"embed": {"path": "sftp://me:hunter2@host/x"}}, "embed.path"),
        ({"data": {"source": "shop", "store": "ftp://me:hunter2@host/x"}}, "data.store"),
        ({"runs_dir": "sftp://me:hunter2@host/x"}, "runs_dir"),
        ({"cluster": {"num_workers": "ray://me:hunter2@host"}}, "cluster.num_workers"),
    ],
)
def test_a_config_refuses_a_password_in_a_line_that_names_the_key_and_no_value(
    section: dict[str, Any], key: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        validate_config({"name": "x", "data": {"source": "shop"}} | section)
    message = str(caught.value)
    assert message.startswith(f"config: {key} holds a user and a password or token, which a config must not; ")
    assert "hunter2" not in message and "\n" not in message
    assert ("set MLFLOW_TRACKING_URI in the environment in its place" in message) == (key == "tracking.uri")


def test_so_does_an_override_and_the_section_by_itself(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("data: {source: shop}\n")
    with pytest.raises(ConfigError, match=r"tracking\.uri holds a user") as caught:
        load_config(str(tmp_path / "c.yaml"), ["tracking.uri=postgresql://me:hunter2@host/db"])
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ValueError, match="set MLFLOW_TRACKING_URI"):
        TrackingConfig(uri="postgresql://me:hunter2@host/db")


@pytest.mark.parametrize("read", [resolve, read_bytes, list_files])
@pytest.mark.parametrize("scheme", ["sftp", "ftp", "https", "http", "hdfs", "gs", "abfs", "nonsense"])
def test_a_path_with_a_password_is_refused_in_a_line_that_does_not_show_it(read: Any, scheme: str) -> None:
    with pytest.raises(DataError) as caught:
        read(f"{scheme}://me:hunter2@host/folder/x.parquet")
    message = str(caught.value)
    assert message.startswith(f"{scheme}://***@host/folder/x.parquet: credentials do not stand in a path; ")
    assert "hunter2" not in message and "\n" not in message


@pytest.mark.parametrize("read", [resolve, read_bytes, list_files])
@pytest.mark.parametrize(
    "path",
    ["https://host/x.csv?sig=hunter2", "gs://b/x?access_token=hunter2", "s3://b/x?X-Amz-Signature=hunter2"],
)
def test_so_is_one_with_a_secret_in_its_query(read: Any, path: str) -> None:
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path.partition('?')[0]}?***: credentials do not stand in a path; ")
    assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["https://host/x.xlsx?sig=hunter2", "https://me:hunter2@host/x"])
def test_a_table_s_errors_do_not_show_it_either(source: str) -> None:
    with pytest.raises(DataError) as caught:
        format_of(source)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(DataError) as caught, unreadable(source, "repair it"):
        raise OSError(f"404: {source} not found")
    assert str(caught.value).startswith("https://") and "hunter2" not in str(caught.value)


def test_a_path_without_one_is_resolved_as_before() -> None:
    assert resolve("memory://a@b/c:d@e")[1].endswith("c:d@e")

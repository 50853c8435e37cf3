"""Stores and token stores that are damaged, mixed up or of another version: refused in one line, left alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process_ray import in_process_ray
from tokenizers import Tokenizer, models, pre_tokenizers

from beeray.config import validate_config
from beeray.data.preparation import ensure_store
from beeray.data.store import Store
from beeray.data.store_meta import SCHEMA_VERSION, StoreMeta
from beeray.data.tokens import TokenStore, ensure_tokens
from beeray.errors import DataError, OlderStoreError, StoreError

WORDS = {word: number for number, word in enumerate(["item", *(str(digit) for digit in range(10)), "?"])}


def silent(stage: str, done: int, total: int | None) -> None:
    """Report to nobody."""


@pytest.fixture(scope="module", autouse=True)
def without_ray() -> Iterator[None]:
    with in_process_ray():
        yield


class FastTokenizer:
    """What a token store asks of a Hugging Face tokenizer."""

    pad_token_id = 0

    def __init__(self) -> None:
        self.backend_tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="?"))
        self.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()


def prepared(folder: Path) -> Store:
    """The store of ten items and twelve users in a folder, prepared unless it is there."""
    pairs = [(user, (user + step) % 10) for user in range(12) for step in range(5)]
    if not (folder / "catalog.parquet").exists():
        catalog = pa.table({"item_id": range(10), "text": [f"item {item}" for item in range(10)]})
        pq.write_table(catalog, folder / "catalog.parquet")
        interactions = pa.table({"user_id": [user for user, _ in pairs], "item_id": [item for _, item in pairs]})
        pq.write_table(interactions, folder / "interactions.parquet")
    data = {
        "source": "tables",
        "catalog": {"path": str(folder / "catalog.parquet")},
        "interactions": {"path": str(folder / "interactions.parquet")},
        "store": str(folder / "stores" / "bad"),
        "num_buckets": 2,
    }
    return ensure_store(validate_config({"name": "bad", "data": data, "split": {"validation": 1, "test": 1}}), silent)[
        0
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tables, a store and a token store."""
    folder = tmp_path_factory.mktemp("whole")
    ensure_tokens(prepared(folder), FastTokenizer(), "", 16, silent)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it at one path (paths and times are part of a store's fingerprint), put back after the test."""
    kept = tmp_path / "kept"
    shutil.copytree(whole / "stores", kept)
    yield whole
    shutil.rmtree(whole / "stores")
    shutil.copytree(kept, whole / "stores")


def refused(folder: Path, *expected: str) -> str:
    """The store is refused in one line that holds all of these, and is not touched."""
    store = folder / "stores" / "bad"
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    with pytest.raises((StoreError, DataError)) as caught:
        ensure_tokens(prepared(folder), FastTokenizer(), "", 16, silent)
    said = str(caught.value)
    assert said.isprintable() and len(said) < 1200
    for piece in [str(store), *expected]:
        assert piece in said
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before
    return said


def part(folder: Path, kind: str) -> Path:
    return sorted((folder / "stores" / "bad" / kind).glob("*.parquet"))[0]


def test_the_whole_store_is_used_as_it_is(folder: Path) -> None:
    store = prepared(folder)
    tokens = TokenStore.open(ensure_tokens(store, FastTokenizer(), "", 16, silent))
    ids, lengths = tokens.gather(np.arange(10, dtype=np.int32), 16)
    texts = store.catalog(["text"])["text"].to_pylist()
    assert lengths.tolist() == [2] * 10
    assert ids.tolist() == [WORDS[word] for text in texts for word in text.split()]


# ---- parts


@pytest.mark.parametrize("kind", ["catalog", "users"])
@pytest.mark.parametrize("left", [0, 3, 12, 200, -100, -12, -8, -1])
def test_a_part_that_is_cut_off_is_named(folder: Path, kind: str, left: int) -> None:
    path = part(folder, kind)
    path.write_bytes(path.read_bytes()[:left])
    refused(folder, f"{kind}/{path.name}: cannot be read (", "delete the store and prepare again")


@pytest.mark.parametrize("kind", ["catalog", "users"])
def test_a_part_that_is_gone_or_there_twice_is_missed(folder: Path, kind: str) -> None:
    path = part(folder, kind)
    shutil.copy(path, path.with_name("part-99999.parquet"))
    refused(folder, "leakage check failed")
    path.with_name("part-99999.parquet").unlink()
    path.unlink()
    refused(folder, "prepare again" if any(path.parent.glob("*")) else "no such file")


@pytest.mark.parametrize("kind", ["catalog", "users"])
def test_a_folder_that_is_gone_is_named(folder: Path, kind: str) -> None:
    shutil.rmtree(folder / "stores" / "bad" / kind)
    refused(folder, f"{kind}: no such file, folder or match", "prepare again")


def columns_of(path: Path) -> dict[str, pa.ChunkedArray]:
    table = pq.read_table(path)
    return dict(zip(table.column_names, table.columns, strict=True))


@pytest.mark.parametrize("kind", ["catalog", "users"])
@pytest.mark.parametrize("change", ["missing", "text", "null", "foreign"])
def test_a_part_with_other_columns_is_no_part(folder: Path, kind: str, change: str) -> None:
    path = part(folder, kind)
    for name in columns_of(path):
        columns = columns_of(path)
        original = path.read_bytes()
        if change == "missing":
            del columns[name]
        elif change == "text":
            columns[name] = pa.chunked_array([pa.array([["?"]] * len(columns[name]))])
        elif change == "null":
            columns[name] = pa.chunked_array([pa.nulls(len(columns[name]), columns[name].type)])
        else:
            columns = {"name": pa.chunked_array([["x"]])}
        pq.write_table(pa.table(columns), path)
        if (change, name) == ("null", "timestamps"):  # so it is where there are none
            path.write_bytes(original)
            continue
        refused(folder, "prepare again")
        path.write_bytes(original)


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_parts_with_bytes_turned_over_are_refused_in_one_line_or_read(whole: Path, data: st.DataObject) -> None:
    path = part(whole, data.draw(st.sampled_from(["catalog", "users"])))
    original = path.read_bytes()
    changed = bytearray(original)
    for place in data.draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=4)):
        changed[int(place * len(changed))] ^= data.draw(st.integers(1, 255))
    try:
        path.write_bytes(changed)
        prepared(whole)
    except StoreError as error:
        assert str(error).isprintable() and str(whole / "stores" / "bad") in str(error)
    finally:
        path.write_bytes(original)


# ---- meta.json


def meta_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    path = folder / "stores" / "bad" / "meta.json"
    return path, json.loads(path.read_text())


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 10**30, 0, -1, str(SCHEMA_VERSION + 1)])
def test_a_store_of_another_version_is_refused_with_both_versions(folder: Path, version: Any) -> None:
    path, meta = meta_of(folder)
    path.write_text(json.dumps(meta | {"schema_version": version}))
    remedy = "update beeray" if int(version) > SCHEMA_VERSION else "prepare again"
    refused(folder, f"schema_version is {version}, this beeray reads {SCHEMA_VERSION}; ", remedy)


def test_a_store_of_an_older_version_is_prepared_anew(folder: Path) -> None:
    path, meta = meta_of(folder)
    path.write_text(json.dumps(meta | {"schema_version": SCHEMA_VERSION - 1}))
    with pytest.raises(OlderStoreError, match="delete the store and prepare again"):
        Store.open(str(folder / "stores" / "bad"))
    assert prepared(folder).meta.schema_version == SCHEMA_VERSION
    assert json.loads(path.read_text()) == meta


WRONG = [None, "x", -1, [], {}, [1], {"a": "b"}, 1.5, [[]]]


@pytest.mark.parametrize("key", [one.name for one in dataclasses.fields(StoreMeta)])
def test_a_meta_whose_values_are_of_another_kind_is_damaged(folder: Path, key: str) -> None:
    path, meta = meta_of(folder)
    fine = {
        "fingerprint": ["x"],
        "dropped": [{}],
        "held_out_twins": [{}],
        "time_boundaries": [None],
        "by_domain": [[]],
        "schema_version": [1.5],
    }
    for wrong in WRONG:
        if wrong in fine.get(key, []):
            continue
        path.write_text(json.dumps(meta | {key: wrong}))
        refused(folder, "prepare again")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        '"text"',
        "\x00",
        f'{{"schema_version": {SCHEMA_VERSION}}}',
        "[" * 5000,
        '{"schema_version": NaN}',
    ],
)
def test_a_meta_that_is_no_meta_is_damaged(folder: Path, text: str) -> None:
    path, _ = meta_of(folder)
    path.write_text(text)
    refused(folder, "meta.json is damaged", "delete the store and prepare again")


def domain(meta: dict[str, Any], **changed: Any) -> dict[str, Any]:
    counts = ("num_items", "num_users", "num_interactions", "items", "users", "interactions", "training_users")
    counts += ("training_users_of_parts",)
    return {"name": "items", "first_item": 0, "first_user": 0, **{key: meta[key] for key in counts}, **changed}


@pytest.mark.parametrize(
    "changed",
    [{"name": "../other"}, {"first_item": 3}, {"first_user": -1}, {"num_items": 4}, {"num_users": None}, {"items": 3}],
)
def test_domains_that_do_not_fit_the_whole_are_damage(folder: Path, changed: dict[str, Any]) -> None:
    path, meta = meta_of(folder)
    path.write_text(json.dumps(meta | {"by_domain": [domain(meta)]}))
    Store.open(str(folder / "stores" / "bad"))
    path.write_text(json.dumps(meta | {"by_domain": [domain(meta, **changed)]}))
    refused(folder, "meta.json is damaged")


# ---- token stores


def tokens_of(folder: Path) -> Path:
    return next((folder / "stores" / "bad" / "tokens").iterdir())


def in_meta(**changed: Any) -> Callable[[Path], None]:
    def change(tokens: Path) -> None:
        record = json.loads((tokens / "meta.json").read_text())
        (tokens / "meta.json").write_text(json.dumps({**record, **changed}))

    return change


def offsets(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda tokens: np.save(tokens / "offsets.npy", change(np.load(tokens / "offsets.npy")))


def pickled_offsets(tokens: Path) -> None:
    np.save(tokens / "offsets.npy", np.array([print, 1, 2], dtype=object), allow_pickle=True)


def ids(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda tokens: (tokens / "ids.bin").write_bytes(change((tokens / "ids.bin").read_bytes())) and None


def falling(array: Any) -> Any:
    array[2], array[3] = array[3], array[2]
    return array


TOKEN_DAMAGES: dict[str, Callable[[Path], None]] = {
    "meta empty": lambda tokens: (tokens / "meta.json").write_text("") and None,
    "meta a list": lambda tokens: (tokens / "meta.json").write_text("[]") and None,
    "meta of another": lambda tokens: (tokens / "meta.json").write_text('{"schema_version": 2}') and None,
    "dtype an object": in_meta(dtype="O"),
    "dtype no type": in_meta(dtype="x"),
    "dtype wider": in_meta(dtype="int32"),
    "prefix of text": in_meta(prefix_ids=["[CLS]"]),
    "limit null": in_meta(limit=None),
    "pad below zero": in_meta(pad_token_id=-1),
    "offsets empty": lambda tokens: (tokens / "offsets.npy").write_bytes(b""),
    "offsets cut": lambda tokens: (tokens / "offsets.npy").write_bytes((tokens / "offsets.npy").read_bytes()[:-8]),
    "offsets without a header": lambda tokens: (tokens / "offsets.npy").write_bytes(b"\x93NUMPY\x01\x00"),
    "offsets a pickle": pickled_offsets,
    "offsets gone": lambda tokens: (tokens / "offsets.npy").unlink(),
    "offsets of floats": offsets(lambda array: array.astype(float)),
    "offsets in two dimensions": offsets(lambda array: array.reshape(1, -1)),
    "no offsets": offsets(lambda array: array[:0]),
    "offsets not from zero": offsets(lambda array: array + 1),
    "offsets that fall": offsets(falling),
    "offsets of fewer items": offsets(lambda array: array[[0, -1]]),
    "ids cut": ids(lambda content: content[:-2]),
    "ids of half a number": ids(lambda content: content[:-1]),
    "ids empty": ids(lambda content: b""),
    "ids twice": ids(lambda content: content * 2),
    "ids of no token": ids(lambda content: b"\xff\xff" + content[2:]),
    "ids gone": lambda tokens: (tokens / "ids.bin").unlink(),
}


@pytest.mark.parametrize("damage", TOKEN_DAMAGES.values(), ids=TOKEN_DAMAGES)
def test_a_damaged_token_store_is_named_with_the_remedy(folder: Path, damage: Callable[[Path], Any]) -> None:
    damage(tokens_of(folder))
    refused(folder, f"token store {tokens_of(folder)}: is damaged (", "delete that folder")

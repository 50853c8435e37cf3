"""What a verb needs before its own work: the prepared store, the encoder's tokenizer, the token store.

Preparing imports Ray Data, which takes a second, so whoever only locates an encoder does without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from beeray.config import Config
from beeray.config.paths import found
from beeray.console import Console, StageReporter
from beeray.data.store import Store

UNKNOWN_SHARE = 0.05
"""Of the interactions; more of unknown items is worth a look."""

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def prepared_store(config: Config, console: Console) -> tuple[Store, bool]:
    """The store of a config and whether it was made now, with progress. Ray must be running."""
    from beeray.data.preparation import ensure_store

    with StageReporter(console) as reporter:
        store, prepared = ensure_store(config, reporter)
    meta = store.meta
    state = "prepared" if prepared else "up to date"
    console.line(
        f"store {state}: {meta.num_users:,} users, {meta.num_items:,} items, {meta.num_interactions:,} interactions; "
        f"{meta.split_kind} split, items {_counts(meta.items)}, interactions {_counts(meta.interactions)}"
    )
    for one in store.domains if len(store.domains) > 1 else ():
        console.line(
            f"  {one.name}: {one.num_users:,} users, {one.num_items:,} items, {one.num_interactions:,} interactions; "
            f"items {_counts(one.items)}"
        )
    if prepared:
        _tell_dropped(meta.dropped, meta.num_interactions, console)
        if any(meta.held_out_twins.values()):
            console.line(_said_of_twins(meta.held_out_twins))
    return store, prepared


def _tell_dropped(dropped: dict[str, int], kept: int, console: Console) -> None:
    """What the rules removed, by rule, and whether that looks like ids that do not fit."""
    shown = ", ".join(f"{number:,} {rule.replace('_', ' ')}" for rule, number in dropped.items() if number)
    if shown:
        console.line(f"dropped: {shown}")
    unknown = dropped.get("interactions_of_unknown_items", 0)
    if unknown > UNKNOWN_SHARE * (unknown + kept):
        console.line(
            f"warning: {unknown:,} interactions are of items that the catalog does not have; are its ids written alike "
            "(leading zeros, blanks, accents, numbers as text)?"
        )


def open_encoder(config: Config, name: str | None = None, max_seq_length: int | None = None) -> SentenceTransformer:
    """An encoder on the driver, as the config wants it; raises EncoderError here and not on every worker.

    Args:
        name: of another than the config's.
        max_seq_length: the longest that the config ever needs unless given.
    """
    from beeray.core.encoder import load_encoder

    encoder = config.encoder
    name = name or encoder.name
    return load_encoder(
        located_encoder(name),
        max_seq_length=max_seq_length or config.longest_seq_length,
        prefix=encoder.prefix,
        attention=encoder.attention,
        trust_remote_code=encoder.trust_remote_code,
        revision=encoder.revision_of(name),
    )


def open_tokenizer(config: Config) -> Any:
    """The tokenizer of the config's encoder; errors as `open_encoder`."""
    return open_encoder(config).tokenizer


def located_encoder(name: str) -> str:
    """An encoder's name as any worker understands it: a folder as an absolute path, anything else as it is."""
    folder = found(name)
    return str(folder) if folder.is_dir() else name


def token_store(config: Config, store: Store, tokenizer: Any, console: Console) -> str:
    """Path of the token store that training and evaluation read, made if it is not there. Ray must be running."""
    from beeray.data.tokens import ensure_tokens

    with StageReporter(console) as reporter:
        return ensure_tokens(store, tokenizer, config.encoder.prefix, config.longest_seq_length, reporter)


def _said_of_twins(twins: dict[str, int]) -> str:
    """Of held-out items with the text of a training item, by split."""
    return (
        f"warning: items are held out as new whose text is exactly that of a training item ({_counts(twins)}), which "
        "flatters figures: give variants of one product one item_id, or their texts (data.catalog.template) what tells "
        "them apart"
    )


def _counts(labels: dict[str, int]) -> str:
    return " / ".join(f"{number:,} {name}" for name, number in labels.items())

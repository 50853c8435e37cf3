"""Which of a store's token stores an encoder's files gave before, so that another command need not open the encoder.

    store/known_tokens/<key>.json

The key is the caller's: a digest of all that decides what opening the encoder gives. Kept in the store, since a store
that is prepared anew has no tokens.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter

from beeray.data.storage import join, read_json, write_json
from beeray.data.store import Store
from beeray.data.tokens import tokens_are_there, tokens_folder
from beeray.errors import BeerayError


@dataclass(frozen=True)
class KnownTokens:
    """What opening an encoder came to.

    Attributes:
        tokens: name of the token store's folder.
        vocabulary: one more than the largest id of the tokenizer.
        fingerprint: of the encoder, where that was asked for.
    """

    tokens: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    vocabulary: Annotated[int, Field(ge=0)]
    fingerprint: str | None = None

    def path_in(self, store: Store) -> str | None:
        """Path of the token store; None where it is no longer there.

        Raises:
            StoreError: it is damaged.
        """
        there = tokens_are_there(store, self.tokens, self.vocabulary)
        return tokens_folder(store, self.tokens) if there else None


def recall_tokens(store_path: str, key: str) -> KnownTokens | None:
    """What was kept under a key; None where nothing was, or nothing that can be read."""
    try:
        return TypeAdapter(KnownTokens).validate_python(read_json(_place(store_path, key)))
    except (BeerayError, OSError, ValueError, RecursionError):
        return None


def remember_tokens(store_path: str, key: str, known: KnownTokens) -> None:
    """Keep it; a store that cannot be written to is none the worse for it."""
    try:
        write_json(_place(store_path, key), asdict(known))
    except (BeerayError, OSError):
        return


def _place(store_path: str, key: str) -> str:
    return join(store_path, "known_tokens", f"{key}.json")

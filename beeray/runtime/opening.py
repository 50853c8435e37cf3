"""Opening the encoder that a command begins with, on the driver; or knowing from an earlier command what that came
to.

Opening takes torch and sentence-transformers, seconds to import and half a gigabyte, all for a tokenizer and to tell
early what is wrong. Where the same files gave a store its tokens before, under the same settings and libraries, that
is known, and only workers open the encoder. Whether files are the same is told by their names, sizes and times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

from beeray.config import Config
from beeray.config.tree import config_digest
from beeray.console import Console
from beeray.core.encoder_files import encoder_source
from beeray.data.known_tokens import KnownTokens, recall_tokens, remember_tokens
from beeray.data.store import Store
from beeray.data.tokens import vocabulary_size
from beeray.errors import EncoderError
from beeray.inputs import located_encoder, open_tokenizer, token_store

LIBRARIES = ("beeray", "torch", "transformers", "tokenizers", "sentence-transformers", "peft")
Opened = tuple[Any, str | None]
"""An encoder's tokenizer; and its fingerprint, where that was asked for."""


class Opening:
    """An encoder's tokens in a store, and its fingerprint; it is opened in a thread, at once, unless all is known.

    Args:
        config: with that encoder in its place.
        open_it: opens and checks it; only the tokenizer unless given.
        settings: what else decides whether it is in order, and what is asked of it.
    """

    def __init__(
        self,
        config: Config,
        open_it: Callable[[], Opened] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._config = config
        self._open_it = open_it or (lambda: (open_tokenizer(config), None))
        self._key = _key(config, settings or {})
        self._known = None if self._key is None else recall_tokens(config.store_path, self._key)
        self._opened: Future[Opened] | None = None if self._known is not None else self._begin()

    def check(self) -> None:
        """Wait until it is open, where it is being opened; raises what is wrong with it."""
        if self._opened is not None:
            self._opened.result()

    def tokens_path(self, store: Store, console: Console) -> str:
        """Path of the store's tokens, made if they are not there. Ray must be running."""
        path = None if self._known is None else self._known.path_in(store)
        if path is not None:
            return path
        tokenizer, fingerprint = self._result()  # also where a store was prepared anew, or its tokens were deleted
        path = token_store(self._config, store, tokenizer, console)
        if self._key is not None:
            name = path.rpartition("/")[2]
            remember_tokens(store.path, self._key, KnownTokens(name, vocabulary_size(tokenizer), fingerprint))
        return path

    def fingerprint(self) -> str | None:
        """Of the encoder, where `open_it` gives one."""
        return self._result()[1] if self._known is None else self._known.fingerprint

    def _begin(self) -> Future[Opened]:
        return ThreadPoolExecutor(1).submit(self._open_it)

    def _result(self) -> Opened:
        if self._opened is None:
            self._opened = self._begin()
        return self._opened.result()


def _key(config: Config, settings: Mapping[str, Any]) -> str | None:
    """Digest of all that decides what opening the encoder comes to; None where its files are not told from others.

    That is so on the hub, whose names are not tied to a content, and where an encoder brings code of its own.
    """
    try:
        folder = Path(encoder_source(located_encoder(config.encoder.name)))
    except EncoderError:
        return None
    if config.encoder.trust_remote_code or not folder.is_dir():
        return None
    return config_digest(
        {
            "files": _files(folder),
            "encoder": config.encoder.model_dump(mode="json"),
            "longest_seq_length": config.longest_seq_length,
            "libraries": {name: _version(name) for name in LIBRARIES},
            **settings,
        }
    )


def _files(folder: Path) -> list[Any]:
    found = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [str(folder.resolve()), *([str(path.relative_to(folder)), at.st_size, at.st_mtime_ns] for path, at in found)]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

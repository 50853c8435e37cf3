"""An encoder is opened on the driver once for a store, and again when anything that decides about it is another."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from beeray.config import Config
from beeray.console import Console
from beeray.data.known_tokens import KnownTokens, recall_tokens, remember_tokens
from beeray.data.store import Store, StoreMeta
from beeray.errors import EncoderError
from beeray.runtime import opening
from beeray.runtime.opening import Opening

NAME = "0123456789abcdef"
TOKENIZER = SimpleNamespace(get_vocab=lambda with_added_tokens: {"a": 0, "b": 7})


@pytest.fixture
def config(tmp_path: Path) -> Config:
    folder = tmp_path / "encoder"
    folder.mkdir()
    for name in ("modules.json", "model.safetensors"):
        (folder / name).write_text(name)
    return Config.model_validate(
        {"name": "one", "data": {"source": "shop", "store": str(tmp_path / "store")}, "encoder": {"name": str(folder)}}
    )


@pytest.fixture
def store(config: Config) -> Store:
    return Store(config.store_path, StoreMeta("f" * 16, "item", ["items"], 0, 0, 0, {}, {}, {}, {}))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, store: Store) -> list[str]:
    """A token store that is whole as soon as it was asked for; the list grows by an entry a time that it was made."""
    made: list[str] = []

    def token_store(config: Config, store: Store, tokenizer: Any, console: Console) -> str:
        made.append(NAME)
        folder = Path(store.path) / "tokens" / NAME
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "meta.json").write_text("{}")
        return str(folder)

    monkeypatch.setattr(opening, "token_store", token_store)
    monkeypatch.setattr("beeray.data.tokens.TokenStore", SimpleNamespace(open=lambda path: Sound()))
    return made


class Sound:
    def check(self, num_items: int, vocabulary: int) -> None:
        assert (num_items, vocabulary) == (0, 8)


def times_opened(config: Config, store: Store, settings: dict[str, Any] | None = None, found: str = "abc") -> int:
    """Ask for tokens and fingerprint as a command does; how often the encoder was opened for that."""
    asked: list[None] = []

    def open_it() -> tuple[Any, str | None]:
        asked.append(None)
        return TOKENIZER, found

    one = Opening(config, open_it, settings)
    one.check()
    assert one.tokens_path(store, Console()) == str(Path(store.path) / "tokens" / NAME)
    assert one.fingerprint() == "abc"
    return len(asked)


def test_a_second_command_does_not_open_it(config: Config, store: Store, opened: list[str]) -> None:
    assert times_opened(config, store) == 1
    assert times_opened(config, store, found="never asked") == 0
    assert len(opened) == 1


@pytest.mark.parametrize("change", ["time", "size", "new file", "prefix", "length", "settings"])
def test_it_is_opened_again_when_anything_about_it_is_another(
    config: Config, store: Store, opened: list[str], change: str
) -> None:
    settings = {"head": None}
    times_opened(config, store, settings)
    weights = Path(config.encoder.name) / "model.safetensors"
    at = weights.stat().st_mtime_ns
    if change == "time":
        os.utime(weights, ns=(at, at + 1_000_000))
    elif change == "size":
        weights.write_text("more than it was")
        os.utime(weights, ns=(at, at))
    elif change == "new file":
        (weights.parent / "2_Dense").mkdir()
        (weights.parent / "2_Dense" / "config.json").write_text("{}")
    elif change == "prefix":
        config = config.model_copy(update={"encoder": config.encoder.model_copy(update={"prefix": "item: "})})
    elif change == "length":
        config = config.model_copy(update={"encoder": config.encoder.model_copy(update={"max_seq_length": 31})})
    else:
        settings = {"head": {"units": 3}}
    assert times_opened(config, store, settings) == 1


def test_it_is_opened_again_when_its_tokens_are_gone(config: Config, store: Store, opened: list[str]) -> None:
    times_opened(config, store)
    (Path(store.path) / "tokens" / NAME / "meta.json").unlink()
    assert times_opened(config, store) == 1
    assert len(opened) == 2
    assert times_opened(config, store) == 0


def test_a_name_on_the_hub_is_always_opened(config: Config, store: Store, opened: list[str]) -> None:
    config = config.model_copy(update={"encoder": config.encoder.model_copy(update={"name": "someone/some-encoder"})})
    assert [times_opened(config, store) for _ in range(2)] == [1, 1]


def test_what_is_wrong_is_told_when_asked_and_nothing_is_kept(config: Config, store: Store, opened: list[str]) -> None:
    def open_it() -> tuple[Any, str | None]:
        time.sleep(0.05)
        raise EncoderError("its modules do not fit together")

    one = Opening(config, open_it)
    with pytest.raises(EncoderError, match="do not fit"):
        one.check()
    assert not Path(store.path).exists()
    assert times_opened(config, store) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"tokens": "../../elsewhere", "vocabulary": 3}', '{"tokens": 3}'])
def test_a_damaged_note_is_no_note(tmp_path: Path, text: str) -> None:
    remember_tokens(str(tmp_path), "key", KnownTokens(NAME, 3))
    assert recall_tokens(str(tmp_path), "key") == KnownTokens(NAME, 3)
    (tmp_path / "known_tokens" / "key.json").write_text(text)
    assert recall_tokens(str(tmp_path), "key") is None


def test_a_store_that_cannot_be_written_to_is_none_the_worse(tmp_path: Path) -> None:
    (tmp_path / "known_tokens").write_text("a file where the folder would be")
    remember_tokens(str(tmp_path), "key", KnownTokens(NAME, 3))
    assert recall_tokens(str(tmp_path), "key") is None

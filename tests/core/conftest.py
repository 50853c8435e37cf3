"""What the tests of `core` share: a tiny encoder on disk, and the token ids of a small catalog."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from tiny_encoder import SYLLABLES, ListTokens, build_tiny_encoder

from beeray.core.encoder import Encoder, load_encoder

NUM_ITEMS = 50

# a busy machine is no failure, and a test that passed yesterday passes today
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder with dropout 0.1, as `SentenceTransformer` opens it."""
    return build_tiny_encoder(tmp_path_factory.mktemp("tiny") / "encoder", dropout=0.1)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """A catalog of 50 texts of 2 to 12 words, no two alike."""
    generator = np.random.default_rng(7)
    return [
        " ".join([SYLLABLES[item], *generator.choice(SYLLABLES, size=generator.integers(1, 12))])
        for item in range(NUM_ITEMS)
    ]


@pytest.fixture
def tokens(tiny_folder: Path, texts: list[str]) -> ListTokens:
    return ListTokens.of_texts(tiny_folder, texts)


@pytest.fixture
def open_encoder(tiny_folder: Path) -> Callable[..., Encoder]:
    """Opens the tiny encoder anew; keywords go to `load_encoder`."""

    def load(*, max_seq_length: int = 32, **choices: object) -> Encoder:
        return Encoder(load_encoder(str(tiny_folder), max_seq_length=max_seq_length, **choices))  # type: ignore[arg-type]

    return load

"""A BERT or MPNet of two layers with random weights as a `SentenceTransformer` folder, and token ids in memory.

Small enough to run hundreds of steps in a test, and real in every part that beeray touches: WordPiece
tokenizer with special tokens, dropout, mean pooling over unpadded tokens.
"""

from __future__ import annotations

import string
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    MPNetConfig,
    MPNetModel,
    MPNetTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SYLLABLES = [
    first + last for first in "bdfgklmnprst" for last in ("a", "e", "i", "o", "u", "an", "er", "ol", "us", "y")
]
"""120 whole words of the vocabulary; any other lower-case word falls into letters."""

WORDS = [*SYLLABLES, *string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
"""The vocabulary but for special tokens, which come first."""

HIDDEN = 32
MAX_POSITIONS = 64


def build_tiny_encoder(folder: Path, *, dropout: float = 0.1, seed: int = 0) -> Path:
    """Write the encoder into `folder` (made if need be) and return it; the same seed gives the same weights.

    Vocabulary 177, 2 layers, hidden 32, 2 heads, 64 positions, `[CLS] … [SEP]`, no normalisation.
    The caller's torch random state is left as it was.
    """
    vocabulary = [*SPECIAL, *WORDS]
    config = BertConfig(max_position_embeddings=MAX_POSITIONS, **_shape(vocabulary, dropout))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        bert = BertModel(config)
    tokenizer = BertTokenizer(vocab={token: index for index, token in enumerate(vocabulary)}, do_lower_case=True)
    return _saved(bert, tokenizer, folder)


def build_tiny_mpnet(folder: Path, *, dropout: float = 0.1, seed: int = 0) -> Path:
    """As `build_tiny_encoder`, but an MPNet: `<s> … </s>`, padding is token 1, and attention has a position bias."""
    vocabulary = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>", *WORDS]
    config = MPNetConfig(max_position_embeddings=MAX_POSITIONS + 2, **_shape(vocabulary, dropout))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mpnet = MPNetModel(config)
    return _saved(mpnet, MPNetTokenizer(vocab={token: index for index, token in enumerate(vocabulary)}), folder)


def _shape(vocabulary: list[str], dropout: float) -> dict[str, Any]:
    return {
        "vocab_size": len(vocabulary),
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "initializer_range": 0.2,  # BERT's 0.02 makes all texts of so narrow a model nearly alike
    }


def _saved(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    with tempfile.TemporaryDirectory() as bare:
        network.save_pretrained(bare)
        tokenizer.save_pretrained(bare)
        words = Transformer(bare, max_seq_length=MAX_POSITIONS)
    model = SentenceTransformer(modules=[words, Pooling(HIDDEN, pooling_mode="mean")], device="cpu")
    model.save(str(folder), create_model_card=False)
    return folder


class ListTokens:
    """Token ids of a few texts in memory, as `beeray.core.batching.Tokens` asks for them.

    Args:
        texts: ids of each text, special tokens included; truncation keeps the last one, `[SEP]`.
    """

    pad_token_id = 0

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self.texts = [list(text) for text in texts]
        self.gathered: list[NDArray[np.int32]] = []

    @classmethod
    def of_texts(cls, folder: Path, texts: Sequence[str]) -> ListTokens:
        """Tokenise with the tokenizer of an encoder's folder."""
        tokenizer = BertTokenizer.from_pretrained(folder)
        return cls([tokenizer(text)["input_ids"] for text in texts])

    def text(self, item: int, max_seq_length: int) -> list[int]:
        """Ids of one item after truncation."""
        ids = self.texts[item]
        return ids if len(ids) <= max_seq_length else [*ids[: max_seq_length - 1], ids[-1]]

    def lengths(self, max_seq_length: int) -> NDArray[np.int32]:
        return np.array([len(self.text(item, max_seq_length)) for item in range(len(self.texts))], dtype=np.int32)

    def gather(
        self, item_indices: NDArray[np.int32], max_seq_length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """As the protocol; remembers in `gathered` which items were asked for."""
        self.gathered.append(item_indices)
        texts = [self.text(item, max_seq_length) for item in item_indices.tolist()]
        lengths = np.array([len(text) for text in texts], dtype=np.int32)
        return np.array([token for text in texts for token in text], dtype=np.int64), lengths

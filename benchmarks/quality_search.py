"""Tries values of a quality config on *validation* items, in one process: the real step and head, without Ray.

Every argument is a trial: a comma-separated list of overrides of `quality_goodbooks_quick.yaml`. The store must be
prepared (`python -m beeray.prepare`); validation items are not trained on. Prints a line a trial.

    python benchmarks/quality_search.py --store stores/quality-goodbooks \\
        train.lr=1e-4 train.lr=3e-4,train.max_steps=60
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from beeray.config import Config, load_config
from beeray.core.batching import FlatTokens
from beeray.core.elsa import normalize_rows
from beeray.core.embedding import embed_items
from beeray.core.encoder import Encoder, load_encoder
from beeray.core.evaluation import Ranker, RankingMetrics, mean_metrics, score_users
from beeray.core.optimizers import build_optimizer
from beeray.core.schedules import lr_factor
from beeray.core.step import TrainingStep
from beeray.core.user_items import UserItems
from beeray.data.store import Store
from beeray.runtime.head_start import start_with_head, training_users
from beeray.runtime.step_settings import step_settings

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Run the trials, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", required=True)
    parser.add_argument("--config", default=str(HERE / "quality_goodbooks_quick.yaml"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("trials", nargs="*", default=[""], metavar="key.sub=value,…")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    store = Store.open(arguments.store)
    for trial in arguments.trials:
        overrides = [part for part in trial.split(",") if part]
        config = load_config(arguments.config, [*overrides, "train.with_validation=false"])
        print(f"{trial or 'as it is'}: {run(config, store)}", flush=True)


def run(config: Config, store: Store) -> str:
    """Train one config and score it on validation items."""
    started = time.process_time()
    torch.manual_seed(config.seed)
    model = load_encoder(
        config.encoder.name, max_seq_length=config.encoder.max_seq_length, dropout=config.encoder.dropout
    )
    tokens = tokenised(store, model, config.longest_seq_length)
    encoder = Encoder(model, config.train.precision)
    said: list[str] = []
    if config.train.head is not None:
        start_with_head(model, config, store, tokens, lambda kind, **event: None)
        said.append(f"head {score(encoder, config, store, tokens):.4f} ({time.process_time() - started:.0f} CPU-s)")
    num_steps = config.train.max_steps or 0
    num_items = train(encoder, config, store, tokens, num_steps) if num_steps else 0
    cpu_s = time.process_time() - started
    said.append(f"ndcg@100 {score(encoder, config, store, tokens):.4f} ({num_items:,} items, {cpu_s:.0f} CPU-s)")
    return ", ".join(said)


def tokenised(store: Store, model: SentenceTransformer, max_seq_length: int) -> FlatTokens:
    """The catalog's token ids in memory, cut as the token store cuts them."""
    tokenizer = model.tokenizer.backend_tokenizer
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_seq_length)
    encoded = tokenizer.encode_batch(store.catalog(["text"])["text"].to_pylist())
    ids = [np.asarray(one.ids, dtype=np.int32) for one in encoded]
    lengths = np.asarray([len(one) for one in ids], dtype=np.int32)
    return FlatTokens(np.concatenate(ids), lengths, int(model.tokenizer.pad_token_id or 0))


def train(encoder: Encoder, config: Config, store: Store, tokens: FlatTokens, num_steps: int) -> int:
    """Fine-tune for so many steps; returns the items encoded."""
    trainable = store.trainable_items(False)
    users = training_users(store, config, np.arange(store.meta.num_items, dtype=np.int32))
    step = TrainingStep(encoder, tokens, trainable, step_settings(config))
    drawn = zip(range(num_steps), batches(users, config.train.batch_size, config.seed), strict=False)
    return optimise(encoder, config, ((step, batch) for _, batch in drawn), num_steps)[0]


def optimise(
    encoder: Encoder, config: Config, planned: Iterable[tuple[TrainingStep, UserItems]], num_steps: int
) -> tuple[int, int]:
    """Take planned steps, each with its users; returns the items and tokens encoded."""
    settings = config.train
    optimizer = build_optimizer(
        encoder,
        settings.optimizer,
        lr=settings.lr,
        betas=settings.betas,
        epsilon=settings.epsilon,
        weight_decay=settings.weight_decay,
    )
    encoder.train()
    num_items = num_tokens = 0
    for number, (step, batch) in enumerate(planned):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * lr_factor(settings.scheduler, number, num_steps, settings.warmup_fraction)
        result = step.loss(batch, epoch=0, step=number)
        result.loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), settings.gradient_clipping or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        num_items, num_tokens = num_items + result.num_items, num_tokens + result.num_tokens
    return num_items, num_tokens


def batches(users: UserItems, batch_size: int, seed: int) -> Iterator[UserItems]:
    """Users in batches, shuffled anew every epoch, without end."""
    generator = np.random.default_rng(seed)
    while True:
        order = generator.permutation(users.num_users)
        for start in range(0, users.num_users - batch_size + 1, batch_size):
            yield users.take(order[start : start + batch_size])


def score(encoder: Encoder, config: Config, store: Store, tokens: FlatTokens) -> float:
    """nDCG@100 on validation items."""
    known = store.trainable_items(True)
    embeddings = torch.zeros(store.meta.num_items, encoder.model.get_embedding_dimension() or 0)
    encoder.eval()
    embeddings[torch.from_numpy(known.astype(np.int64))] = embed_items(
        encoder,
        tokens,
        known,
        max_seq_length=config.served_seq_length,
        token_budget=config.train.micro_batch_tokens(use_gpu=False),
    )
    ranker = Ranker(normalize_rows(embeddings), store.candidates("validation"), RankingMetrics())
    blocks = ((block.user_index.astype(np.int64), block.history, block.targets) for block in evaluated(store))
    return mean_metrics(ranker.metrics.names, score_users(ranker, blocks)[1])["ndcg@100"]


@cache
def evaluated(store: Store) -> list:  # type: ignore[type-arg]
    """The validation split's users."""
    return list(store.evaluation_users("validation", 4096, shard=0, num_shards=1))


if __name__ == "__main__":
    main()

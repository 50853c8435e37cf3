"""Program of one rank: whitens and trains a head on fixed features; every rank writes its weights.

Started by `test_head_ranks.py` as `train_head.py <output folder>`; the process group is told by the usual environment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense
from torch import nn

from beeray.core.head import Head, HeadSettings, append_head, train_head, whiten
from beeray.core.user_items import UserItems

DIM, NUM_ITEMS, NUM_USERS = 8, 60, 30


def main(folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
    generator = np.random.default_rng(4)
    features = torch.from_numpy(generator.normal(size=(NUM_ITEMS, DIM)).astype(np.float32)) + 2.0
    liked = [generator.choice(NUM_ITEMS, size=6, replace=False) for _ in range(NUM_USERS)]
    users = UserItems(np.arange(NUM_USERS + 1, dtype=np.int64) * 6, np.concatenate(liked).astype(np.int32))
    model = SentenceTransformer(modules=[Dense(DIM, DIM, activation_function=nn.Identity())], device="cpu")
    append_head(model, 4)
    head = Head(model)
    whiten(head, features)
    # an odd number of users and of items, so that shares are unequal
    train_head(head, features, users, HeadSettings(steps=10, batch_size=9, max_output=31, lr=1e-2, seed=1))
    torch.save(head.state_dict(), Path(folder) / f"head-{dist.get_rank()}-of-{dist.get_world_size()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The encoder, its training and its evaluation."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from beeray.config.section import Fraction, Section, refuse_repeated

TOKEN_BUDGET = {"fp32": 2048, "bf16": 4096, "gpu": 8192}
"""Padded tokens of a micro-batch unless `train.token_budget` says otherwise: what a CPU's caches hold in either
precision (with 8,192 tokens of MiniLM a step is a fifth slower, and a small step has more padding)."""

COMMIT = r"[0-9a-f]{40}"


class EncoderConfig(Section):
    """The sentence transformer that is trained or evaluated."""

    name: str = "sentence-transformers/all-mpnet-base-v2"
    """Hub name, folder, or `package:<python package>/<folder inside it>`."""
    revision: str | None = Field(None, min_length=1)
    """Commit, tag or branch of a hub name; the newest unless set."""
    trust_remote_code: bool = False
    """Run Python code that comes with the encoder, as the user of the command and of every worker. Only with `revision`
    as a full commit hash, so that what runs is what was read."""
    max_seq_length: int = Field(384, ge=8)
    """Tokens of a text in training, special ones included; the rest is cut off."""
    prefix: str = ""
    """Put before every text; exported as the model's default prompt."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout probability while training; the encoder's own unless set."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Asked of transformers; `auto` is what it has for the encoder. MPNet's `auto` and `sdpa` are beeray's own."""

    @model_validator(mode="after")
    def _trusts_one_commit(self) -> EncoderConfig:
        if self.trust_remote_code and not (self.revision and re.fullmatch(COMMIT, self.revision)):
            raise ValueError(
                f"encoder.trust_remote_code is true and encoder.revision {self.revision!r}: it must be the full hash "
                "(40 hex digits) of the commit whose code you have read; set it, or leave trust_remote_code out"
            )
        return self

    def revision_of(self, name: str) -> str | None:
        """The revision at which an encoder is opened: `revision` for the one that the config names.

        Where its code is trusted, for every other one too: a commit names its content, so no other code can run.
        """
        return self.revision if self.trust_remote_code or name == self.name else None


class HeadConfig(Section):
    """A head start: a small network after the encoder, trained first, on features that are encoded once."""

    whiten: bool = True
    """Begin with the mean of the catalog's embeddings taken away and their variances evened out."""
    units: int = Field(0, ge=0)
    """Hidden units beside those that carry the embedding itself; 0 leaves the head one linear map."""
    steps: int = Field(200, ge=0)
    """Steps that train the head alone; after 0 it is a whitening and no more, but for what training makes of it."""
    batch_size: int = Field(256, ge=1)
    """Users of such a step, over all workers."""
    max_output: int = Field(3000, ge=2)
    """Items of such a step, over all workers."""
    lr: float = Field(3e-4, gt=0)
    """AdamW, one cosine."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the features while the head is trained alone."""


class LoraConfig(Section):
    """Low-rank adapters (Hu et al., arXiv 2106.09685) instead of the transformer's weights; needs `beeray[lora]`."""

    rank: int = Field(16, ge=1)
    """Rank of an adapter's update: the inner dimension of its two matrices."""
    alpha: float = Field(32.0, gt=0)
    """What an adapter adds is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """On what goes into an adapter, while training."""
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    """Linear layers that get one, by the ends of their names, e.g. `[query, value]`."""


class TrainConfig(Section):
    """The optimisation: objective, items and users of a step, schedule, precision."""

    lr: float = Field(1e-5, gt=0)
    """Learning rate, the highest of its schedule."""
    optimizer: Literal["nadam", "adamw"] = "nadam"
    """NAdam or AdamW, both with decoupled weight decay."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """The optimizer's decay rates: of its mean of gradients, and of their squares."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to the denominator of the optimizer's update."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of matrices; biases and norms have none."""
    gradient_clipping: float = Field(1.0, ge=0)
    """Largest gradient norm; 0 turns clipping off."""
    scheduler: Literal["constant", "linear_warmup", "cosine"] = "constant"
    """`linear_warmup`: lr rises and stays; `cosine`: it rises, then falls to 0."""
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of all steps over which lr rises linearly (`linear_warmup`, `cosine`)."""
    epochs: int = Field(5, ge=1)
    """Passes over the training users."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after so many steps; the schedule is laid over them."""
    batch_size: int = Field(1024, ge=1)
    """Users a step, over all workers; an epoch is cut into equal steps, each of up to half more."""
    items: Literal["bounded", "all_positives", "catalog"] = "bounded"
    """Which items a step encodes: `bounded`: `max_output` of them, the users' own first; `all_positives`: all of the
    users' own, even if they are more; `catalog`: as `bounded`, and users are described by all of their items."""
    max_output: Annotated[int, Field(ge=2)] | Literal["all"] = 10000
    """Items a step encodes and scores, over all workers; `all` is the full-catalog step."""
    negatives: Literal["within", "across"] = "within"
    """Several domains: a user's items stand against those of its own domain alone, or against all items of the step."""
    catalog_refresh: int = Field(1, ge=1)
    """`items: catalog`: steps between two embeddings of the whole catalog."""
    loss: Literal["nmse", "multinomial", "sampled_softmax"] = "nmse"
    """What is minimised: see `core/losses.py`."""
    temperature: float = Field(0.1, gt=0)
    """`multinomial`, `sampled_softmax`: cosines are divided by it."""
    relu: bool = True
    """`nmse`: drop negative scores."""
    top_k: int | None = Field(None, ge=2)
    """`nmse`: optimise only each user's k highest scores."""
    matryoshka_dims: tuple[Annotated[int, Field(ge=2)], ...] = ()
    """Prefixes of the embedding that are to do by themselves, beside the whole one; scored after training, too."""
    distill_weight: float = Field(0.0, ge=0)
    """Weight of the loss that keeps items as alike as the original encoder held them; 0: none."""
    lora: LoraConfig | None = None
    """Train low-rank adapters, merged at export, instead of the transformer's weights; null: train the weights."""
    freeze_layers: int = Field(0, ge=0)
    """So many of the lowest transformer layers, and all below them, stay as they are, without dropout."""
    init_from: str | None = None
    """Begin with what another run, or the encoder in a folder, has learned: `runs/<name>` or a model's folder."""
    with_validation: bool | None = None
    """Train on validation data too; unset means only under `split.reproduce: beeformer`."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: autocast around the encoder, weights stay fp32; for GPUs and for CPUs that multiply it (AMX)."""
    token_budget: int | None = Field(None, ge=1)
    """Padded tokens of one micro-batch; unless set 2,048 in fp32, 4,096 in bf16, 8,192 on GPUs."""
    activation_budget_gib: float = Field(1.0, ge=0)
    """Activations a worker may keep; micro-batches beyond it are recomputed in backward."""
    head: HeadConfig | None = None
    """Append a small network to the encoder and train it first, alone; null: train the encoder as it is."""
    evaluate_every_epochs: int | None = Field(None, ge=1)
    """Evaluate the validation split after every so many epochs; null: never while training."""
    checkpoint_every_steps: int | None = Field(None, ge=1)
    """Steps between checkpoints; null: once an epoch."""
    checkpoint_every_minutes: float | None = Field(10.0, gt=0)
    """Minutes after which one is saved in any case; null: never by the clock."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints kept; older ones are deleted."""
    profile: bool = False
    """Leave a profiler's trace of a few steps of rank 0, and a page that sums it up, in the run's `profile/`."""

    @model_validator(mode="after")
    def _objective_fits_together(self) -> TrainConfig:
        if self.loss != "nmse" and (self.top_k is not None or not self.relu):
            key = "relu" if self.top_k is None else "top_k"
            raise ValueError(f"train.{key} is an option of train.loss: nmse, not of {self.loss}; leave it out")
        if list(self.matryoshka_dims) != sorted(set(self.matryoshka_dims)):
            raise ValueError(f"train.matryoshka_dims is {list(self.matryoshka_dims)}: give each once, in rising order")
        return self

    def micro_batch_tokens(self, *, use_gpu: bool) -> int:
        """Padded tokens of one micro-batch on this kind of device."""
        return self.token_budget or TOKEN_BUDGET["gpu" if use_gpu else self.precision]


class EvaluateConfig(Section):
    """What is measured and how much memory a block may take."""

    splits: tuple[Literal["validation", "test"], ...] = ("validation", "test")
    """What `train` scores when it is done, and `evaluate` scores; empty: nothing."""
    domains: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Domains whose users are scored; all unless set."""
    recall_at: tuple[Annotated[int, Field(ge=1)], ...] = (20, 50)
    """Every k of recall@k; out of k where a user has more targets than that."""
    ndcg_at: tuple[Annotated[int, Field(ge=1)], ...] = (100,)
    """Every k of nDCG@k."""
    max_seq_length: int | None = Field(None, ge=8)
    """Text length at evaluation; the encoder's unless set."""
    full_catalog: bool = True
    """`item` split: also rank the held-out items among the whole catalog."""
    filtered: bool = True
    """`time` split: also score the first 100 of the catalog's ranking (as many as the longest metric asks for), those
    that nobody has in the split's window dropped: the figure that beeFormer reports."""
    before: bool = False
    """`train`: score the encoder before training, too."""
    neighbours: bool | None = None
    """Measure how many semantic neighbours of items in the whole catalog are kept; unset: where training embeds it with
    the original anyway, and among the report's items elsewhere."""
    neighbours_at: int = Field(10, ge=1)
    """Nearest items of an item that count as its neighbours."""
    num_bootstrap: int = Field(1000, ge=2, le=1_000_000)
    """Resamples of users that a 95 % interval is taken from."""
    users_per_block: int = Field(512, ge=1)
    """Users that a worker scores at once; memory grows with it."""
    items_per_block: int = Field(32768, ge=1)
    """Candidates that they are scored against at once: memory is users × items of a block."""

    @model_validator(mode="after")
    def _measures_something(self) -> EvaluateConfig:
        if not self.recall_at and not self.ndcg_at:
            raise ValueError("evaluate.recall_at and evaluate.ndcg_at are both empty; give at least one k")
        for key in ("splits", "recall_at", "ndcg_at"):
            refuse_repeated(f"evaluate.{key}", getattr(self, key))
        return self

"""The nightly job: which catalog becomes which embeddings, where, and how much may go wrong."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from beeray.config.data import CatalogTable
from beeray.config.section import Section


class EmbedConfig(Section):
    """What `beeray.embed` reads, computes and publishes."""

    path: str | None = None
    """Where it is published: a folder or URI; `embeddings/<name>` unless set."""
    model: str | None = None
    """Encoder: a folder or hub name, or `untouched` for `encoder.name`; unless set what the run trained or, where
    nightly training has published models, the last of them."""
    catalog: CatalogTable | None = None
    """The catalog of this job; that of `data` unless set."""
    domains: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Several domains: those whose catalogs are embedded and indexed; all unless set."""
    max_seq_length: int | None = Field(None, ge=8)
    """Text length; that of evaluation unless set."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16` is two to three times as fast on GPUs and on CPUs that multiply it (AMX), within 5e-3 of `fp32`."""
    dtype: Literal["float32", "float16", "int8", "binary"] = "float32"
    """What a number of a vector is stored as; see `beeray/data/embedding_format.py`."""
    dims: int | None = Field(None, ge=1)
    """Dimensions kept, the first ones (for encoders trained for it); all unless set."""
    normalize: bool = False
    """Bring vectors to unit length; otherwise they are as `SentenceTransformer.encode` gives them."""
    incremental: bool = True
    """Copy the vectors of unchanged items from the last publication; false encodes everything."""
    token_budget: int | None = Field(None, ge=1)
    """Padded tokens of one call of the encoder; unless set 2,048 in fp32, 4,096 in bf16, 65,536 on GPUs."""
    num_actors: int | None = Field(None, ge=1)
    """Encoder actors, each with its own copy of the encoder; unless set one per GPU (or share of it), or one per
    core, at most 8 a node."""
    cpus_per_actor: float = Field(0.5, gt=0)
    """CPUs reserved for an actor; what is left reads, tokenises and writes."""
    gpus_per_actor: float = Field(1.0, gt=0)
    """GPUs of an actor where `cluster.use_gpu` is set; a fraction shares a card."""
    threads_per_actor: int | None = Field(None, ge=1)
    """Compute threads of an actor; the node's cores divided by its actors unless set."""
    rows_per_file: int = Field(8192, ge=1)
    """Items of one output file, on average: the unit of work, of retries and of resuming."""
    rows_per_row_group: int = Field(2048, ge=1)
    """Items of a row group of an output file, at most."""
    max_text_chars: int = Field(100_000, ge=1)
    """A longer text is refused: it is no item's description."""
    max_error_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of the catalog's rows that may be refused before the job does not publish."""
    max_deleted_fraction: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the last publication's items that may disappear before the job does not publish."""
    keep_versions: int = Field(3, ge=2)
    """Publications kept, the new one included; a reader of an older one loses it."""
    drift_rows: int = Field(2000, ge=0, le=20_000)
    """Unchanged items whose old and new vectors are compared, at most; 0: no drift report."""

"""The nearest-neighbour index over published embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from beeray.config.section import Section, refuse_repeated


class IndexConfig(Section):
    """Which FAISS index `beeray.index` builds, and how its recall is measured."""

    kind: Literal["flat", "ivf_pq", "hnsw"] = "hnsw"
    """`flat`: exact, the size of the vectors; `hnsw`: a graph over them; `ivf_pq`: compressed, found by lists."""
    metric: Literal["cosine", "inner_product"] = "cosine"
    """`cosine` brings vectors to unit length before they go in; bring queries to it, too."""
    path: str | None = None
    """Where the index is written: a folder or URI; `<embed path>/indexes/<version>-<kind>` unless set."""
    hnsw_m: int = Field(32, ge=2)
    """Neighbours of a vector in the graph; twice as many on its lowest level."""
    hnsw_ef_construction: int = Field(100, ge=1)
    """Candidates kept while a vector's neighbours are sought."""
    hnsw_ef_search: int = Field(128, ge=1)
    """Candidates kept while a query is answered; at least as many as neighbours asked for."""
    num_lists: int | None = Field(None, ge=1)
    """Inverted lists; about 4·sqrt(items), and no more than the training rows support, unless set."""
    pq_bytes: int | None = Field(None, ge=1)
    """Bytes of a vector's code; must divide the dimensions; a quarter of them or fewer unless set."""
    num_probes: int = Field(32, ge=1)
    """Lists that a query looks into; all of them where there are fewer."""
    train_rows: int = Field(200_000, ge=256)
    """Vectors sampled to train lists and codes, at most; they are in memory while training."""
    recall_at: tuple[Annotated[int, Field(ge=1)], ...] = (10, 100)
    """Numbers of neighbours at which recall against an exact search is measured."""
    num_queries: int = Field(1000, ge=1)
    """Published vectors that are searched for to measure recall and speed, at most."""
    seed: int = Field(42, ge=0)
    """Of the graph, of the rows sampled for training and of the queries."""
    threads: int | None = Field(None, ge=1)
    """Threads that build; OMP_NUM_THREADS, or the machine's cores, unless set. With one, a build is reproducible."""

    @model_validator(mode="after")
    def _measures_something(self) -> IndexConfig:
        if not self.recall_at:
            raise ValueError("index.recall_at is empty: an index is not published unmeasured; give at least one k")
        refuse_repeated("index.recall_at", self.recall_at)
        return self

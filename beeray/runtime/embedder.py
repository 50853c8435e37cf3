"""The encoder actor of the nightly job: token ids in, vectors out, nothing else."""

from __future__ import annotations

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray

from beeray.config import Config
from beeray.core.batching import FlatTokens
from beeray.core.embedding import embed_items
from beeray.core.encoder import Encoder, cast_to_bf16, load_encoder
from beeray.core.fingerprint import model_fingerprint
from beeray.data.embedding_format import EmbeddingFormat, calibrate
from beeray.data.embedding_units import tokenise
from beeray.data.streaming import error_kind, find_cause, what_it_says
from beeray.errors import RunError
from beeray.runtime.cores import share_cores


@dataclass(frozen=True)
class EmbedderTask:
    """What an actor needs to know; picklable.

    Attributes:
        model: folder or name that every node can load.
        fingerprint: of the encoder that the job was planned with.
        max_seq_length, prefix, attention, precision: how texts are encoded.
        token_budget: padded tokens of one call of the encoder.
        use_gpu: whether an actor has (a share of) a GPU.
        num_actors, threads: of the job; threads None: the node's cores divided by its actors.
        format: what vectors are stored as.
        trust_remote_code, revision: as of `load_encoder`.
    """

    model: str
    fingerprint: str
    max_seq_length: int
    prefix: str
    attention: str
    precision: str
    token_budget: int
    use_gpu: bool
    num_actors: int
    threads: int | None
    format: EmbeddingFormat
    trust_remote_code: bool = False
    revision: str | None = None


class Embedder:
    """Loads the encoder once; called with one unit after the other.

    All of torch runs in one thread of its own. Ray Data calls from another thread than the one that made the
    actor; were torch used in both, OpenMP would keep a pool of threads for each, count more threads than
    cores and let them sleep between operations: a third of the speed of bf16 on two cores.
    """

    def __init__(self, task: EmbedderTask) -> None:
        self.task = task
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._thread.submit(self._load).result()

    def _load(self) -> None:
        task = self.task
        self.device = "cuda" if task.use_gpu else "cpu"
        where = "GPU" if task.use_gpu else "CPU"
        nodes = sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get(where))
        actors_here = math.ceil(task.num_actors / max(1, nodes))
        share_cores(task.threads, actors_here)
        model = load_encoder(
            task.model,
            max_seq_length=task.max_seq_length,
            prefix=task.prefix,
            attention=task.attention,
            device=self.device,
            trust_remote_code=task.trust_remote_code,
            revision=task.revision,
        )
        found = model_fingerprint(model)
        if found != task.fingerprint:
            raise RunError(
                f"encoder {task.model!r}: is {found} here, the job was planned with {task.fingerprint}: it was "
                "replaced, or a node has another copy; run the same command again"
            )
        self.pad_token_id = int(model.tokenizer.pad_token_id or 0)
        if task.precision == "bf16":
            cast_to_bf16(model)
        self.encoder = Encoder(model).eval()

    def embed(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
        """Vectors of some texts, float32 (texts, d), as the encoder leaves them."""
        return self._thread.submit(self._embed, ids, lengths).result()

    def _embed(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
        tokens = FlatTokens(ids, lengths, self.pad_token_id)
        with torch.inference_mode():
            vectors = embed_items(
                self.encoder,
                tokens,
                np.arange(len(lengths), dtype=np.int32),
                max_seq_length=self.task.max_seq_length,
                token_budget=self.task.token_budget,
                device=self.device,
            )
        return vectors.cpu().numpy()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Encode one unit: `vectors` and `unusable` (bytes, see `write_unit`), `timings` in place of the tokens."""
        started = time.time()
        ids, lengths = (np.frombuffer(batch[name][0].as_buffer(), dtype=np.int32) for name in ("tokens", "lengths"))
        stored, unusable = b"", np.empty(0, dtype=np.bool_)
        if len(lengths):
            vectors = self.embed(ids, lengths)
            unusable = ~self.task.format.fits(vectors)
            vectors[unusable] = 0
            stored = self.task.format.numbers(self.task.format.encode(vectors)).tobytes()
        ended = time.time()
        timings: dict[str, Any] = {
            "tokens": int(lengths.sum()),
            "encode_queue_s": started - batch["ready_at"][0].as_py(),
            "encode_s": ended - started,
            "encoded_at": ended,
        }
        kept = batch.select(["range", "item_id", "content_hash", "source", "source_row", "counts"])
        kept = kept.append_column("vectors", pa.array([stored], pa.large_binary()))
        kept = kept.append_column("unusable", pa.array([unusable.tobytes()], pa.binary()))
        return kept.append_column("timings", pa.array([json.dumps(timings)]))


def calibrated(config: Config, task: EmbedderTask, tokenizer: str, texts: list[str]) -> float:
    """The int8 scale for a catalog, from the vectors of some of its texts. Ray must be running.

    Args:
        tokenizer: as JSON, see `bare_tokenizer`.

    Raises:
        BeerayError: what the encoder raised for the user.
        LostWorkersError: the actor that measures it is gone.
    """
    options: dict[str, Any] = {"num_cpus": config.embed.cpus_per_actor}
    if task.use_gpu:
        options["num_gpus"] = config.embed.gpus_per_actor
    ids, lengths = tokenise(texts, tokenizer, task.prefix, task.max_seq_length)
    actor = ray.remote(**options)(Embedder).remote(task)
    try:
        vectors = ray.get(actor.embed.remote(ids, lengths))
        fits = task.format.fits(vectors)
        kept = vectors[fits] if fits.any() else vectors  # the others will be set aside; if all are, it is the encoder
        return calibrate(task.format.prepare(kept))
    except ray.exceptions.RayError as error:
        ours = find_cause(error)
        if ours is None:
            raise error_kind(error)(
                f"embed: the encoder actor died while the int8 scale was measured ({what_it_says(error)}); see ray "
                "status and the memory of the nodes, and run the same command again"
            ) from error
        raise ours from None
    finally:
        ray.kill(actor)

"""Published embeddings, for whoever serves them.

    from beeray import embeddings

    published = embeddings.open("embeddings/goodbooks")
    for batch in published.iter_batches():
        serve(batch["item_id"], published.vectors(batch))

Loads neither torch nor Ray.
"""

from __future__ import annotations

from beeray.data.embeddings import Embeddings, Verify
from beeray.data.embeddings import open_embeddings as open  # reads as `embeddings.open(path)`

__all__ = ["Embeddings", "Verify", "open"]

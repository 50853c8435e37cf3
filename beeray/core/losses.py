"""Objectives by name: each a plain callable of a step's item embeddings and its users.

    loss(E, users) → one number a user, of order one; the step averages over the users of all ranks

`E` (items, d) are the row-normalised embeddings of the step's items, and a user's vector is the sum of its items'
rows, as it is at inference.

| name              | what a user's loss is                                                            | cost          |
|-------------------|----------------------------------------------------------------------------------|---------------|
| `nmse`            | ELSA's: how far its scores are from its items, both of unit length (`core.elsa`) | users × items |
| `multinomial`     | cross-entropy of its items under one softmax of its scores over the step's items | users × items |
| `sampled_softmax` | cross-entropy of each of its items among the step's items, given all its others  | pairs × items |

In all three an item does not help to find itself: `nmse` and `multinomial` take an item's similarity to itself (1) out
of its score, `sampled_softmax` takes the item out of the user's vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from beeray.core.blockwise import in_blocks
from beeray.core.elsa import elsa_scores, nmse_per_user, normalize_rows


@dataclass(frozen=True)
class StepUsers:
    """The users of one rank that count in a step.

    Attributes:
        items: float32 (users, items) 0/1, which of the step's items each has.
        elsewhere: what items that are not in the step add to the users' vectors: a width w → (users, w), no gradient;
            None where they add nothing.
    """

    items: Tensor
    elsewhere: Callable[[int], Tensor] | None = None

    def vectors(self, embeddings: Tensor) -> Tensor:
        """Sums of the embeddings of each user's items, (users, d)."""
        sums = self.items @ embeddings
        return sums if self.elsewhere is None else sums + self.elsewhere(embeddings.shape[1])


NOTHING = 1e-6
"""Shorter than any sum of unit vectors that means something."""

UserLoss = Callable[[Tensor, StepUsers], Tensor]
"""(E (items, d), row-normalised; users) → (users,)."""


def nmse(embeddings: Tensor, users: StepUsers, *, relu: bool = True, top_k: int | None = None) -> Tensor:
    """ELSA's normalised squared error: Vančura et al. (RecSys 2022; RecSys 2024, arXiv 2409.10309, Algorithm 1)."""
    scores = elsa_scores(users.vectors(embeddings), embeddings, users.items)
    return nmse_per_user(scores, users.items, relu=relu, top_k=top_k)


def multinomial(embeddings: Tensor, users: StepUsers, *, temperature: float = 0.1) -> Tensor:
    """−mean over the user's items of log softmax(scores / (‖user vector‖ · temperature)) over all items of the step.

    The multinomial likelihood of Liang et al., "Variational Autoencoders for Collaborative Filtering" (WWW 2018, arXiv
    1802.05814, eq. 2), of ELSA's scores; scores are cosines to the user's vector but for the 1 that an item of
    the user's owes to itself. A vector shorter than 1, an item's own length, is not lengthened: items that nearly
    cancel would have scores without bound, and gradients as large.
    """
    vectors = users.vectors(embeddings)
    scores = elsa_scores(vectors, embeddings, users.items)
    lengths = vectors.norm(dim=1, keepdim=True).clamp_min(1.0)
    chances = (scores / (lengths * temperature)).log_softmax(dim=1)
    return -(chances * users.items).sum(dim=1) / users.items.sum(dim=1).clamp_min(1.0)


def sampled_softmax(embeddings: Tensor, users: StepUsers, *, temperature: float = 0.1) -> Tensor:
    """−mean over the user's items of log softmax(cosines / temperature): an item among the step's items.

    Leave-one-out: the cosines are to the sum of the user's *other* items. The user's other items of the step are no
    wrong answers, so they are not in the denominator. To a user who has nothing else all items are equally likely, and
    nothing is learned of it. The loss of two-tower retrieval with the step's items as the sample (Bengio & Senécal
    2008; in-batch: Yi et al., RecSys 2019, but without their correction for items that are drawn often because they are
    popular), temperature as in van den Oord et al. (2018). Pairs are taken block by block, so no pairs × items matrix
    is kept.
    """
    vectors = users.vectors(embeddings)
    owners, own = users.items.nonzero(as_tuple=True)
    if not len(owners):
        return vectors.sum(dim=1) * 0.0

    def of_pairs(pairs: Tensor) -> Tensor:
        theirs, positives = owners[pairs], own[pairs]
        rest = vectors[theirs] - embeddings[positives]
        nothing = rest.detach().norm(dim=1, keepdim=True) < NOTHING  # its direction would be what rounding left
        without = normalize_rows(rest).masked_fill(nothing, 0.0)
        logits = without @ embeddings.T / temperature
        others = users.items[theirs].bool().scatter(1, positives[:, None], False)
        return functional.cross_entropy(logits.masked_fill(others, -torch.inf), positives, reduction="none")

    losses = in_blocks(of_pairs, len(owners), len(embeddings), embeddings.device)
    sums = losses.new_zeros(len(vectors)).index_add(0, owners, losses)
    return sums / users.items.sum(dim=1).clamp_min(1.0)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "nmse": nmse,
    "multinomial": multinomial,
    "sampled_softmax": sampled_softmax,
}


def user_loss(name: str, *, relu: bool = True, top_k: int | None = None, temperature: float = 0.1) -> UserLoss:
    """A loss of `LOSSES` with those of the choices that it knows.

    Raises:
        ValueError: unknown name.
    """
    if name not in LOSSES:
        raise ValueError(f"loss {name!r}: must be one of {', '.join(LOSSES)}")
    choices: dict[str, Any] = {"relu": relu, "top_k": top_k} if name == "nmse" else {"temperature": temperature}
    return partial(LOSSES[name], **choices)


def over_prefixes(loss: UserLoss, widths: Sequence[int]) -> UserLoss:
    """The mean of a loss on embeddings cut to their first `widths` numbers, and of the loss on whole ones.

    Rows are scaled to unit length again after the cut, as whoever uses a prefix does. Kusupati et al.,
    "Matryoshka Representation Learning" (NeurIPS 2022, arXiv 2205.13147), all weights equal.
    """

    def averaged(embeddings: Tensor, users: StepUsers) -> Tensor:
        cut = [loss(normalize_rows(embeddings[:, :width]), users) for width in widths]
        return torch.stack([*cut, loss(embeddings, users)]).mean(dim=0)

    return averaged if widths else loss

"""The simplest attack on an update: a token in a site's texts moves its row of the embedding.

A token that is not in a batch has no gradient on the embedding's input side, so the rows that moved name the tokens, by
arithmetic alone (Melis et al., arXiv 1805.04049). Compression is no defence: the rows that did not move are the first
that a sparse update omits.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedglm.privacy.errors import PrivacyError


@dataclass(frozen=True)
class TokenLeak:
    """How well the norms of one update's rows tell which tokens a site holds.

    Attributes:
        auc: Probability that a token that is held scores above one that is not, where ties count half: 0.5 is chance, 1
            reveals all. So does 0: if the embedding is the output layer too, rows of tokens that are not held all move
            one way, and further. Judge by the distance from 0.5.
        precision: Share of held tokens among the highest scores, as many as there are held tokens; if the last places
            are tied, its mean over all ways to fill them.
        chance: Precision of scores without any information: the share of held tokens among all.
    """

    auc: float
    precision: float
    chance: float


def measure_token_leak(rows: npt.ArrayLike, held: npt.ArrayLike) -> TokenLeak:
    """Rank tokens by the norm of their embedding row in an update, and compare with the truth.

    The attacker is whoever reads one update, the server first of all. The attacker knows the model's layout, hence
    which part of the update is the embedding, and nothing else: neither the weights, nor what the tokens are used for,
    nor other updates. The truth is the site's own, so that only the site, or a simulation, can measure this.

    A high AUC shows that the update leaks. A low one shows that this attack fails, and no more: it is no proof of
    privacy, and better attacks exist. The attack also asks about a site, where record-level privacy is about one
    record: what many records have in common, such as a frequent token, may show in an update that protects each of
    them.

    Args:
        rows: (V, d) float32, the embedding's part of the decoded update; zero where nothing was sent.
        held: (V,) bool, which tokens occur in the data that the site trained on.

    Raises:
        PrivacyError: The shapes do not match, a value is not finite, or all tokens or none are held, so that there is
            nothing to tell apart.
    """
    from sklearn.metrics import roc_auc_score  # slow to import, and only needed here

    values, truth = np.asarray(rows, np.float64), np.asarray(held)
    if values.ndim != 2 or truth.shape != values.shape[:1] or truth.dtype != bool:
        raise PrivacyError(
            f"the attack takes rows (V, d) and bools (V,), not {values.shape} and {truth.dtype} {truth.shape}"
        )
    if not np.isfinite(values).all():
        raise PrivacyError("a row of the update holds NaN or infinity")
    if truth.all() or not truth.any():
        raise PrivacyError(f"{'all' if truth.all() else 'none'} of the tokens are held: there is nothing to tell apart")
    scores = np.linalg.norm(values, axis=1)
    return TokenLeak(
        auc=float(roc_auc_score(truth, scores)), precision=_compute_precision(scores, truth), chance=float(truth.mean())
    )


def _compute_precision(scores: npt.NDArray[np.float64], truth: npt.NDArray[np.bool_]) -> float:
    count = int(truth.sum())
    last = np.partition(scores, -count)[-count]
    above, tied = scores > last, scores == last
    places = count - int(above.sum())
    return (int(truth[above].sum()) + places * float(truth[tied].mean())) / count

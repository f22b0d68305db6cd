"""What a draw is: the definition, in PyTorch and double precision.

Stages draw with this on a GPU and where there are no native kernels; tests hold the kernels
against it. The order of the settings is that of ``transformers``: temperature, top-k, top-p, min-p.
Of equal logits the token with the lower id counts as the likelier.
"""

from __future__ import annotations

import torch

from ppinfer.sampling import SamplingParams

_FIRST_CANDIDATES = 256
"""Top-p first looks at this many likeliest tokens; only a flat distribution needs a full sort."""


def draw_token(logits: torch.Tensor, params: SamplingParams, u: float) -> int:
    """The token that ``u`` in [0, 1) stands for, from ``logits`` ``(vocab,)``.

    Greedy settings take the first of the highest, whatever ``u``.
    """
    if params.is_greedy:
        return int(logits.argmax())
    return _inverse_cdf(distribution(logits, params), u)


def distribution(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Probabilities ``(vocab,)`` in float64 of the tokens that are kept, not normalised."""
    logits = _finite(logits)
    scaled = logits.double() / params.temperature
    if 0 < params.top_k < scaled.numel():
        kth = torch.topk(scaled, params.top_k).values[-1]
        scaled = torch.where(scaled < kth, -torch.inf, scaled)
    probs = torch.softmax(scaled, dim=-1)
    if params.top_p < 1.0:
        probs = torch.where(_nucleus(scaled, probs, params.top_p), probs, 0.0)
    if params.min_p > 0.0:
        probs = torch.where(probs < params.min_p * probs.max(), 0.0, probs)
    return probs


def log_probs(
    logits: torch.Tensor, token: int, top: int
) -> tuple[float, tuple[int, ...], tuple[float, ...]]:
    """Of ``token``, and of the ``top`` likeliest tokens, likeliest first: ids, and how likely."""
    values = torch.log_softmax(_finite(logits).double(), dim=-1)
    best = _likeliest(values, min(top, values.numel()))
    return float(values[token]), tuple(best.tolist()), tuple(values[best].tolist())


def _finite(logits: torch.Tensor) -> torch.Tensor:
    """Where the highest is infinite: as much of it as of any equal one, and nothing of the rest."""
    highest = logits.max()
    if not highest.isinf():
        return logits
    return torch.where(logits == highest, 0.0, -torch.inf)


def _likeliest(values: torch.Tensor, count: int) -> torch.Tensor:
    """The ids of the ``count`` highest, of equal ones the first, in that order."""
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=values.device)
    least = torch.topk(values, count).values[-1]
    ids = (values >= least).nonzero()[:, 0]  # topk takes any of equal ones
    order = torch.sort(values[ids], descending=True, stable=True).indices
    return ids[order[:count]]


def _nucleus(scaled: torch.Tensor, probs: torch.Tensor, top_p: float) -> torch.Tensor:
    """Which tokens are in the smallest set of likeliest ones that has ``top_p``: (vocab,), bool."""
    count = min(_FIRST_CANDIDATES, probs.numel())
    ids = _likeliest(scaled, count)
    if float(probs[ids].sum()) < top_p:
        ids = torch.sort(scaled, descending=True, stable=True).indices
    values = probs[ids]
    before = torch.cumsum(values, dim=0) - values
    kept = torch.zeros_like(probs, dtype=torch.bool)
    kept[ids[before < top_p]] = True
    return kept


def _inverse_cdf(probs: torch.Tensor, u: float) -> int:
    """The token whose slice of the cumulated probabilities holds ``u`` of their sum."""
    cumulated = torch.cumsum(probs, dim=0)
    target = cumulated[-1] * u
    index = int(torch.searchsorted(cumulated, target, right=True))
    if index >= probs.numel():  # u * sum rounded up to the sum
        index = int(probs.nonzero()[-1])
    return index

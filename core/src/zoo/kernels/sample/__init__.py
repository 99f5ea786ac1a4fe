"""One token per row of logits."""

from __future__ import annotations

from torch import Tensor

from zoo.kernels.registry import implementation

__all__ = ["sample"]


def sample(
    logits: Tensor,
    *,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
    banned: Tensor | None = None,
) -> Tensor:
    """Draw a token from each row by its own settings.

    logits: float32 [L, V]. temperature, top_p, min_p, uniform: float32 [L]; top_k: int32 [L]. banned: bool [V], tokens
    that count as if their logits were -inf. Temperature 0 takes the largest logit. Otherwise, in this order: divide by
    the temperature; keep the top_k largest (0: all); keep the fewest tokens whose probabilities reach top_p (1: all);
    drop those below min_p times the largest probability (0: none); then take the token where the cumulative
    probability, from likely to unlikely, first exceeds `uniform` in [0, 1).
    A row's token depends on nothing but that row. Returns int32 [L].
    """
    result: Tensor = implementation("sample", logits.device.type)(
        logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, uniform=uniform, banned=banned
    )
    return result

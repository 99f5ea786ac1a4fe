"""Native `sample`: the filters look only at as many tokens as they need."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels.native import call, structs
from zoo.kernels.sample import reference


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
    """See zoo.kernels.sample."""
    numbers = (temperature, top_p, min_p, uniform)
    plain = top_k.dtype == torch.int32 and all(x.is_contiguous() for x in (*numbers, top_k))
    if banned is not None:
        plain &= banned.dtype == torch.bool and banned.device.type == "cpu" and banned.is_contiguous()
    if not plain or not call.matches(logits, *numbers) or logits.stride(1) != 1 or not logits.numel():
        return reference.sample(
            logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, uniform=uniform, banned=banned
        )
    out = call.empty((len(logits),), torch.int32)
    op = structs.Sample(
        code=structs.SAMPLE,
        logits=logits.data_ptr(),
        rows=logits.shape[0],
        cols=logits.shape[1],
        ld=logits.stride(0),
        banned=call.address(banned),
        temperature=temperature.data_ptr(),
        top_p=top_p.data_ptr(),
        min_p=min_p.data_ptr(),
        uniform=uniform.data_ptr(),
        top_k=top_k.data_ptr(),
        out=out.data_ptr(),
    )
    call.run(op, *numbers, top_k, banned)
    return out

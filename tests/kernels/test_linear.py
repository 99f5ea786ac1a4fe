"""What `linear` does not do."""

from __future__ import annotations

from typing import NoReturn

import pytest
import torch

from zoo import kernels
from zoo.quant.tensor import QuantTensor


def test_no_rows_unpack_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    def unpack(*args: object, **kwargs: object) -> NoReturn:
        raise AssertionError("a weight was unpacked")

    monkeypatch.setattr(QuantTensor, "dequantize", unpack)
    weight = QuantTensor(type="Q8_0", shape=(5, 64), parts={"data": torch.zeros(5, 68, dtype=torch.uint8)})
    for shape in ((0, 64), (3, 0, 64)):
        (y,) = kernels.linear(torch.empty(shape), [weight], [torch.ones(5)])
        assert y.shape == (*shape[:-1], 5)

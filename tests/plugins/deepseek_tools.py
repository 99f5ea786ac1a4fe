"""What the DeepSeek tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from transformers import PreTrainedModel

from oracle.deepseek_checkpoints import save_deepseek
from zoo import LLM

TOLERANCE = 1e-4
LENGTH = 100  # past the original context of the checkpoints, which is 32

Made = Callable[[str], tuple[Path, PreTrainedModel]]


def maker(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Checkpoints by variant, each written once."""
    known: dict[str, tuple[Path, PreTrainedModel]] = {}

    def make(variant: str) -> tuple[Path, PreTrainedModel]:
        if variant not in known:
            path = tmp_path_factory.mktemp(variant.replace(" ", "-"))
            known[variant] = path, save_deepseek(path, variant)
        return known[variant]

    return make


@contextmanager
def loaded(path: Path, **options: Any) -> Iterator[LLM]:
    with LLM.load(path, **{"device": "cpu", "dtype": "float32", "cache_dtype": "float32", **options}) as llm:
        assert llm.info.plugin == "deepseek"
        yield llm


def zoo_logits(path: Path, ids: list[int], **options: Any) -> Tensor:
    with loaded(path, **options) as llm:
        return llm.logits(ids)


def assert_equal(found: Tensor, wanted: Tensor) -> None:
    assert 1 < wanted.std() < 3, "the checkpoint's logits are too small or too large to tell anything"
    assert (found - wanted).abs().max() < TOLERANCE

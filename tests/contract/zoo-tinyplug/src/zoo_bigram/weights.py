"""Tensor names of bigram checkpoints."""

from __future__ import annotations

from zoo.weights import NameMap

HF = NameMap({}, identity=True)
GGUF = NameMap({"token_embd.weight": "embed_tokens.weight", "output.weight": "lm_head.weight"})

"""What zoo-qwen claims. Imports no torch."""

from __future__ import annotations

from zoo.plugin import ArchitecturePlugin, Claim

# Normalise the queries and keys of each head.
QK_NORM = frozenset({"Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "qwen3", "qwen3moe"})
# Have routed experts.
EXPERTS = frozenset({"Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM", "qwen2moe", "qwen3moe"})

_DELTA_NET = "three of four layers of Qwen3-Next and Qwen3.5 are Gated DeltaNet, which is not implemented"

plugin = ArchitecturePlugin(
    name="qwen",
    config="zoo_qwen.config:QwenConfig",
    model="zoo_qwen.model:QwenForCausalLM",
    hf_names="zoo_qwen.weights:HF",
    gguf_names="zoo_qwen.weights:GGUF",
    claims=(
        Claim(hf="Qwen2ForCausalLM"),
        Claim(hf="Qwen2MoeForCausalLM"),
        Claim(hf="Qwen3ForCausalLM"),
        Claim(hf="Qwen3MoeForCausalLM"),
        Claim(gguf="qwen2"),
        Claim(gguf="qwen2moe"),
        Claim(gguf="qwen3"),
        Claim(gguf="qwen3moe"),
        Claim(hf="Qwen3NextForCausalLM", refuse=_DELTA_NET),
        Claim(hf="Qwen3_5ForCausalLM", refuse=_DELTA_NET),
        Claim(hf="Qwen3_5ForConditionalGeneration", refuse=_DELTA_NET),
        Claim(hf="Qwen3_5MoeForCausalLM", refuse=_DELTA_NET),
        Claim(hf="Qwen3_5MoeForConditionalGeneration", refuse=_DELTA_NET),
        Claim(gguf="qwen3next", refuse=_DELTA_NET),
        Claim(gguf="qwen35", refuse=_DELTA_NET),
        Claim(gguf="qwen35moe", refuse=_DELTA_NET),
    ),
    reasoning_tags=("<think>", "</think>"),
    tool_call_format="hermes",
)

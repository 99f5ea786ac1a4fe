"""What zoo-llama claims. Imports no torch."""

from __future__ import annotations

from zoo.plugin import ArchitecturePlugin, Claim, ModelSource


def is_mistral(source: ModelSource) -> bool:
    """GGUF calls Mistral and Mixtral `llama` too. One without experts and sliding window computes as a Llama does."""
    return bool(source.key(".expert_count", 0) or source.key(".attention.sliding_window", 0))


plugin = ArchitecturePlugin(
    name="llama",
    config="zoo_llama.config:LlamaConfig",
    model="zoo_llama.model:LlamaForCausalLM",
    hf_names="zoo_llama.weights:HF",
    gguf_names="zoo_llama.weights:GGUF",
    shapes="zoo_llama.shapes:SHAPES",
    claims=(
        Claim(hf="LlamaForCausalLM"),
        Claim(gguf="llama", unless=is_mistral, instead="zoo-mistral"),
    ),
)

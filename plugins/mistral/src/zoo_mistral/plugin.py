"""What zoo-mistral claims. Imports no torch."""

from __future__ import annotations

from zoo.plugin import ArchitecturePlugin, Claim, ModelSource

_MLA = "the latent attention of Mistral Small 4 and Large 3 is not implemented"


def is_latent(source: ModelSource) -> bool:
    """Whether attention goes through a latent space, in a wrapper or in params.json."""
    return source.config.get("model_type") == "mistral4" or source.config.get("kv_lora_rank") is not None


def is_mistral(source: ModelSource) -> bool:
    """Whether a GGUF that calls itself `llama` has what only Mistral's models have: experts or a sliding window."""
    return bool(source.key(".expert_count", 0) or source.key(".attention.sliding_window", 0))


plugin = ArchitecturePlugin(
    name="mistral",
    config="zoo_mistral.config:MistralConfig",
    model="zoo_mistral.model:MistralForCausalLM",
    hf_names="zoo_mistral.weights:HF",
    gguf_names="zoo_mistral.weights:GGUF",
    claims=(
        Claim(hf="MistralForCausalLM"),
        Claim(hf="MinistralForCausalLM"),
        Claim(hf="Ministral3ForCausalLM"),
        Claim(hf="MixtralForCausalLM"),
        Claim(hf="Mistral3ForConditionalGeneration", unless=is_latent, refuse=_MLA),
        Claim(hf="params.json", unless=is_latent, refuse=_MLA),
        Claim(gguf="llama", when=is_mistral),
        Claim(gguf="mistral3"),
        Claim(hf="Mistral4ForCausalLM", refuse=_MLA),
        Claim(gguf="mistral4", refuse=_MLA),
    ),
    reasoning_tags=("[THINK]", "[/THINK]"),
    tool_call_format="mistral",
)

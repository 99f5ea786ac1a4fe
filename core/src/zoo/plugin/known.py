"""Which distribution knows which architecture: data for the error of a user who lacks one."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_NAMES = {
    "zoo-llama": ("LlamaForCausalLM", "llama"),
    "zoo-deepseek": (
        *("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM", "DeepseekV4ForCausalLM"),
        *("deepseek2", "deepseek32", "deepseek4"),
    ),
    "zoo-mistral": (
        *("MistralForCausalLM", "MinistralForCausalLM", "Ministral3ForCausalLM", "MixtralForCausalLM"),
        *("Mistral3ForConditionalGeneration", "Mistral4ForCausalLM"),
        *("mistral3", "mistral4", "params.json"),
    ),
    "zoo-qwen": (
        *("Qwen2ForCausalLM", "Qwen2MoeForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "Qwen3NextForCausalLM"),
        *("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"),
        *("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"),
        *("qwen2", "qwen2moe", "qwen3", "qwen3moe", "qwen3next", "qwen35", "qwen35moe"),
    ),
    "zoo-phi": (
        *("PhiForCausalLM", "Phi3ForCausalLM", "Phi4MMForCausalLM", "PhiMoEForCausalLM", "PhimoeForCausalLM"),
        *("phi2", "phi3", "phimoe"),
    ),
    "zoo-gemma": (
        *("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
        *("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"),
        *("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration", "Gemma4UnifiedForConditionalGeneration"),
        *("gemma", "gemma2", "gemma3", "gemma3n", "gemma4"),
    ),
}

KNOWN_ARCHITECTURES: Mapping[str, str] = MappingProxyType(
    {name: distribution for distribution, names in _NAMES.items() for name in names}
)
"""Distribution by architecture name, `architectures` of config.json and `general.architecture` of GGUF alike.

GGUF files of Mistral 7B, Nemo and Mixtral say "llama" too; zoo-llama's claim tells them apart.
"""

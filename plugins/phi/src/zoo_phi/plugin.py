"""What zoo-phi claims: three architectures, each with its own model. Imports no torch."""

from __future__ import annotations

from typing import Any

from zoo.plugin import ArchitecturePlugin, Claim

_MULTIMODAL = (
    "Phi-4-multimodal keeps adapters for vision and speech beside its text model, which zoo does not run; "
    "Phi-4-mini-instruct is the text model"
)

_MOE: dict[str, Any] = {
    "config": "zoo_phi.config:PhiMoEConfig",
    "model": "zoo_phi.phimoe:PhiMoEForCausalLM",
    "hf_names": "zoo_phi.weights:PHIMOE_HF",
    "gguf_names": "zoo_phi.weights:PHIMOE_GGUF",
}

plugin = ArchitecturePlugin(
    name="phi",
    claims=(
        Claim(
            hf="PhiForCausalLM",
            gguf="phi2",
            config="zoo_phi.config:Phi2Config",
            model="zoo_phi.phi2:Phi2ForCausalLM",
            hf_names="zoo_phi.weights:PHI2_HF",
            gguf_names="zoo_phi.weights:PHI2_GGUF",
        ),
        Claim(
            hf="Phi3ForCausalLM",
            gguf="phi3",
            config="zoo_phi.config:Phi3Config",
            model="zoo_phi.phi3:Phi3ForCausalLM",
            hf_names="zoo_phi.weights:PHI3_HF",
            gguf_names="zoo_phi.weights:PHI3_GGUF",
        ),
        Claim(hf="PhiMoEForCausalLM", gguf="phimoe", **_MOE),
        Claim(hf="PhimoeForCausalLM", **_MOE),  # as transformers spells it where it writes a checkpoint
        Claim(hf="Phi4MMForCausalLM", refuse=_MULTIMODAL),
        Claim(hf="Phi4MultimodalForCausalLM", refuse=_MULTIMODAL),
        Claim(hf="Phi3VForCausalLM", refuse="Phi-3-vision's image encoder is not implemented; Phi-3-mini is its text"),
        Claim(hf="Phi4ForCausalLMV", refuse="the vision encoder of Phi-4 is not implemented; Phi-4 is its text model"),
        Claim(hf="Phi4FlashForCausalLM", refuse="Phi-4-mini-flash's state-space layers are not implemented"),
        Claim(hf="Phi3SmallForCausalLM", refuse="Phi-3-small's block-sparse attention is not implemented"),
    ),
    reasoning_tags=("<think>", "</think>"),  # Phi-4-reasoning and Phi-4-mini-reasoning
)

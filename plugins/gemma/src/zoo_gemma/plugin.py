"""What zoo-gemma claims. Imports no torch."""

from __future__ import annotations

from zoo.plugin import ArchitecturePlugin, Claim

_CONFIG2, _MODEL2 = "zoo_gemma.config:Gemma2Config", "zoo_gemma.model:Gemma2ForCausalLM"
_CONFIG3, _MODEL3 = "zoo_gemma.config:Gemma3Config", "zoo_gemma.model:Gemma3ForCausalLM"
_3N = "Gemma 3n's alternating updates, low-rank residuals and per-layer embeddings are not implemented"
_4 = "Gemma 4's two head sizes, shared keys and values and per-layer embeddings are not implemented"

plugin = ArchitecturePlugin(
    name="gemma",
    config="zoo_gemma.config:GemmaConfig",
    model="zoo_gemma.model:GemmaForCausalLM",
    hf_names="zoo_gemma.weights:HF",
    gguf_names="zoo_gemma.weights:GGUF",
    claims=(
        Claim(hf="GemmaForCausalLM", gguf="gemma", gguf_names="zoo_gemma.weights:GGUF_GEMMA1"),
        Claim(hf="Gemma2ForCausalLM", gguf="gemma2", config=_CONFIG2, model=_MODEL2),
        Claim(hf="Gemma3ForCausalLM", gguf="gemma3", config=_CONFIG3, model=_MODEL3),
        Claim(hf="Gemma3ForConditionalGeneration", config=_CONFIG3, model=_MODEL3),
        Claim(hf="Gemma3nForCausalLM", gguf="gemma3n", refuse=_3N),
        Claim(hf="Gemma3nForConditionalGeneration", refuse=_3N),
        Claim(hf="Gemma4ForCausalLM", gguf="gemma4", refuse=_4),
        Claim(hf="Gemma4ForConditionalGeneration", refuse=_4),
        Claim(hf="Gemma4UnifiedForConditionalGeneration", refuse=_4),
    ),
    dtypes=("float32", "bfloat16"),  # the residual of Gemma 2 and 3 exceeds 65504, the largest float16
)

"""What zoo-bigram claims. Imports no torch."""

from __future__ import annotations

from zoo.plugin import ArchitecturePlugin, Claim

plugin = ArchitecturePlugin(
    name="bigram",
    config="zoo_bigram.config:BigramConfig",
    model="zoo_bigram.model:BigramForCausalLM",
    hf_names="zoo_bigram.weights:HF",
    gguf_names="zoo_bigram.weights:GGUF",
    claims=(Claim(hf="BigramForCausalLM"), Claim(gguf="bigram")),
    chat_template="{{ messages[-1]['content'] }}",
)

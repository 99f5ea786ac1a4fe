"""What zoo-deepseek claims. Imports no torch."""

from __future__ import annotations

from zoo.errors import ContextLengthError
from zoo.plugin import ArchitecturePlugin, CausalLM, Claim, LoadOptions, ModelSource, hookimpl

# Attends to chosen tokens only: V3.2.
SPARSE = ("DeepseekV32ForCausalLM", "deepseek32")
_V4 = "DeepSeek-V4's hybrid attention and hyper-connections are not implemented"


class DeepseekPlugin(ArchitecturePlugin):
    """The tables, and the reason why a V3.2 has a short context."""

    @hookimpl
    def load(self, source: ModelSource, options: LoadOptions) -> CausalLM:
        """As any other. Raises ContextLengthError for a V3.2 with a context for which dense attention is wrong."""
        if options.context is not None and source.architectures[0] in SPARSE:
            limit = self.build(source).config.max_position_embeddings
            if options.context > limit:
                raise ContextLengthError(
                    f"{source.path}: a context of {options.context} tokens is asked for, but the sparse attention of "
                    f"DeepSeek-V3.2 is not implemented, and up to {limit} tokens it is dense attention",
                    tokens=options.context,
                    context=limit,
                    remedy=f"use --context {limit} or less, or DeepSeek-V3.1 for a longer one",
                )
        return super().load(source, options)


plugin = DeepseekPlugin(
    name="deepseek",
    config="zoo_deepseek.config:DeepseekConfig",
    model="zoo_deepseek.model:DeepseekForCausalLM",
    hf_names="zoo_deepseek.weights:HF",
    gguf_names="zoo_deepseek.weights:GGUF",
    shapes="zoo_deepseek.shapes:SHAPES",
    claims=(
        Claim(hf="DeepseekV2ForCausalLM"),
        Claim(hf="DeepseekV3ForCausalLM"),
        Claim(hf="DeepseekV32ForCausalLM"),
        Claim(gguf="deepseek2"),
        Claim(gguf="deepseek32"),
        Claim(hf="DeepseekV4ForCausalLM", refuse=_V4),
        Claim(gguf="deepseek4", refuse=_V4),
    ),
    reasoning_tags=("<think>", "</think>"),
)

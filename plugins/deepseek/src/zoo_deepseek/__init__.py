"""DeepSeek for zoo: V2, V2-Lite, V2.5, V3, R1, V3.1, from safetensors (bf16, FP8) and GGUF."""

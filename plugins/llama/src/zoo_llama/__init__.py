"""Llama for zoo: Llama 1 to 3.3, SmolLM2, R1-Distill-Llama and their like, from safetensors and GGUF."""

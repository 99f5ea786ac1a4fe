"""Qwen for zoo: Qwen1.5, 2, 2.5 and 3, dense and with experts, QwQ, R1-Distill-Qwen, from safetensors and GGUF."""

"""Gemma for zoo: Gemma 1, Gemma 2 and the text part of Gemma 3, from safetensors and GGUF."""

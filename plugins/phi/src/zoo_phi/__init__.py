"""Phi for zoo: Phi-1 to Phi-4, Phi-4-mini and Phi-3.5-MoE, from safetensors and GGUF."""

"""Mistral for zoo: Mistral 7B, Nemo, Small 3, Ministral and Mixtral, from safetensors, GGUF and consolidated files."""

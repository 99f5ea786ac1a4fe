"""Readers of model files. Bytes and headers only: nothing here imports torch."""

"""Weights that stay packed: the tensor that carries them and the plain torch definition of every block type."""

"""From the tensors of a file to the modules of a model."""

from zoo.weights.names import WRAPPED, Apply, Expert, NameMap, Rows, Target

__all__ = ["WRAPPED", "Apply", "Expert", "NameMap", "Rows", "Target"]

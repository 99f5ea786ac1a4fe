"""For authors of plugins: tests to subclass, and the rules of model code as a check. Nothing in zoo imports it."""

from zoo.testing.conformance import PluginConformance
from zoo.testing.rules import ModelRuleError, model_rules

__all__ = ["ModelRuleError", "PluginConformance", "model_rules"]

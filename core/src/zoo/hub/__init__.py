"""Names of models: the catalogue of demo models, `zoo pull` and the cache it fills.

`pull` fetches a model, `resolve` turns what a user typed after `--model-path` into a path, `load_records` lists what
was pulled and `remove` forgets it. No torch here; huggingface-hub is imported by the first call that needs it.
"""

from zoo.hub.catalogue import CATALOGUE, CatalogueEntry, WheelPart
from zoo.hub.names import pull, resolve
from zoo.hub.records import DamagedRecord, PulledFile, PulledModel, Records, load_records, remove
from zoo.hub.report import Reporter, Silent, human_size

__all__ = [
    "CATALOGUE",
    "CatalogueEntry",
    "DamagedRecord",
    "PulledFile",
    "PulledModel",
    "Records",
    "Reporter",
    "Silent",
    "WheelPart",
    "human_size",
    "load_records",
    "pull",
    "remove",
    "resolve",
]

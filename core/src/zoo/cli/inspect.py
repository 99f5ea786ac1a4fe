"""`zoo inspect`: what a model is, who runs it, and whether it fits, from its headers."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import click

from zoo.cli.options import load_options, parse_overrides, printable
from zoo.errors import UsageError, ZooError
from zoo.hub import human_size, resolve
from zoo.locate import is_config_alone
from zoo.plugin.manager import PluginManager
from zoo.settings import Settings
from zoo.source import ModelSource

# What headers say of any architecture: report key, key of config.json, key of GGUF metadata.
_HEADERS = (
    ("context", "max_position_embeddings", ".context_length"),
    ("vocab_size", "vocab_size", ".vocab_size"),
    ("layers", "num_hidden_layers", ".block_count"),
    ("hidden_size", "hidden_size", ".embedding_length"),
)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a device: all there are, those free for the model, and those left for the cache beside its weights."""

    device: str
    total: int
    free: int
    for_cache: int


@click.command("inspect")
@load_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(model_path: str | None, as_json: bool, **options: Any) -> None:
    """Say what a model is, which plugin runs it, what it needs and whether it fits. Reads headers, no weights."""
    if model_path is None:
        raise UsageError("inspect needs a model", remedy="give --model-path X")
    settings = Settings.from_env()
    path, overrides = resolve(model_path, settings), parse_overrides(options["overrides"])
    alone = is_config_alone(path)
    with ModelSource.from_config(path, overrides=overrides) if alone else ModelSource.open(path, overrides) as source:
        report = describe(source, PluginManager.discover(settings), options)
    click.echo(json.dumps(report, ensure_ascii=False) if as_json else _text(report))


def describe(source: ModelSource, manager: PluginManager, options: dict[str, Any]) -> dict[str, Any]:
    """The report as JSON values. What cannot be found out is None, with the reason in `problems`.

    Raises UsageError and DeviceError for a device that cannot be used.
    """
    problems: list[str] = []
    weights = _weights(source)
    memory = _memory(options["device"], weights["bytes"])
    report: dict[str, Any] = {
        "path": str(source.path),
        "format": source.format,
        "architectures": list(source.architectures),
        "files": len(source.files),
        **dict.fromkeys(("plugin", "distribution")),
        **weights,
        **_headers(source),
        **dict.fromkeys(("cache_bytes_per_token", "default_context", "largest_context", "forms")),
        **dict.fromkeys(("tokenizer", "tokens", "chat_template", "chat_template_sha256")),
        "memory": asdict(memory),
        "notes": [],
        "problems": problems,
    }
    plugin = None
    try:
        owner = manager.detect(source, force=options["plugin"])
        plugin = manager.bind(owner).plugin
        report |= {"plugin": owner.name, "distribution": owner.distribution}
        _add_shape(report, source, plugin, options, memory)
    except ZooError as error:
        problems.append(str(error))
    if source.has_weights:
        try:
            _add_language(report, source, plugin)
        except ZooError as error:
            problems.append(str(error))
    return {**report, "fits": _fits(report), "verdict": _verdict(report)}


def _weights(source: ModelSource) -> dict[str, Any]:
    counts, sizes = Counter[str](), Counter[str]()
    for info in source.tensors.values():
        counts[info.type] += 1
        sizes[info.type] += info.nbytes
    return {
        "parameters": sum(info.numel for info in source.tensors.values()),
        "bytes": sum(sizes.values()),
        "tensors": {kind: {"count": counts[kind], "bytes": sizes[kind]} for kind, _ in sizes.most_common()},
    }


def _headers(source: ModelSource) -> dict[str, Any]:
    """What the keys that nearly every architecture has say; None where one is missing or no number."""
    found = {name: source.config.get(hf) if source.config else source.key(gguf) for name, hf, gguf in _HEADERS}
    return {name: value if isinstance(value, int) else None for name, value in found.items()}


def _memory(device: str, weights: int) -> Memory:
    import psutil
    import torch

    from zoo.llm import host_bytes_for_cache
    from zoo.weights.loader import resolve_device

    place = resolve_device(device)
    if place.type == "cuda":
        free, total = torch.cuda.mem_get_info(place)
        return Memory(str(place), total, free, max(0, free - weights))
    state = psutil.virtual_memory()
    return Memory(str(place), state.total, state.available, host_bytes_for_cache(weights))


def _add_shape(
    report: dict[str, Any], source: ModelSource, plugin: Any, options: dict[str, Any], memory: Memory
) -> None:
    """Context, vocabulary and cache as the plugin reads them, if it is made of tables."""
    if not hasattr(plugin, "build"):
        return
    from zoo.cache.spec import bytes_per_token
    from zoo.engine.capacity import tokens_held
    from zoo.hooks import LoadOptions
    from zoo.llm import plan_context
    from zoo.weights.loader import resolve_cache_dtype

    model = plugin.build(source)
    choices = LoadOptions(device=options["device"], dtype=options["dtype"], context=options["context"])
    # Most forms of a configuration compute with a cache in half precision.
    element = resolve_cache_dtype(choices, source).itemsize if source.has_weights else 2
    specs = model.cache_spec()
    context = model.config.max_position_embeddings
    report |= {
        "notes": list(getattr(model, "notes", ())),
        "context": context,
        "vocab_size": model.config.vocab_size,
        "layers": report["layers"] or len(specs),
        "hidden_size": report["hidden_size"] or getattr(model.config, "hidden_size", None),
        "cache_bytes_per_token": bytes_per_token(specs, element),
        "largest_context": min(context, tokens_held(specs, element, memory.for_cache)),
    }
    plan = plan_context(specs, element, context, options["context"], memory.for_cache)
    report["default_context"] = plan.context
    if not source.has_weights:
        _add_forms(report, model, memory)


def _add_forms(report: dict[str, Any], model: Any, memory: Memory) -> None:
    """What the weights of a configuration need in each form in which checkpoints are published."""
    from zoo.weights.forms import FORMS, declared, form_bytes

    report["parameters"] = sum(math.prod(shape) for shape in declared(model).values())
    sizes = {name: form_bytes(model, form) for name, form in FORMS.items()}
    report["forms"] = {name: {"bytes": size, "fits": size <= memory.free} for name, size in sizes.items()}


def _add_language(report: dict[str, Any], source: ModelSource, plugin: object | None) -> None:
    from zoo.chat import ChatTemplate, find_template
    from zoo.tokenizer import load_tokenizer

    template = find_template(source) or getattr(plugin, "chat_template", None)
    report["chat_template"] = template is not None
    tokenizer = load_tokenizer(source, getattr(plugin, "pre", {}))
    kind = f"{tokenizer.kind} ({tokenizer.pre})" if tokenizer.pre else tokenizer.kind
    report |= {"tokenizer": kind, "tokens": tokenizer.vocab_size}
    if report["vocab_size"] is None:
        report["vocab_size"] = tokenizer.vocab_size
    if template is not None:
        compiled = ChatTemplate(template, bos_token="", eos_token="", control_tokens=tokenizer.control_tokens)
        report["chat_template_sha256"] = compiled.hash


def _fits(report: dict[str, Any]) -> bool | None:
    """Whether weights and a context are held by memory that is free now; None: nobody can load it."""
    if report["problems"]:
        return None
    if report["forms"]:
        return any(form["fits"] for form in report["forms"].values())
    return report["bytes"] <= report["memory"]["free"] and report["largest_context"] != 0


def _verdict(report: dict[str, Any]) -> str:
    """Whether it can be loaded, and what to do, in a sentence."""
    if report["problems"]:
        return "cannot be loaded: " + report["problems"][0]
    if report["forms"]:
        fitting = [name for name, form in report["forms"].items() if form["fits"]]
        return f"a configuration without weights; of its forms would fit: {', '.join(fitting) or 'none'}"
    memory, largest, context = report["memory"], report["largest_context"], report["context"]
    held = (
        f"{human_size(report['bytes'])} of weights, {human_size(memory['free'])} of {human_size(memory['total'])} free"
    )
    if report["bytes"] > memory["total"]:
        slow = "it runs, reading weights from disk for every token: " if memory["device"] == "cpu" else ""
        return f"does not fit ({held}); {slow}take a smaller quantisation"
    if report["bytes"] > memory["free"] or largest == 0:
        return f"does not fit now ({held}); close other programs or take a smaller quantisation"
    if largest is None:
        return "fits; the plugin does not say what a token of context needs"
    if largest < context:
        return f"fits, with up to {largest} of {context} tokens of context (--context N)"
    if report["default_context"] < context:
        return f"fits; {report['default_context']} tokens of context by default, up to {context} with --context"
    return f"fits, with its whole context of {context} tokens"


def _text(report: dict[str, Any]) -> str:
    rows = [
        ("path", report["path"]),
        ("format", f"{report['format']}, {report['files']} file{'' if report['files'] == 1 else 's'}"),
        ("architecture", ", ".join(report["architectures"]) or "unknown"),
        ("plugin", f"{report['plugin']} ({report['distribution']})" if report["plugin"] else "none"),
        (
            "parameters",
            f"{report['parameters'] / 1e6:,.1f} million"
            + (f" in {human_size(report['bytes'])}" * bool(report["bytes"])),
        ),
    ]
    rows += [("", f"as {name}: {human_size(form['bytes'])}") for name, form in (report["forms"] or {}).items()]
    rows += [
        ("", f"{kind}: {part['count']} tensor{'s' if part['count'] > 1 else ''}, {human_size(part['bytes'])}")
        for kind, part in report["tensors"].items()
    ]
    shape = [f"{report[key]} {what}" for key, what in (("layers", "layers"), ("hidden_size", "wide")) if report[key]]
    rows += [("shape", ", ".join(shape))] if shape else []
    if report["context"]:
        per_token = report["cache_bytes_per_token"]
        cost = f", {human_size(per_token)} of cache each" if per_token else ""
        rows.append(("context", f"{report['context']} tokens{cost}"))
    if report["vocab_size"]:
        rows.append(("vocabulary", f"{report['vocab_size']} rows"))
    if report["tokenizer"]:
        rows.append(("tokenizer", f"{report['tokenizer']}, {report['tokens']} tokens"))
    if report["chat_template"] is not None:
        digest = f" (sha256 {report['chat_template_sha256']})" if report["chat_template_sha256"] else ""
        rows.append(("chat template", f"yes{digest}" if report["chat_template"] else "no"))
    memory = report["memory"]
    rows.append(("memory", f"{memory['device']}: {human_size(memory['free'])} of {human_size(memory['total'])} free"))
    rows += [("note", note) for note in report["notes"]]
    rows += [("problem", problem) for problem in report["problems"][1:]]
    rows.append(("verdict", report["verdict"]))
    return "\n".join(f"{name:14} {printable(value)}" for name, value in rows)

"""What benchmarks/cpu.py found for one file: its figures, what zoo promises of them, and the table that says both."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from zoo.formats.gguf import GGUFFile

ZOO, PEER, TRANSFORMERS = "zoo", "llama.cpp", "transformers"
LOAD, MEMORY, BANDWIDTH = "load, s", "memory, MB", "best read bandwidth, GB/s"
SEQUENCES = 16
TOGETHER = f"decode of {SEQUENCES} sequences together, tok/s"
PREFILL_MUST = {PEER: 1.3, TRANSFORMERS: 1.0}
SMALL = 4e8  # bytes per token below which overhead decides, of which zoo has less


@dataclass
class Report:
    """`figures[name][engine]` has a value for each run; `facts` are zoo's own (see benchmarks/engines.py)."""

    path: Path
    gguf: GGUFFile
    figures: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    engines: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, engine: str, value: float) -> None:
        self.figures.setdefault(name, {}).setdefault(engine, []).append(value)

    def median(self, name: str, engine: str = ZOO) -> float:
        return statistics.median(self.figures[name][engine])

    def ratios(self, name: str, peer: str = PEER) -> list[float]:
        """zoo over a peer, run by run."""
        found = self.figures[name]
        return [ours / theirs for ours, theirs in zip(found[ZOO], found[peer], strict=True)]

    def ratio(self, name: str, peer: str = PEER) -> float:
        return statistics.median(self.ratios(name, peer))

    def share(self, name: str, engine: str = ZOO) -> float:
        """The part of the best read bandwidth that a decode rate takes for weights."""
        return self.token_bytes * self.median(name, engine) / 1e9 / max(self.figures[BANDWIDTH][ZOO])

    def key(self, name: str) -> int:
        """A number of the file's metadata, 0 where it has none."""
        value = self.gguf.metadata.get(f"{self.architecture}.{name}", 0)
        return value if isinstance(value, int) else 0

    @property
    def architecture(self) -> str:
        return str(self.gguf.metadata["general.architecture"])

    @property
    def file_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.gguf.paths)

    @property
    def token_bytes(self) -> float:
        """Bytes of weights that one token reads: of experts the chosen ones, of an untied embedding next to nothing."""
        tensors, share = self.gguf.tensors, self.key("expert_used_count") / (self.key("expert_count") or 1)
        untied = "output.weight" in tensors
        return sum(
            info.nbytes * (share if "_exps." in name else 1)
            for name, info in tensors.items()
            if not (untied and name == "token_embd.weight")
        )

    def as_json(self) -> dict[str, Any]:
        """Every figure, run by run, and what the table says about it."""
        return {
            "path": str(self.path),
            "file_bytes": self.file_bytes,
            "token_bytes": self.token_bytes,
            "engines": self.engines,
            "figures": self.figures,
            "promises": {name: dict(zip(("must", "aim"), promises(self, name), strict=True)) for name in self.figures},
            "facts": self.facts,
            "notes": self.notes,
        }


def promises(report: Report, name: str) -> tuple[str, str]:
    """What zoo promises of a figure ("must") and what it aims at, each with whether that is met; "" for nothing."""
    if name == TOGETHER:
        ratio = report.median(name) / report.median("decode at 0, tok/s")
        return said(f"3x one ({ratio:.2f})", ratio >= 3) if report.token_bytes < SMALL else f"{ratio:.2f}x one", ""
    if name.startswith("decode at"):
        ratio, (must, aim) = report.ratio(name), decode_targets(report)
        found = [said(f"{aim}x", ratio >= aim)]
        if aim == 1.6:
            found.append(said("90 % of the bandwidth", report.share(name) >= 0.9))
        return said(f"{must}x", ratio >= must), ", ".join(found)
    if name.startswith("prefill"):
        ratios = {peer: report.ratio(name, peer) for peer in PREFILL_MUST if peer in report.engines}
        musts = [said(f"{PREFILL_MUST[peer]}x {peer}", ratio >= PREFILL_MUST[peer]) for peer, ratio in ratios.items()]
        return ", ".join(musts), said("2x the better", min(ratios.values()) >= 2)
    if name == LOAD:
        few = len(cast(Sized, report.gguf.metadata["tokenizer.ggml.tokens"])) < 100_000
        must, aim = (0.5, 0.2) if few else (1.5, 0.8)
        return said(f"{must} s", report.median(name) <= must), said(f"{aim} s", report.median(name) <= aim)
    if name == MEMORY:
        bound, copied = report.file_bytes / 1e6 + report.facts["kv_mb"] + 300, report.facts["copied_mb"]
        kept = copied <= report.file_bytes / 1e8
        return said(f"{bound:.0f} MB", report.median(name) <= bound), said(f"no second copy ({copied:.1f} MB)", kept)
    return "", ""


def decode_targets(report: Report) -> tuple[float, float]:
    """Must and aim over llama.cpp, whose plain path for Q8_0 leaves more room than its own for 4 bits."""
    if report.token_bytes < SMALL:
        return 1.5, 2.0
    sizes = Counter[str]()
    for info in report.gguf.tensors.values():
        sizes[info.type] += info.nbytes
    return (1.2, 1.6) if sizes.most_common(1)[0][0] == "Q8_0" else (1.1, 1.3)


def said(bound: str, kept: bool) -> str:
    return f"{bound} {'met' if kept else '**missed**'}"


def table(report: Report) -> str:
    """The report of a file in Markdown."""
    facts, engines = report.facts, [engine for engine in (ZOO, PEER, TRANSFORMERS) if engine in report.engines]
    lines = [f"{report.path.name}: {report.file_bytes / 1e6:.0f} MB, {report.token_bytes / 1e6:.0f} MB read per token"]
    lines += [f"{name}: {engine}" for name, engine in report.engines.items()]
    lines += [f"note: {note}" for note in report.notes]
    lines += [
        f"the cache holds {facts['kv_mb']:.0f} MB; {facts['import_s']:.2f} s of the load import zoo, after torch",
        "",
    ]
    lines += [row("", *engines, "ratio (each run)", "must", "aim"), row(*["---"] * (len(engines) + 4))]
    for name, found in report.figures.items():
        middle = max if name == BANDWIDTH else statistics.median
        values = [number(middle(found[engine])) if engine in found else "" for engine in engines]
        ratios = report.ratios(name) if PEER in found else []
        each = f"{report.ratio(name):.2f} ({' '.join(f'{one:.2f}' for one in ratios)})" if ratios else ""
        lines.append(row(name, *values, each, *promises(report, name)))
        if name.startswith("decode at"):
            shares = [f"{report.share(name, engine):.0%}" if engine in found else "" for engine in engines]
            lines.append(row("of the best read bandwidth", *shares, "", "", ""))
    return "\n".join(lines)


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"

"""`zoo bench`: prefill and decode speed of a model, alone."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo.cli.options import load, load_options
from zoo.cli.synthetic import load_synthetic
from zoo.errors import ContextLengthError, UsageError

if TYPE_CHECKING:
    from zoo.llm import LLM


@click.command("bench")
@load_options
@click.option("--prompt-tokens", default=512, show_default=True, type=click.IntRange(1))
@click.option("--gen-tokens", default=128, show_default=True, type=click.IntRange(2))
@click.option(
    "--synthetic", metavar="NAME", help="Random weights in the shape of a published model, or of a config.json."
)
@click.option("--form", "form_name", metavar="F", help="Their form: q4_k_m, fp8, ...  [default: bf16]")
@click.option("--layers", type=click.IntRange(1), metavar="N", help="Only so many of its layers.")
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(1), help="Runs; the median counts.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench(
    model_path: str | None,
    prompt_tokens: int,
    gen_tokens: int,
    synthetic: str | None,
    form_name: str | None,
    layers: int | None,
    repeat: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure tokens per second of prefill and decode, load time and peak memory.

    With --synthetic the weights are random, made on the device, so that no file of the model is needed.
    """
    if (model_path is None) == (synthetic is None):
        raise UsageError("bench needs a model", remedy="give --model-path X or --synthetic NAME, one of them")
    for option, value in (("--layers", layers), ("--form", form_name)):
        if model_path is not None and value is not None:
            raise UsageError(f"{option} shapes a synthetic model", remedy="leave it out, or give --synthetic NAME")
    form = form_name or "bf16"
    opened = load(model_path, options) if model_path else load_synthetic(synthetic or "", form, layers, options)
    with opened as llm:
        report = measure(llm, prompt_tokens, gen_tokens, repeat)
    if as_json:
        click.echo(json.dumps(report))
        return
    click.echo(f"{report['model']['path']} ({report['model']['plugin']}, {report['model']['device']})")
    click.echo(f"load     {report['load_s']:8.2f} s")
    click.echo(f"prefill  {report['prefill_tok_s']:8.1f} tokens/s over {prompt_tokens} tokens")
    click.echo(f"decode   {report['decode_tok_s']:8.1f} tokens/s over {gen_tokens} tokens")
    click.echo(f"memory   {report['peak_rss_mb']:8.0f} MB at the most")
    if report["peak_device_mb"] is not None:
        click.echo(f"on GPU   {report['peak_device_mb']:8.0f} MB at the most")


def measure(llm: LLM, prompt_tokens: int, gen_tokens: int, repeat: int) -> dict[str, Any]:
    """The report as JSON values: medians over `repeat` runs of one greedy generation each.

    Raises ContextLengthError where prompt and generation together exceed the context.
    """
    from zoo.engine.sequence import SamplingParams
    from zoo.weights import pages

    if prompt_tokens + gen_tokens > llm.context:
        raise ContextLengthError(
            f"{prompt_tokens} prompt and {gen_tokens} generated tokens exceed the context of {llm.context}",
            tokens=prompt_tokens + gen_tokens,
            context=llm.context,
            remedy="measure fewer, or load with a larger --context",
        )

    size = llm.tokenizer.vocab_size
    # Ids spread over the vocabulary: a constant one would measure a cache.
    prompt = [(i * 7919 + 13) % size for i in range(prompt_tokens)]
    params = SamplingParams(max_tokens=gen_tokens, temperature=0, ignore_eos=True)
    # What is done once, such as recording a decode step, is not measured.
    pages.wait()
    llm.generate(prompt[:8], SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))
    prefill, decode = [], []
    for _ in range(repeat):
        llm.reset()
        timings = llm.generate(prompt, params).timings
        prefill.append(timings.prefill_tok_s)
        decode.append(timings.decode_tok_s)
    return {
        "prefill_tok_s": statistics.median(prefill),
        "decode_tok_s": statistics.median(decode),
        "load_s": llm.load_s,
        "peak_rss_mb": peak_rss_mb(),
        "peak_device_mb": peak_device_mb(llm.info.device),
        "prompt_tokens": prompt_tokens,
        "gen_tokens": gen_tokens,
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": asdict(llm.info),
    }


def peak_device_mb(device: str) -> float | None:
    """The most memory that torch ever held on a GPU, in MB (10^6 bytes); None for a CPU."""
    import torch

    return torch.cuda.max_memory_allocated(device) / 1e6 if device.startswith("cuda") else None


def peak_rss_mb() -> float:
    """The most memory this process ever held, in MB (10^6 bytes)."""
    status = Path("/proc/self/status")
    if status.is_file():
        # VmHWM is this program's own; ru_maxrss begins at what the parent held when it forked.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6

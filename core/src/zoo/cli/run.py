"""`zoo run`: one answer, streamed, or a chat."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from zoo.cli.options import load, load_options
from zoo.errors import HubError, PluginError, UsageError, ZooError
from zoo.settings import Settings

if TYPE_CHECKING:
    from zoo.engine.result import Generation
    from zoo.engine.sequence import SamplingParams
    from zoo.llm import LLM
    from zoo.plugin.manager import PluginManager

DEMO = "smollm2"
DEMO_ARCHITECTURE = "llama"
DEMO_PLUGIN = "zoo-llama"
_SAMPLING = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed", "stop")


@click.command("run")
@click.argument("prompt", required=False)
@load_options
@click.option("--max-tokens", type=int, help="Stop after so many tokens.  [default: end of the context]")
@click.option("--temperature", type=float, help="0 is greedy.  [default: the model's, else 0.7]")
@click.option("--top-k", type=int, help="Keep the K likeliest tokens; 0 keeps all.")
@click.option("--top-p", type=float, help="Keep the likeliest tokens that reach this probability together.")
@click.option("--min-p", type=float, help="Drop tokens below this part of the likeliest one's probability.")
@click.option("--repeat-penalty", type=float, help="Above 1: make tokens that were seen less likely.")
@click.option("--seed", type=int, help="Same seed, same text.")
@click.option("--stop", multiple=True, help="End the answer at this text (may be given again).")
@click.option("--system", help="System message of the conversation.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the chat template.")
@click.option("--stats", is_flag=True, help="Print speed to stderr after the answer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def run(
    prompt: str | None,
    model_path: str | None,
    system: str | None,
    raw: bool,
    stats: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Answer PROMPT. Without one, on a terminal: a chat.

    `-`, or no PROMPT in a pipe: it is read from stdin, without the line end at its end. Only the answer goes to stdout;
    everything else goes to stderr.
    """
    from zoo.engine.sequence import SamplingParams

    params = SamplingParams(**{name: options.pop(name) for name in _SAMPLING})
    if raw and system:
        raise UsageError("--system needs the chat template, --raw leaves it out", remedy="give one of them")
    chatting = prompt is None and sys.stdin.isatty()
    if chatting and (raw or as_json):
        raise UsageError(f"{'--raw' if raw else '--json'} needs a prompt", remedy="give one, or - for stdin")
    if prompt == "-" or (prompt is None and not chatting):
        prompt = _stdin()
    if prompt is not None and not (prompt if raw else prompt.strip()):
        raise UsageError("the prompt is empty", remedy="give one as an argument or on stdin")
    with load(model_path or demo_model(), options) as llm:
        _say_notes(llm)
        if chatting:
            from zoo.cli.chat import Chat

            Chat(llm, params, system, stats).loop()
            return
        assert prompt is not None
        messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": prompt}]
        plain = raw or not llm.has_chat_template
        if plain and not raw:
            click.echo("zoo: the model has no chat template; the prompt is continued as it is", err=True)
        if plain and system:
            raise UsageError("--system needs a chat template", remedy="leave it out, or put the text into the prompt")
        result = show(llm, prompt if plain else messages, params, quiet=as_json)
        if as_json:
            click.echo(json.dumps({**asdict(result), "model": asdict(llm.info)}, ensure_ascii=False))
        if stats:
            say_stats(result)


def show(
    llm: LLM, prompt: Any, params: SamplingParams, *, quiet: bool = False, seen: list[str] | None = None
) -> Generation:
    """Stream an answer to stdout, its reasoning dimmed (a terminal) or to stderr (a pipe).

    Returns the Generation; `seen` collects the text so far, for a caller that survives an interruption.
    """
    out = sys.stdout
    terminal = out.isatty()
    thinking = False
    # Closed at once when interrupted: the next answer must not find this one in the engine.
    with closing(llm.stream(prompt, params)) as stream:
        while True:
            try:
                piece = next(stream)
            except StopIteration as end:
                result: Generation = end.value
                break
            if quiet:
                continue
            if piece.reasoning:
                thinking = True
                click.echo(click.style(piece.reasoning, dim=True), nl=False, err=not terminal)
            if piece.text:
                if thinking:
                    click.echo("\n", nl=False, err=not terminal)
                    thinking = False
                if seen is not None:
                    seen.append(piece.text)
                out.write(piece.text)
                out.flush()
    if not quiet:
        out.write("\n")
        out.flush()
    return result


def say_stats(result: Generation) -> None:
    """One line about speed, to stderr."""
    timings = result.timings
    click.echo(
        f"[{result.prompt_tokens} prompt tokens at {timings.prefill_tok_s:.1f}/s, {result.completion_tokens} tokens at "
        f"{timings.decode_tok_s:.1f}/s, first after {timings.first_token_s:.2f} s, loaded in {timings.load_s:.2f} s, "
        f"{result.finish_reason}]",
        err=True,
    )


def _stdin() -> str:
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"stdin is no UTF-8 text: byte {error.start}", remedy="convert it, for example with iconv"
        ) from None
    # The line end is of the file or of echo, not of the prompt, as in the shell's $(...).
    return text.removesuffix("\n").removesuffix("\r")


def _say_notes(llm: LLM) -> None:
    for note in llm.notes:
        click.echo(f"zoo: {note}", err=True)


def demo_model() -> str:
    """The demo model; offers to pull it where a person can answer, else says the commands."""
    from zoo.hub import resolve
    from zoo.plugin.manager import PluginManager

    settings = Settings.from_env()
    install = "" if _runs_demo(PluginManager.discover(settings)) else f"pip install {DEMO_PLUGIN}"
    try:
        resolve(DEMO, settings)
    except ZooError as error:
        found = f"no --model-path is given, and the demo model cannot be used: {error.message}"
        if install or not (sys.stdin.isatty() and sys.stderr.isatty()):
            commands = " and ".join(f"`{command}`" for command in (install, f"zoo pull {DEMO}") if command)
            raise HubError(found, remedy=f"run {commands} first, or give --model-path X") from None
        if not click.confirm(f"The demo model ({DEMO}, 98 MB) is not here. Pull it now?", default=True, err=True):
            raise click.Abort() from None
        from zoo.cli.pull import StderrReporter
        from zoo.hub import pull

        with StderrReporter() as reporter:
            pull(DEMO, settings, reporter)
        return DEMO
    if install:
        raise PluginError("no plugin runs the demo model", remedy=f"run `{install}` first, or give --model-path X")
    return DEMO


def _runs_demo(manager: PluginManager) -> bool:
    return any(row.error is None and DEMO_ARCHITECTURE in row.architectures for row in manager.rows)

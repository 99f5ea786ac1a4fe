"""`zoo run`: what stands on stdout and what on stderr, every option, every refusal."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import tokenizers
import torch

from zoo.cli import run as run_module
from zoo.engine.result import Generation, Piece, Timings

SHORT = ("--max-tokens", "8", "--temperature", "0")


def greedy(tiny: Any, prompt: str, count: int = 8) -> str:
    """The answer of transformers to a prompt as it is, for models whose greedy text meets no end token."""
    tokenizer = tokenizers.Tokenizer.from_file(str(tiny.path / "tokenizer.json"))
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    out = tiny.reference.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=count, pad_token_id=0)
    return str(tokenizer.decode(out[0, len(ids) :].tolist()))


def chat_prompt(text: str, system: str | None = None) -> str:
    head = f"system: {system}<|im_end|>\n" if system else ""
    return f"{head}user: {text}<|im_end|>\nassistant: "


def test_only_the_answer_is_on_stdout(call: Any, tiny: Any) -> None:
    done = call("run", "the theory", "--model-path", tiny.path, *SHORT)
    assert done.code == 0
    assert done.out == greedy(tiny, chat_prompt("the theory")) + "\n"
    assert done.lines == [
        "zoo: context 256 tokens, what the model was made for (--context changes it)",
        *(line for line in done.lines[1:] if "no CPU kernels" in line),
    ]


def test_slow_kernels_are_announced_in_one_line(call: Any, tiny: Any, reference_kernels: None) -> None:
    done = call("run", "the theory", "--model-path", tiny.path, *SHORT)
    assert [line for line in done.lines if "kernels" in line] == ["zoo: no CPU kernels: ZOO_CPU_ISA is off"]
    done = call("run", "the theory", "--model-path", tiny.path, "--dtype", "bfloat16", *SHORT)
    assert [line for line in done.lines if "kernels" in line] == ["zoo: no CPU kernels: ZOO_CPU_ISA is off"]


def test_a_question_to_the_demo_model(call: Any, smollm2: Path) -> None:
    done = call("run", "Name the capital of France.", "--temperature", "0", "--max-tokens", "8", "--stats")
    assert done.code == 0
    assert "Paris" in done.out
    assert "36 prompt tokens at" in done.lines[-1]  # with the template's own system message
    assert "tokens/s" not in done.out


@pytest.mark.parametrize(
    ("args", "stdin"),
    [(("-",), b"the theory\n"), ((), b"the theory"), (("-",), b"the theory\r\n"), (("the theory",), b"ignored")],
)
def test_where_the_prompt_comes_from(call: Any, tiny: Any, args: tuple[str, ...], stdin: bytes) -> None:
    done = call("run", *args, "--model-path", tiny.path, *SHORT, stdin=stdin)
    assert done.out == greedy(tiny, chat_prompt("the theory")) + "\n"


def test_raw_continues_the_prompt(call: Any, tiny: Any) -> None:
    done = call("run", "the theory", "--raw", "--model-path", tiny.path, *SHORT)
    assert done.out == greedy(tiny, "the theory") + "\n"


def test_a_system_message(call: Any, tiny: Any) -> None:
    done = call("run", "the theory", "--system", "other words", "--model-path", tiny.path, *SHORT)
    assert done.out == greedy(tiny, chat_prompt("the theory", "other words")) + "\n"


def test_without_a_template_the_prompt_is_continued_and_said_so(call: Any, plain: Path) -> None:
    done = call("run", "the theory", "--model-path", plain, *SHORT)
    assert done.code == 0
    assert "zoo: the model has no chat template; the prompt is continued as it is" in done.lines
    assert call("run", "the theory", "--raw", "--model-path", plain, *SHORT).out == done.out
    refused = call("run", "the theory", "--system", "x", "--model-path", plain)
    assert (refused.code, refused.out) == (2, "")
    assert "--system needs a chat template" in refused.lines[-1]


def test_json_is_one_object(call: Any, tiny: Any) -> None:
    done = call("run", "the theory", "--model-path", tiny.path, "--json", "--context", "128", *SHORT)
    report = json.loads(done.out)
    assert done.out.count("\n") == 1
    assert set(report) == {
        *("text", "reasoning", "token_ids", "prompt_tokens", "completion_tokens"),
        *("finish_reason", "logprobs", "prompt_logprobs", "cached_tokens", "timings", "model"),
    }
    assert report["text"] == greedy(tiny, chat_prompt("the theory"))
    assert (report["completion_tokens"], report["finish_reason"]) == (8, "length")
    assert set(report["timings"]) == {"load_s", "prefill_tok_s", "decode_tok_s", "first_token_s"}
    assert all(value > 0 for value in report["timings"].values())
    model = report["model"]
    assert (model["plugin"], model["architecture"], model["format"]) == ("llama", "LlamaForCausalLM", "safetensors")
    assert (model["path"], model["context"]) == (str(tiny.path), 128)
    assert "context 128 tokens, as asked" in done.err


def test_stop_and_seed(call: Any, tiny: Any) -> None:
    def answer(*more: str) -> Any:
        ask = ("run", "the theory", "--model-path", tiny.path, "--json", "--max-tokens", "12")
        return json.loads(call(*ask, *more).out)

    hot = ("--temperature", "2", "--top-k", "0", "--top-p", "1", "--min-p", "0")
    assert answer(*hot, "--seed", "5")["text"] == answer(*hot, "--seed", "5")["text"]
    assert answer(*hot, "--seed", "5")["text"] != answer(*hot, "--seed", "6")["text"]
    assert answer(*hot, "--seed", "5", "--top-k", "1")["text"] == answer("--temperature", "0")["text"]
    full = answer("--temperature", "0")["text"]
    stops = full[len(full) // 2 :][:2], "never said by anyone"
    stopped = answer("--temperature", "0", "--stop", stops[1], "--stop", stops[0])
    assert (stopped["text"], stopped["finish_reason"]) == (full[: full.index(stops[0])], "stop")
    penalised = answer("--temperature", "0", "--repeat-penalty", "50")
    assert penalised["text"] != full
    assert len(set(penalised["token_ids"])) == len(penalised["token_ids"])


def test_set_replaces_a_key(call: Any, tiny: Any) -> None:
    done = call("run", "x", "--model-path", tiny.path, "--set", "max_position_embeddings=64", *SHORT)
    assert "context 64 tokens" in done.lines[0]


def test_threads(call: Any, tiny: Any) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert call("run", "x", "--model-path", tiny.path, "--threads", "1", *SHORT).code == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


USAGE = {
    "negative temperature": (("--temperature", "-1"), "temperature is -1.0"),
    "temperature nan": (("--temperature", "nan"), "temperature is nan"),
    "top_p 2": (("--top-p", "2"), "top_p is 2.0"),
    "min_p": (("--min-p", "-0.1"), "min_p is -0.1"),
    "top_k": (("--top-k", "-1"), "top_k is -1"),
    "no tokens": (("--max-tokens", "0"), "max_tokens is 0"),
    "penalty": (("--repeat-penalty", "0"), "repeat_penalty is 0.0"),
    "seed": (("--seed", "-1"), "seed is -1"),
    "empty stop": (("--stop", ""), "stop holds"),
    "set without =": (("--set", "context"), "'context' is not KEY=VALUE"),
    "set without key": (("--set", "=1"), "'=1' is not KEY=VALUE"),
    "set into a number": (("--set", "hidden_size.x=1"), "hidden_size"),
    "device": (("--device", "tpu"), "device 'tpu' is unknown; use auto, cpu, cuda or cuda:N"),
    "dtype": (("--dtype", "int8"), "dtype 'int8' is unknown"),
    "context": (("--context", "0"), "--context"),
    "threads": (("--threads", "0"), "--threads"),
    "more threads than a system starts": (("--threads", "20000"), "--threads"),
    "no number": (("--max-tokens", "many"), "'many' is not a valid integer"),
    "no such option": (("--tempreature", "1"), "--tempreature"),
    "raw and system": (("--raw", "--system", "x"), "--system needs the chat template"),
}


@pytest.mark.parametrize("case", USAGE)
def test_usage_errors(call: Any, tiny: Any, case: str) -> None:
    args, words = USAGE[case]
    done = call("run", "hi", "--model-path", tiny.path, *args)
    assert (done.code, done.out) == (2, "")
    assert words in done.lines[-1]


@pytest.mark.parametrize("stdin", [b"", b"\n", b"  \n"])
def test_an_empty_prompt(call: Any, tiny: Any, stdin: bytes) -> None:
    for args in (("-",), ()):
        done = call("run", *args, "--model-path", tiny.path, stdin=stdin)
        assert (done.code, done.out) == (2, "")
        assert done.lines == ["zoo: the prompt is empty; give one as an argument or on stdin"]


def test_stdin_that_is_no_text(call: Any, tiny: Any) -> None:
    done = call("run", "-", "--model-path", tiny.path, stdin=b"abc\xff")
    assert (done.code, done.lines) == (2, ["zoo: stdin is no UTF-8 text: byte 3; convert it, for example with iconv"])


FAILURES = {
    "prompt too long": (("the " * 300,), r"the prompt has 3\d\d tokens, the context 256; shorten the prompt"),
    "context too large": (("x", "--context", "1000"), "1000 tokens is asked for, the model was made for 256"),
    "plugin": (("x", "--plugin", "nobody"), "there is no plugin 'nobody'; those that work: .*llama"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_errors_are_one_line(call: Any, tiny: Any, case: str) -> None:
    args, words = FAILURES[case]
    done = call("run", *args, "--model-path", tiny.path)
    assert (done.code, done.out) == (1, "")
    assert re.search(words, done.lines[-1])
    assert "Traceback" not in done.err


def test_a_path_that_is_not_there(call: Any, tmp_path: Path) -> None:
    done = call("run", "x", "--model-path", tmp_path / "a\nb\x1b[31m")
    assert (done.code, len(done.lines)) == (1, 1)
    assert "does not exist" in done.err
    assert r"a\nb\x1b[31m" in done.err


def test_debug_shows_the_traceback(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.cli.main import main
    from zoo.errors import PluginError

    for args, variable in ((["run", "x", "--debug"], ""), (["--debug", "run", "x"], ""), (["run", "x"], "1")):
        monkeypatch.setenv("ZOO_DEBUG", variable)
        with pytest.raises(PluginError):
            main([*args, "--plugin", "nobody", "--model-path", str(tiny.path)])


def test_behind_two_dashes_debug_is_a_prompt(call: Any, tiny: Any) -> None:
    done = call("run", "--model-path", tiny.path, *SHORT, "--", "--debug")
    assert (done.code, done.out) == (0, greedy(tiny, chat_prompt("--debug")) + "\n")


def test_weights_larger_than_memory_are_announced(call: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=400_000, available=300_000))
    done = call("run", "the theory", "--model-path", tiny.path, *SHORT)
    assert done.code == 0
    assert "larger than memory" in done.lines[0]
    assert "what free memory holds" in done.lines[1]
    assert done.out == greedy(tiny, chat_prompt("the theory")) + "\n"


class TestDemo:
    """Without --model-path."""

    @pytest.fixture(autouse=True)
    def empty_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ZOO_CACHE", str(tmp_path))

    def test_a_pipe_gets_the_command(self, call: Any) -> None:
        done = call("run", "hi")
        assert (done.code, done.out, len(done.lines)) == (1, "", 1)
        assert "run `zoo pull smollm2` first, or give --model-path X" in done.err

    def test_and_that_for_the_plugin(self, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(run_module, "_runs_demo", lambda manager: False)
        done = call("run", "hi")
        assert done.code == 1
        assert "run `pip install zoo-llama` and `zoo pull smollm2` first" in done.err

    def terminal(self, monkeypatch: pytest.MonkeyPatch, answer: str) -> list[str]:
        stdin = io.StringIO(answer)
        stdin.isatty = lambda: True  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        pulled: list[str] = []
        monkeypatch.setattr("zoo.hub.pull", lambda name, settings, reporter: pulled.append(name))
        return pulled

    def test_a_terminal_is_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pulled = self.terminal(monkeypatch, "y\n")
        assert run_module.demo_model() == "smollm2"
        assert pulled == ["smollm2"]

    def test_and_may_decline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import click

        pulled = self.terminal(monkeypatch, "n\n")
        with pytest.raises(click.Abort):
            run_module.demo_model()
        assert pulled == []


RESULT = Generation("Paris", "where", (1,), 1, 1, "stop", Timings(0, 0, 0, 0))


def thinker() -> Any:
    """Stands for a model that thinks aloud: tags are a plugin's business, where pieces go is the command's."""

    def stream(prompt: Any, params: Any) -> Iterator[Piece]:
        yield Piece(reasoning="where ")
        yield Piece(reasoning="is it")
        yield Piece(text="Par")
        yield Piece(text="is")
        return RESULT

    return SimpleNamespace(stream=stream)


def test_reasoning_goes_to_stderr_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_module.show(thinker(), "x", None) is RESULT  # type: ignore[arg-type]
    assert capsys.readouterr() == ("Paris\n", "where is it\n")


def test_reasoning_is_dimmed_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", screen)
    run_module.show(thinker(), "x", None)  # type: ignore[arg-type]
    assert screen.getvalue() == "\x1b[2mwhere \x1b[0m\x1b[2mis it\x1b[0m\nParis\n"


@pytest.mark.parametrize("where", ["load", "stream"])
def test_an_interruption_exits_130_without_a_traceback(
    call: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"zoo.llm.LLM.{where}", interrupted)
    done = call("run", "hi", "--model-path", tiny.path)
    assert (done.code, done.out) == (130, "")
    assert "Traceback" not in done.err


def test_a_locale_that_cannot_write_the_answer(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.cli.main import main

    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    monkeypatch.setattr(run_module, "show", lambda *args, **kwargs: print("é") or RESULT)
    with pytest.raises(SystemExit) as exit:
        main(["run", "hi", "--model-path", str(tiny.path)])
    sys.stdout.flush()
    assert (exit.value.code, buffer.getvalue()) == (0, rb"\xe9" + b"\n")

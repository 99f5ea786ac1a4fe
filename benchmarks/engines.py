"""What benchmarks/cpu.py starts: one engine on one file, in a process of its own.

    python benchmarks/engines.py ENGINE '{"path": ..., "threads": 2, "context": 4256, "generate": 64}'

It says what was loaded as a line of JSON, then answers lines of its standard input: ["prefill", 512], ["decode", 4096]
and ["together", 16] with tokens per second, ["memory"] with MB, ["read"] with GB/s. An engine is imported only when it
is measured: the peer's interpreter has neither zoo nor torch.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

BANDWIDTH_BYTES = 1 << 29
BATCH = 2048  # tokens that llama.cpp takes at once, its default


def peak_mb() -> float:
    """The most memory that this process ever held, in MB (10^6 bytes)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024 / 1e6


def prompt(tokens: int, vocab: int) -> list[int]:
    """Ids spread over the vocabulary: a constant one would measure a cache."""
    return [(i * 7919 + 13) % vocab for i in range(tokens)]


class Zoo:
    """zoo through its public interface: scheduling, sampling and text are part of every figure."""

    def __init__(self, job: dict[str, Any]) -> None:
        import torch  # noqa: F401

        self._before, started = peak_mb(), time.perf_counter()
        from zoo import LLM

        imported = time.perf_counter()
        self._llm = LLM.load(job["path"], device="cpu", threads=job["threads"], context=job["context"])
        ended = time.perf_counter()
        from zoo.weights import pages

        pages.wait()
        self._generate, model = job["generate"], cast(Any, self._llm.model)
        self.facts = {
            "engine": f"computing in {self._llm.info.dtype}",
            "load_s": ended - started,
            "import_s": imported - started,  # of zoo, after torch
            "kv_mb": self._kv_bytes() / 1e6,
            "copied_mb": self._copied_bytes(model) / 1e6,
            "notes": self._llm.notes,
            "shape": _shape(model.config),
        }
        self._rates(8, 4)  # what is done once, such as recording a decode step, is not measured

    def prefill(self, tokens: int) -> float:
        self._llm.reset()  # or the prefix is still in the cache
        return float(self._rates(tokens, 1).prefill_tok_s)

    def decode(self, depth: int) -> float:
        """From the second time on the prompt is in the cache."""
        return float(self._rates(max(depth, 1), self._generate + 1).decode_tok_s)

    def together(self, sequences: int) -> float:
        """Decode of so many sequences in one batch, their tokens added up."""
        from zoo.engine.sequence import SamplingParams

        params = SamplingParams(max_tokens=self._generate + 1, temperature=0, ignore_eos=True)
        prompts = [[token] for token in prompt(sequences, self._llm.tokenizer.vocab_size)]
        return sum(float(answer.timings.decode_tok_s) for answer in self._llm.generate(prompts, params))

    def memory(self) -> float:
        return peak_mb() - self._before

    def _rates(self, tokens: int, new: int) -> Any:
        from zoo.engine.sequence import SamplingParams

        params = SamplingParams(max_tokens=new, temperature=0, ignore_eos=True)
        return self._llm.generate(prompt(tokens, self._llm.tokenizer.vocab_size), params).timings

    def _kv_bytes(self) -> int:
        from zoo.cache.spec import bytes_per_token

        element_bytes = self._llm.engine.runner.cache.dtype.itemsize
        return bytes_per_token(self._llm.model.cache_spec(), element_bytes) * self._llm.context

    def _copied_bytes(self, model: Any) -> int:
        """Bytes that the weights take beyond one copy: those outside the mapped file, and what of it lies in memory."""
        lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
        folder = str(Path(self._llm.info.path).resolve().parent)
        mapped = [line[0].split("-") for line in lines if len(line) == 6 and line[5].startswith(folder)]
        ranges = [(int(first, 16), int(end, 16)) for first, end in mapped]
        weights = dict(found for module in model.modules() for found in _tensors(vars(module).values()))
        outside = sum(
            nbytes for address, nbytes in weights.items() if not any(first <= address < end for first, end in ranges)
        )
        resident, file_bytes, inside = 0, 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            field, *rest = line.split(maxsplit=5)
            if "-" in field:
                inside = len(rest) == 5 and rest[4].startswith(folder)
            elif inside and field == "Rss:":
                resident += int(rest[0]) << 10
            elif inside and field == "Size:":
                file_bytes += int(rest[0]) << 10
        return max(0, outside + resident - file_bytes)


class Transformers:
    """Prefill of transformers in bfloat16: random weights in the file's shape, which takes as long as the real ones."""

    def __init__(self, job: dict[str, Any]) -> None:
        import torch
        import transformers as hf

        self._torch = torch
        torch.set_num_threads(job["threads"])
        torch.manual_seed(0)
        config = hf.AutoConfig.for_model(**job["shape"])
        self._vocab = config.vocab_size
        self._model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        self.facts = {"engine": f"transformers {hf.__version__}, bfloat16"}
        self.prefill(8)

    def prefill(self, tokens: int) -> float:
        ids = self._torch.tensor([prompt(tokens, self._vocab)])
        with self._torch.inference_mode():
            return tokens / _seconds(lambda: self._model(ids, logits_to_keep=1, use_cache=True))


class Bandwidth:
    """GB/s that all threads together read memory with: the best of some passes over more than any cache holds."""

    def __init__(self, job: dict[str, Any]) -> None:
        from zoo.kernels.native import library
        from zoo.kernels.native.pool import Pool
        from zoo.weights import pages

        usable, reason = library.usable()
        if not usable:
            raise SystemExit(f"the native library is needed: {reason}")
        self._pool = Pool(job["threads"])
        region, self._data = pages.memory(BANDWIDTH_BYTES)
        self._data.fill_(1)
        pages.collapse_later(region, self._data, lambda: 0)
        pages.wait()
        self.facts = {"engine": f"instruction set {self._pool.isa}"}

    def read(self) -> float:
        return BANDWIDTH_BYTES / min(_seconds(lambda: self._pool.read_s(self._data)) for _ in range(6)) / 1e9


class LlamaCpp:
    """llama.cpp by its C interface, as its own benchmark uses it: chosen tokens are fed, nothing is sampled."""

    def __init__(self, lib: Any, name: str, flash_attention: tuple[str, int], job: dict[str, Any]) -> None:
        self._lib, self._generate, self._before = lib, job["generate"], peak_mb()
        started = time.perf_counter()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        model = lib.llama_model_load_from_file(os.fsencode(job["path"]), params)
        if not model:
            raise SystemExit(f"{name} does not load {job['path']}")
        options = lib.llama_context_default_params()
        options.n_ctx, options.n_batch = job["context"], BATCH
        options.n_threads = options.n_threads_batch = job["threads"]
        setattr(options, *flash_attention)
        self._context = lib.llama_init_from_model(model, options)
        if not self._context:
            raise SystemExit(f"{name} makes no context for {job['path']}")
        self.facts = {"engine": name, "load_s": time.perf_counter() - started}
        self._vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        self._batch, self._held = lib.llama_batch_init(BATCH, 0, 1), 0
        self.prefill(8)
        self.decode(0)

    def prefill(self, tokens: int) -> float:
        self._empty()
        ids = prompt(tokens, self._vocab)
        return tokens / _seconds(lambda: self._feed(ids, 0))

    def decode(self, depth: int) -> float:
        depth = max(depth, 1)
        if self._held != depth or not self._cut(depth):
            self._empty()
            self._feed(prompt(depth, self._vocab), 0)
        self._held = depth
        ids = prompt(self._generate, self._vocab)

        def steps() -> None:
            for i, token in enumerate(ids):
                self._feed([token], depth + i)

        return len(ids) / _seconds(steps)

    def memory(self) -> float:
        return peak_mb() - self._before

    def _feed(self, ids: list[int], start: int) -> None:
        batch = self._batch
        for first in range(0, len(ids), BATCH):
            part = ids[first : first + BATCH]
            batch.n_tokens = len(part)
            for i, token in enumerate(part):
                batch.token[i], batch.pos[i] = token, start + first + i
                batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, i == len(part) - 1
            if status := self._lib.llama_decode(self._context, batch):
                raise SystemExit(f"llama_decode: {status}")
            self._lib.llama_get_logits(self._context)  # waits for the result

    def _empty(self) -> None:
        self._held = 0
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def _cut(self, length: int) -> bool:
        return bool(self._lib.llama_memory_seq_rm(self._lib.llama_get_memory(self._context), 0, length, -1))


def llama_cpp_python(job: dict[str, Any]) -> LlamaCpp:
    """llama.cpp as llama-cpp-python was built."""
    import llama_cpp

    llama_cpp.llama_log_set(_quiet(llama_cpp), None)
    llama_cpp.llama_backend_init()
    flags = llama_cpp.llama_print_system_info().decode().split("|")
    sets = [flag.split("=")[0].split(":")[-1].strip() for flag in flags if flag.strip().endswith("= 1")]
    name = f"llama.cpp of llama-cpp-python {llama_cpp.__version__} (built with {' '.join(sets)})"
    return LlamaCpp(llama_cpp, name, ("flash_attn_type", llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO), job)


def xllamacpp(job: dict[str, Any]) -> LlamaCpp:
    """llama.cpp of the prebuilt wheel xllamacpp, which is not tuned to the machine."""
    import ctypes

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from oracle import llamacpp

    lib = llamacpp.library()
    lib.llama_memory_seq_rm.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]
    lib.llama_memory_seq_rm.restype = ctypes.c_bool
    name = f"llama.cpp of xllamacpp {llamacpp.VERSION} (prebuilt, not tuned to this machine)"
    return LlamaCpp(lib, name, ("flash_attention", -1), job)


def _quiet(llama_cpp: Any) -> Any:
    callback = llama_cpp.llama_log_callback(lambda level, text, data: None)
    _KEPT.append(callback)  # the library calls it as long as it lives
    return callback


_KEPT: list[Any] = []


def _shape(config: Any) -> dict[str, Any]:
    """The keys of a configuration that decide how much is computed, as Hugging Face names them: no float is one."""
    shape = {key: value for key, value in vars(config).items() if isinstance(value, int)}
    return {**shape, "layer_types": list(config.layer_types)} if hasattr(config, "layer_types") else shape


def _tensors(values: Iterable[Any]) -> Iterator[tuple[int, int]]:
    """Address and bytes of each tensor among the attributes of a module, packed weights included."""
    for value in values:
        if hasattr(value, "data_ptr"):
            yield value.data_ptr(), value.nbytes
        elif hasattr(value, "parts"):
            yield from _tensors(value.parts.values())
        elif hasattr(value, "views"):
            yield from _tensors(value.views)
        elif isinstance(value, dict):
            yield from _tensors(value.values())


def _seconds(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


ENGINES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "zoo": Zoo,
    "llama-cpp-python": llama_cpp_python,
    "xllamacpp": xllamacpp,
    "transformers": Transformers,
    "bandwidth": Bandwidth,
}

if __name__ == "__main__":
    engine = ENGINES[sys.argv[1]](json.loads(sys.argv[2]))
    print(json.dumps(engine.facts), flush=True)
    for line in sys.stdin:
        asked, *arguments = json.loads(line)
        print(json.dumps(getattr(engine, asked)(*arguments)), flush=True)

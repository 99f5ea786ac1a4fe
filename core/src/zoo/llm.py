"""LLM: a model ready to answer, from Python."""

from __future__ import annotations

import itertools
import math
import reprlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any, TypeGuard, cast, overload

import psutil
import torch
from torch import Tensor, nn

from zoo import garbage
from zoo.cache import CacheSpec, RecurrentState
from zoo.cache.storage import KVCache
from zoo.chat import ChatTemplate, ReasoningSplitter, find_template, starts_inside
from zoo.engine.capacity import BLOCK_SIZE, MAX_NUM_SEQS, CachePlan, block_managers, plan_cache
from zoo.engine.engine import Engine
from zoo.engine.generation import Request, run
from zoo.engine.grammar import Grammar, GrammarCompiler, Thought
from zoo.engine.result import Generation, Piece
from zoo.engine.runner import Runner
from zoo.engine.sampler import Sampler
from zoo.engine.scheduler import Scheduler
from zoo.engine.sequence import SamplingParams
from zoo.engine.sequence import Sequence as EngineSequence
from zoo.engine.text import OutputText
from zoo.errors import ContextLengthError, TemplateError, UsageError
from zoo.hooks import CausalLM, LoadOptions
from zoo.hub import resolve
from zoo.kernels.native import library
from zoo.kernels.native.pool import Pool
from zoo.kernels.registry import REFERENCE, choose
from zoo.plugin.bound import BoundPlugin
from zoo.plugin.manager import PluginManager
from zoo.settings import Settings
from zoo.source import ModelSource
from zoo.tokenizer import Tokenizer, load_tokenizer
from zoo.weights.loader import resolve_cache_dtype, resolve_device, resolve_dtype, within_dtypes
from zoo.weights.packing import pack_weights

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]

_MAX_BATCHED_TOKENS = 512
_LOGITS_ROWS = 256
# How much of ended sequences stays in main memory for others that begin the same. On a GPU the pool is allocated
# anyway.
_IDLE_CONTEXTS = 2


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Which model is loaded, and how."""

    plugin: str
    architecture: str
    format: str
    path: str
    device: str
    dtype: str
    context: int


class LLM:
    """A loaded model with its tokenizer, cache and chat template. Make one with `LLM.load`; close it, or use `with`.

    `model` is the torch module, `tokenizer` the tokenizer, `info` what was loaded, `notes` what a user should see.
    """

    def __init__(
        self,
        source: ModelSource,
        plugin: BoundPlugin,
        architecture: str,
        options: LoadOptions,
        *,
        model: CausalLM | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        """`model` and `tokenizer`: in place of those that would be loaded from `source`."""
        started = time.perf_counter()
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self._source = source
        self._plugin = plugin
        options = within_dtypes(options, source, getattr(plugin.plugin, "dtypes", None))
        device, dtype = resolve_device(options.device), resolve_dtype(options, source)
        self.model: CausalLM = plugin.load(source, options) if model is None else model
        self.tokenizer: Tokenizer = tokenizer or load_tokenizer(source, getattr(plugin.plugin, "pre", {}))
        self.recommended = recommended_sampling(source, getattr(plugin.plugin, "sampling_defaults", {}))
        self._stop_ids = plugin.eos(self.model) | self.tokenizer.eog_ids
        cache_dtype = resolve_cache_dtype(options, source)
        plan = self._plan(options, cache_dtype, device)
        specs = self.model.cache_spec()
        cache = KVCache(
            specs,
            num_blocks=plan.num_blocks,
            block_size=BLOCK_SIZE,
            dtype=cache_dtype,
            device=device,
            max_model_len=plan.context,
        )
        pool = _native_pool(options, device, dtype)
        # After the plan of the cache: it counts the weights as part of the memory that is available.
        unpacked = "" if pool is None else _pack(self.model, pool, source, options)
        self._engine = Engine(
            Runner(plugin, self.model, cache, device, pool, (_MAX_BATCHED_TOKENS, MAX_NUM_SEQS)),
            Sampler(plugin.vocab(self.model), self.tokenizer.vocab_size, self.tokenizer.suppressed_ids, device),
            Scheduler(
                block_managers(
                    specs, plan, idle_tokens=None if device.type == "cuda" else _IDLE_CONTEXTS * plan.context
                ),
                max_num_seqs=MAX_NUM_SEQS,
                max_num_batched_tokens=_MAX_BATCHED_TOKENS,
                # The state after a prefix is not kept: a sequence with one is always computed from its beginning.
                prefix_caching=not any(isinstance(spec, RecurrentState) for spec in specs),
            ),
        )
        self._grammars = GrammarCompiler(self.tokenizer, plugin.vocab(self.model), self._stop_ids)
        self.context = plan.context
        self.info = ModelInfo(
            plugin=plugin.name,
            architecture=architecture,
            format=source.format,
            path=str(source.path),
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            context=plan.context,
        )
        self.notes = [
            *_model_notes(self.model),
            *_override_notes(source),
            *_memory_notes(source, device),
            *_kernel_notes(device, dtype),
            *_packing_notes(unpacked),
            f"context {plan.context} tokens, {plan.why} (--context changes it)",
        ]
        self._template = self._find_template()
        self._ids = itertools.count()
        self._closed = False
        self.load_s = time.perf_counter() - started

    @classmethod
    @garbage.paused()
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        plugin: str | None = None,
        plugins: Sequence[object] = (),
        context: int | None = None,
        threads: int | None = None,
        cache_dtype: str = "auto",
        overrides: Mapping[str, object] | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> LLM:
        """Load a directory, a GGUF file (any shard) or a name that `zoo pull` fetched.

        `device`: auto, cpu, cuda, cuda:N. `dtype`, the compute type: auto, float32, bfloat16, float16. `plugin` forces
        one by name, `plugins` adds objects to the installed ones. `context`: tokens, None for what the model allows and
        memory holds. `overrides` replaces keys of the configuration. Raises a ZooError that says what is wrong.
        """
        settings = Settings.from_env()
        source = ModelSource.open(resolve(str(path), settings), overrides)
        try:
            manager = PluginManager.discover(settings, extra=plugins)
            owner = manager.detect(source, force=plugin)
            options = LoadOptions(device, dtype, context, threads, cache_dtype, progress=progress)
            return cls(source, manager.bind(owner), owner.detection.architecture, options)
        except BaseException:
            source.close()
            raise

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the model's memory back. Whatever asks the model afterwards is a UsageError; closing twice is fine."""
        if not self._closed:
            self._closed = True
            self._engine.reset()  # a stream that somebody still reads ends here
            del self.model, self._engine
            self._source.close()

    @overload
    def generate(self, prompts: str | Sequence[int], params: SamplingParams | None = None) -> Generation: ...
    @overload
    def generate(
        self, prompts: list[str] | Sequence[Sequence[int]], params: SamplingParams | None = None
    ) -> list[Generation]: ...
    def generate(self, prompts: Any, params: SamplingParams | None = None) -> Generation | list[Generation]:
        """Continue one prompt (text or token ids), or several as one batch.

        Raises ContextLengthError for a prompt that leaves no room in the context, UsageError for an empty one.
        """
        if isinstance(prompts, bytes | bytearray | Mapping) or not hasattr(prompts, "__len__"):
            raise UsageError(
                f"a prompt is a text, token ids, or a list of them, not {reprlib.repr(prompts)}",
                remedy="decode bytes, and ask a conversation with chat()",
            )
        if _is_prompt(prompts):
            return self._finish([self.request(self._encode(prompts), params)])[0]
        if not len(prompts):
            raise UsageError("there is no prompt", remedy="give a text, token ids, or a list of them")
        return self._finish([self.request(self._encode(prompt), params) for prompt in prompts])

    def chat(self, messages: Messages, params: SamplingParams | None = None, **template: Any) -> Generation:
        """Answer a conversation in the model's chat template; `template` are further variables of it.

        Raises TemplateError where the model has no template or the template refuses the conversation.
        """
        return self._finish([self._chat_request(messages, params, template)])[0]

    def stream(
        self, prompt: Prompt | Messages, params: SamplingParams | None = None, **template: Any
    ) -> Generator[Piece, None, Generation]:
        """As `generate` or, for a list of messages, `chat`, piece by piece. The generator returns the Generation.

        Bad arguments raise here, not at the first piece. A generator that is closed early gives its memory back.
        """
        if _is_messages(prompt):
            request = self._chat_request(prompt, params, template)
        else:
            request = self.request(self._encode(cast(Prompt, prompt)), params)
        return _pieces(self._engine, request)

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Logits float32 [T, vocab] of every position of one sequence, computed in chunks."""
        hidden = self._hidden(token_ids)
        with torch.inference_mode(), self._engine.runner.active():
            return torch.cat([self.model.logits(rows) for rows in hidden.split(_LOGITS_ROWS)])

    def hidden_states(self, token_ids: Sequence[int], layers: Sequence[int]) -> list[Tensor]:
        """Hidden states [T, D] at depths of the model: 0 the embeddings, i the residual stream after layer i, and the
        number of layers the final norm's output, as in transformers' `hidden_states`.

        Raises UsageError for a depth that the model has not.
        """
        self._require_open()
        modules = self.model.model.layers  # type: ignore[attr-defined]  # every plugin's decoder names them so
        depth = len(modules)
        if bad := [layer for layer in layers if not 0 <= layer <= depth]:
            raise UsageError(f"layer {bad[0]} does not exist", remedy=f"use 0 to {depth}")
        kept: dict[int, list[Tensor]] = {layer: [] for layer in layers}

        def keep(layer: int) -> Callable[[Any, Any], None]:
            def hook(module: Any, inputs: Any) -> None:
                delta, residual = inputs[:2]
                kept[layer].append(residual if delta is None else residual + delta)

            return hook

        handles = [modules[i].register_forward_pre_hook(keep(i)) for i in kept if i < depth]
        try:
            final = self._hidden(token_ids)
        finally:
            for handle in handles:
                handle.remove()
        return [final if layer == depth else torch.cat(kept[layer]) for layer in layers]

    def score(self, text: str) -> list[float]:
        """Natural log probability of each token of a text given those before it; the first token has none."""
        ids = self.tokenizer.encode(text)
        if len(ids) < 2:
            raise UsageError("a text of fewer than two tokens has no score", remedy="give a longer text")
        hidden, scores = self._hidden(ids)[:-1], []
        with torch.inference_mode(), self._engine.runner.active():
            for start in range(0, len(hidden), _LOGITS_ROWS):
                rows = self.model.logits(hidden[start : start + _LOGITS_ROWS]).log_softmax(-1)
                chosen = torch.tensor(ids[start + 1 : start + 1 + len(rows)], device=rows.device)
                scores += rows.gather(-1, chosen[:, None])[:, 0].tolist()
        return scores

    def reset(self) -> None:
        """Forget every sequence; the memory of the cache stays."""
        self._require_open()
        self._engine.reset()

    @property
    def engine(self) -> Engine:
        """What runs requests; one thread at a time may drive it."""
        self._require_open()
        return self._engine

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` works."""
        return self._template is not None

    @property
    def template_source(self) -> str | None:
        """The chat template's jinja source."""
        return None if self._template is None else self._template.source

    @property
    def tool_call_format(self) -> str | None:
        """The format of tool calls that the plugin declares; see zoo.chat.tools."""
        return getattr(self._plugin.plugin, "tool_call_format", None)

    def render(self, messages: Messages, **template: Any) -> list[tuple[str, bool]]:
        """The prompt of a conversation as segments (text, whether control tokens in it count)."""
        if self._template is None:
            raise TemplateError(
                f"{self.info.path} has no chat template", remedy="use plain completion (--raw), or an instruct model"
            )
        return self._template.render(messages, **template)

    def _hidden(self, token_ids: Sequence[int]) -> Tensor:
        ids = self._checked(token_ids, room=0)
        return self._engine.hidden(ids, _MAX_BATCHED_TOKENS)

    def _encode(self, prompt: Prompt) -> Sequence[int]:
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt

    def _chat_request(self, messages: Messages, params: SamplingParams | None, template: Mapping[str, Any]) -> Request:
        ids, rendered = self.chat_ids(messages, **template)
        return self.request(ids, params, rendered=rendered)

    def chat_ids(self, messages: Messages, **template: Any) -> tuple[list[int], str]:
        """The prompt of a conversation as token ids and as text. Raises as `chat` does; any thread may call it."""
        segments = self.render(messages, **template)
        # The template writes the beginning-of-sequence token itself, where the model wants one.
        ids = self.tokenizer.encode_segments(segments, add_special=False)
        return ids, "".join(text for text, _ in segments)

    def request(
        self,
        ids: Sequence[int],
        params: SamplingParams | None = None,
        *,
        rendered: str | None = None,
        keep: Sequence[str] = (),
    ) -> Request:
        """A prompt made ready for the engine, which does not know it yet; any thread may call it.

        `rendered`: the text of a chat prompt, whose answer is split into reasoning and content. `keep`: control tokens
        that stay in the text. Raises as `generate` does.
        """
        params = (params or SamplingParams()).filled(self.recommended)
        prompt = self._checked(ids, room=1)
        vocab = self._plugin.vocab(self.model)
        if bad := [token for token in params.logit_bias if not 0 <= token < vocab]:
            raise UsageError(f"logit_bias names token {bad[0]}", remedy=f"ids are 0 to {vocab - 1}")
        room = self.context - len(prompt)
        stops = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._stop_ids)
        thought = self._thought(rendered)
        sequence = EngineSequence(
            f"r{next(self._ids)}",
            prompt,
            params,
            stops,
            room if params.max_tokens is None else min(room, params.max_tokens),
            constraint=self._constraint(params, thought),
        )
        keep = (*keep, thought.opening, thought.closing) if thought else keep
        text = OutputText(self.tokenizer.stream(prompt_ids=prompt, keep=keep), params.stop)
        splitter = ReasoningSplitter(thought.opening, thought.closing, inside=thought.open) if thought else None
        return Request(sequence, text, splitter, self.load_s)

    def _thought(self, rendered: str | None) -> Thought | None:
        tags: tuple[str, str] | None = getattr(self._plugin.plugin, "reasoning_tags", None)
        if rendered is None or tags is None:
            return None
        opening, closing = tags
        return Thought(opening, closing, starts_inside(rendered, opening, closing))

    def _constraint(self, params: SamplingParams, thought: Thought | None) -> Grammar | None:
        if params.json_schema is not None:
            return self._grammars.json_schema(params.json_schema, thought)
        return None if params.grammar is None else self._grammars.lark(params.grammar, thought)

    def _checked(self, ids: Sequence[int], room: int) -> tuple[int, ...]:
        self._require_open()
        ids = _integers(ids)
        if not ids:
            raise UsageError("the prompt is empty", remedy="give at least one token")
        vocab = self._plugin.vocab(self.model)
        if bad := [i for i in ids if not 0 <= i < vocab]:
            raise UsageError(f"token id {bad[0]} does not exist", remedy=f"ids are 0 to {vocab - 1}")
        if len(ids) + room > self.context:
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens, the context {self.context}",
                tokens=len(ids),
                context=self.context,
                remedy="shorten the prompt"
                + (" or load with a larger --context" if self.context < self._model_context else ""),
            )
        return ids

    def _finish(self, requests: list[Request]) -> list[Generation]:
        for _ in run(self._engine, requests):
            pass
        return [request.result() for request in requests]

    def _plan(self, options: LoadOptions, cache_dtype: torch.dtype, device: torch.device) -> CachePlan:
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
        else:
            free = host_bytes_for_cache(_weight_bytes(self._source))
        return plan_context(self.model.cache_spec(), cache_dtype.itemsize, self._model_context, options.context, free)

    @property
    def _model_context(self) -> int:
        """Tokens that the model was made for."""
        context: int = self.model.config.max_position_embeddings  # type: ignore[attr-defined]
        return context

    def _require_open(self) -> None:
        if self._closed:
            raise UsageError(
                f"the model {self.info.path} is closed", remedy="load it again, or use it inside its `with`"
            )

    def _find_template(self) -> ChatTemplate | None:
        text = find_template(self._source) or getattr(self._plugin.plugin, "chat_template", None)
        if text is None:
            return None
        tokenizer = self.tokenizer
        bos, eos = ("" if token is None else tokenizer.token(token) for token in (tokenizer.bos_id, tokenizer.eos_id))
        return ChatTemplate(text, bos_token=bos, eos_token=eos, control_tokens=tokenizer.control_tokens)


def recommended_sampling(source: ModelSource, plugin_defaults: Mapping[str, float]) -> dict[str, float]:
    """Sampling parameters that the model ships: generation_config.json or GGUF's general.sampling.*, else the plugin's.

    A generation_config.json that says do_sample: false asks for greedy decoding.
    """
    if source.format == "gguf":
        keys = {
            "temperature": "temp",
            "top_k": "top_k",
            "top_p": "top_p",
            "min_p": "min_p",
            "repeat_penalty": "penalty_repeat",
        }
        found = {name: source.metadata.get(f"general.sampling.{key}") for name, key in keys.items()}
    else:
        config = source.json("generation_config.json") or {}
        keys = {
            "temperature": "temperature",
            "top_k": "top_k",
            "top_p": "top_p",
            "min_p": "min_p",
            "repeat_penalty": "repetition_penalty",
        }
        found = {name: config.get(key) for name, key in keys.items()}
        if config.get("do_sample") is False:
            found["temperature"] = 0.0
    numbers = {
        name: value
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    }
    return {**plugin_defaults, **numbers}


def plan_context(
    specs: Sequence[CacheSpec], element_bytes: int, model_context: int, asked_context: int | None, free_bytes: int
) -> CachePlan:
    """The cache that an LLM makes: see `plan_cache`, which raises."""
    return plan_cache(
        specs,
        element_bytes=element_bytes,
        model_context=model_context,
        asked_context=asked_context,
        free_bytes=free_bytes,
        max_num_batched_tokens=_MAX_BATCHED_TOKENS,
    )


def host_bytes_for_cache(weights: int) -> int:
    """Bytes of main memory that the cache may use beside mapped weights of so many bytes.

    Weights that do not fit are read from disk again and again, so a quarter stays for the cache all the same.
    """
    available: int = psutil.virtual_memory().available
    return max(available - weights, available // 4)


def _weight_bytes(source: ModelSource) -> int:
    return sum(info.nbytes for info in source.tensors.values())


def _pieces(engine: Engine, request: Request) -> Generator[Piece, None, Generation]:
    for _, piece in run(engine, [request]):
        if piece.text or piece.reasoning:
            yield piece
    return request.result()


def _integers(ids: Sequence[int]) -> tuple[int, ...]:
    """Token ids of any integer kind (numpy's, a tensor's) as int."""
    try:
        return tuple(index(i) for i in ids)
    except TypeError:
        raise UsageError(
            f"a prompt is a text or a sequence of token ids, not {reprlib.repr(ids)}",
            remedy="a list must hold texts only, or sequences of ids only",
        ) from None


def _model_notes(model: CausalLM) -> tuple[str, ...]:
    """What the plugin found out about this file that changes what a user gets: keys it had to assume, limits."""
    return tuple(getattr(model, "notes", ()))


def _override_notes(source: ModelSource) -> list[str]:
    """A misspelt key would be set without any effect."""
    return [f"{key} is added: {source.config_name or 'the metadata'} has no such key" for key in source.added]


def _native_pool(options: LoadOptions, device: torch.device, dtype: torch.dtype) -> Pool | None:
    """The threads of the CPU kernels; None where the reference computes."""
    on = device.type == "cpu" and dtype == torch.float32 and library.usable()[0]
    return Pool(options.threads) if on else None


def _pack(model: CausalLM, pool: Pool, source: ModelSource, options: LoadOptions) -> str:
    """Pack the weights for the kernels; "", or why not."""
    if not isinstance(model, nn.Module):
        return ""
    if not Settings.from_env().cpu_repack:
        return "ZOO_CPU_REPACK is off"
    return pack_weights(
        model, pool, model_bytes=_weight_bytes(source), release=source.release, progress=options.progress
    )


def _kernel_notes(device: torch.device, dtype: torch.dtype) -> list[str]:
    """One line where nothing fast computes: why, and that it is slow."""
    if device.type != "cpu":
        slow = choose("linear", device.type).backend == REFERENCE.name
        return [f"the plain torch kernels answer on this {device.type}, which is slow"] if slow else []
    usable, reason = library.usable()
    if usable and dtype == torch.float32:
        return []
    name = str(dtype).removeprefix("torch.")
    why = f"they compute in float32 only, not in {name}, so plain torch does, which is slow" if usable else reason
    return [f"no CPU kernels: {why}"]


def _packing_notes(reason: str) -> list[str]:
    return [f"weights stay as they lie on disk, which is slower: {reason}"] if reason else []


def _memory_notes(source: ModelSource, device: torch.device) -> list[str]:
    weights, memory = _weight_bytes(source), psutil.virtual_memory().total
    if device.type == "cpu" and weights > memory:
        return [
            f"the weights ({weights / 1e9:.1f} GB) are larger than memory ({memory / 1e9:.1f} GB): they are read from "
            f"disk for every token, at 2 GB/s about {weights / 2e9:.0f} s each"
        ]
    return []


def _is_messages(prompt: Any) -> TypeGuard[Messages]:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _is_prompt(prompts: Any) -> TypeGuard[Prompt]:
    return isinstance(prompts, str) or (len(prompts) > 0 and hasattr(prompts[0], "__index__"))

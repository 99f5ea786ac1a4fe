"""llama.cpp as a yardstick: the library inside the xllamacpp wheel, called through ctypes. Nothing is compiled.

    with LlamaCpp(path) as model:
        ids = model.tokenize("text")
        logits = model.logits(ids)            # float32 [len(ids), vocab]
    with LlamaCpp(path, vocab_only=True) as vocabulary: ...

Parameters travel as structs by value, so their layout is that of one version of the library, which is checked. With a
float32 cache and flash attention off (the defaults) an F32 file gives transformers' float32 logits to about 3e-5.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
from collections.abc import Sequence
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

VERSION = "2026.10.11549"
F32, F16 = 0, 1


class _ModelParams(ctypes.Structure):
    _fields_ = (
        ("devices", c_void_p),
        ("tensor_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress", c_void_p),
        ("progress_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("other_flags", c_bool * 5),
    )


class _ContextParams(ctypes.Structure):
    _fields_ = (
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_recurrent_snapshots", c_uint32),
        ("n_outputs", c_uint32),
        ("n_outputs_ops", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("context_type", c_int32),
        ("rope_scaling", c_int32),
        ("pooling", c_int32),
        ("attention", c_int32),
        ("flash_attention", c_int32),
        ("rope_numbers", c_float * 6),
        ("yarn_original_context", c_uint32),
        ("defragmentation", c_float),
        ("eval_callback", c_void_p),
        ("eval_data", c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("abort_callback", c_void_p),
        ("abort_data", c_void_p),
        ("flags", c_bool * 6),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("other_context", c_void_p),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", c_void_p),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_model_default_params": (_ModelParams, []),
    "llama_context_default_params": (_ContextParams, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, _ModelParams]),
    "llama_model_free": (None, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_init_from_model": (c_void_p, [c_void_p, _ContextParams]),
    "llama_free": (None, [c_void_p]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_vocab_is_eog": (c_bool, [c_void_p, c_int32]),
    "llama_vocab_get_add_bos": (c_bool, [c_void_p]),
    "llama_vocab_bos": (c_int32, [c_void_p]),
    "llama_tokenize": (c_int32, [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool]),
    "llama_detokenize": (c_int32, [c_void_p, POINTER(c_int32), c_int32, c_char_p, c_int32, c_bool, c_bool]),
    "llama_batch_init": (_Batch, [c_int32, c_int32, c_int32]),
    "llama_batch_free": (None, [_Batch]),
    "llama_decode": (c_int32, [c_void_p, _Batch]),
    "llama_get_logits": (POINTER(c_float), [c_void_p]),
    "llama_backend_init": (None, []),
}
_LogCallback = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)


@_LogCallback
def _quiet(level: int, text: bytes, data: int) -> None:
    """Swallows the library's log."""


@cache
def library() -> Any:
    """The shared library, its functions typed and its log off. RuntimeError for a version of other layouts."""
    found = importlib.metadata.version("xllamacpp")
    if found != VERSION:
        raise RuntimeError(f"the struct layouts are those of xllamacpp {VERSION}, but {found} is installed")
    spec = importlib.util.find_spec("xllamacpp")
    assert spec is not None
    assert spec.origin is not None
    (path,) = Path(spec.origin).parent.glob("*.so")
    loaded = ctypes.CDLL(str(path))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    loaded.llama_log_set(_quiet, None)
    loaded.llama_backend_init()
    return loaded


class LlamaCpp:
    """A GGUF model in llama.cpp. ValueError for a file that it does not load.

    `vocab_only` reads no tensors (no `logits` then). `cache_type` is F32 or F16.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        vocab_only: bool = False,
        context: int = 2048,
        threads: int = 2,
        cache_type: int = F32,
        flash_attention: bool = False,
    ) -> None:
        self._lib = library()
        params = self._lib.llama_model_default_params()
        params.vocab_only = vocab_only
        self._context = None
        self._model = self._lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise ValueError(f"llama.cpp does not load {path}")
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self.vocab_size: int = self._lib.llama_vocab_n_tokens(self._vocab)
        if not vocab_only:
            self._context = self._new_context(context, threads, cache_type, flash_attention)

    def _new_context(self, context: int, threads: int, cache_type: int, flash_attention: bool) -> int:
        params = self._lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_outputs = context
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = cache_type
        params.flash_attention = int(flash_attention)
        made: int | None = self._lib.llama_init_from_model(self._model, params)
        if not made:
            self.close()
            raise ValueError("llama.cpp makes no context for the model")
        return made

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Token ids. `add_special`: BOS and EOS as the file says; `parse_special`: control tokens in the text count."""
        data = text.encode()
        ids = (c_int32 * (2 * len(data) + 8))()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), ids, len(ids), add_special, parse_special)
        if count < 0:
            raise RuntimeError(f"llama_tokenize: {count}")
        return list(ids[:count])

    def detokenize(self, ids: Sequence[int], *, special: bool = False) -> bytes:
        """The text as bytes, with control tokens spelled out if `special`."""
        array = (c_int32 * len(ids))(*ids)
        text = ctypes.create_string_buffer(256 * len(ids) + 64)
        count = self._lib.llama_detokenize(self._vocab, array, len(ids), text, len(text), False, special)
        if count < 0:
            raise RuntimeError(f"llama_detokenize: {count}")
        return text.raw[:count]

    def ends(self) -> set[int]:
        """Every id that ends a generation."""
        return {id for id in range(self.vocab_size) if self._lib.llama_vocab_is_eog(self._vocab, id)}

    @property
    def add_bos(self) -> bool:
        """Whether `add_special` puts BOS before the text."""
        return bool(self._lib.llama_vocab_get_add_bos(self._vocab))

    def logits(self, ids: Sequence[int], *, start: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
        """float32 [len(ids) - start, vocab_size] of one sequence from position 0, rows from `start` on.

        Each call begins with an empty cache.
        """
        if self._context is None:
            raise ValueError("the model was opened with vocab_only")
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        batch = self._lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for position, id in enumerate(ids):
            batch.token[position] = id
            batch.pos[position] = position
            batch.n_seq_id[position] = 1
            batch.seq_id[position][0] = 0
            batch.logits[position] = position >= start
        status = self._lib.llama_decode(self._context, batch)
        self._lib.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode: {status}")
        rows = self._lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(rows, (len(ids) - start, self.vocab_size)).copy()

    def close(self) -> None:
        if self._context:
            self._lib.llama_free(self._context)
        if self._model:
            self._lib.llama_model_free(self._model)
        self._context = self._model = None

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

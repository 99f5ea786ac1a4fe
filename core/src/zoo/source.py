"""ModelSource: what a path holds, seen by the headers of its files only.

A path is a Hugging Face directory, a snapshot or a repository folder of the hub cache, a directory with one GGUF model,
or a file. What zoo does not open (pickles, GPTQ, adapters, ...) is refused by name, with the way out.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from zoo.errors import FormatError, SourceError, WeightError
from zoo.formats import strictjson
from zoo.formats.gguf import GGUFFile, MetaValue
from zoo.formats.mapped import MappedFile
from zoo.formats.safetensors import SafetensorsSet
from zoo.formats.tensor import TensorInfo
from zoo.locate import POINTER, Format, is_pointer, locate, pointer_error
from zoo.overrides import merge_rope, override_config, override_metadata

_MAX_TEXT_BYTES = 16 << 20
# A vocabulary of 262k words with its merges takes 33 MB.
_MAX_VOCABULARY_BYTES = 256 << 20
_VOCABULARIES = ("tokenizer.json", "tekken.json")
_PARAMS = "params.json"
_ARCHITECTURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

_UNQUANTISED = "get the model in its original form (safetensors), or a GGUF of it, which zoo runs quantised"

# Files that only a quantiser writes, for checkpoints from before `quantization_config`.
_QUANTISER_FILES = {
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
    "hf_quant_config.json": "ModelOpt",
}
_GGUF_KINDS = {
    "adapter": "a LoRA adapter, not a model: merge it into its base model with llama-export-lora",
    "mmproj": "the vision or audio part of a model: name the GGUF of the text model",
    "imatrix": "an importance matrix, not a model: name the GGUF that was made with it",
}


class ConfigOnly:
    """What stands in the place of weight files where there is a configuration alone; `config`: its content, or None
    where it lies in the source's directory.
    """

    paths: tuple[Path, ...] = ()

    def __init__(self, config: Mapping[str, Any] | None, tensors: Mapping[str, TensorInfo]) -> None:
        self.config = config
        self.tensors = tensors

    def read(self, name: str) -> memoryview:
        """There is nothing to read: raises WeightError."""
        raise WeightError(f"there is no tensor {name}: the model is a configuration alone", remedy="fetch its weights")

    def release(self, address: int, nbytes: int) -> None:
        """There is nothing to give back."""

    def close(self) -> None:
        """Nothing is open."""


class ModelSource:
    """A model on disk, before anything is loaded. Use as a context manager, or call `close`.

    - `path`: as it was named, absolute.
    - `format`: "gguf" or "safetensors".
    - `architectures`: `architectures` of config.json, or (`general.architecture`,); empty where neither says it;
      ("params.json",) for Mistral's own layout, whose configuration is that file and names no architecture.
    - `config`: config.json with `text_config` merged into the root, or params.json as it is; {} for GGUF.
    - `config_name`: the file that `config` is from; "" for GGUF.
    - `metadata`: the metadata of a GGUF; {} for safetensors.
    - `tensors`: every tensor by name. `files`: the weight files.
    - `directory`: where tokenizer.json and its like lie; None for GGUF, which carries them inside.
    - `overridden`: what the user set by hand; already part of `config` or `metadata`. `added`: the keys of it that the
      file does not have.
    """

    format: Format

    def __init__(
        self,
        path: Path,
        weights: GGUFFile | SafetensorsSet | ConfigOnly,
        directory: Path | None,
        overrides: Mapping[str, object],
    ) -> None:
        self.path = path
        self.directory = directory
        self.overridden: Mapping[str, object] = MappingProxyType(dict(overrides))
        self.files = weights.paths
        self.tensors: Mapping[str, TensorInfo] = weights.tensors
        self.config: Mapping[str, Any] = MappingProxyType({})
        self.config_name = ""
        self.metadata: Mapping[str, MetaValue] = MappingProxyType({})
        self._weights = weights
        if isinstance(weights, GGUFFile):
            self.format = "gguf"
            metadata, self.added = override_metadata(weights.metadata, overrides)
            self.metadata = MappingProxyType(metadata)
            self.architectures: tuple[str, ...] = (_gguf_architecture(self.metadata, weights.paths[0]),)
        else:
            self.format = "safetensors"
            known = weights.config if isinstance(weights, ConfigOnly) else None
            self.config_name, config = self._read_config(known, overrides)
            self.config = MappingProxyType(config)
            own = self.config_name == _PARAMS
            self.architectures = (_PARAMS,) if own else _hf_architectures(self.config, path)

    @classmethod
    def open(cls, path: str | Path, overrides: Mapping[str, object] | None = None) -> ModelSource:
        """Find out what lies at `path`. `overrides` replaces values of the config or metadata.

        For a config, dots go into nested objects ("rope_scaling.factor"); for GGUF a leading dot stands for the
        architecture (".context_length"). Raises SourceError for what zoo does not open, a FormatError for damaged
        files, UsageError for an override that fits nowhere.
        """
        if not str(path):
            raise SourceError("the path of the model is empty", remedy="name a model file or directory")
        named = Path(os.path.abspath(os.path.expanduser(path)))
        try:
            place, kind = locate(named)
            weights = GGUFFile.open(place) if kind == "gguf" else SafetensorsSet.open(place)
        except FormatError as problem:
            if is_pointer(problem.path):
                raise pointer_error(problem.path) from None
            raise
        except OSError as problem:
            raise SourceError(
                f"{named}: cannot be read: {problem.strerror}", remedy="check the permissions and the path"
            ) from None
        directory = None if kind == "gguf" else place if place.is_dir() else place.parent
        try:
            return cls(named, weights, directory, overrides or {})
        except BaseException:
            weights.close()
            raise

    @classmethod
    def from_config(
        cls,
        path: str | Path,
        config: Mapping[str, Any] | None = None,
        overrides: Mapping[str, object] | None = None,
        tensors: Mapping[str, TensorInfo] = MappingProxyType({}),
    ) -> ModelSource:
        """A configuration without weight files: what a model would be. `files` is empty.

        `path`: a config.json or a directory that holds one, or, where `config` is its content, any name for messages.
        `tensors`: what weights there would be; none of them can be read.
        Raises SourceError for what cannot be read, UsageError for an override that fits nowhere.
        """
        if config is not None:
            return cls(Path(path), ConfigOnly(config, tensors), None, overrides or {})
        named = Path(os.path.abspath(os.path.expanduser(path)))
        directory = named if named.is_dir() else named.parent
        if not (directory / "config.json").is_file() or (named.is_file() and named.name != "config.json"):
            raise SourceError(f"{named} is no config.json", remedy="name a config.json or a directory that holds one")
        return cls(named, ConfigOnly(None, tensors), directory, overrides or {})

    @property
    def has_weights(self) -> bool:
        """Whether there are weight files, and not a configuration alone."""
        return bool(self.files)

    def read(self, name: str) -> memoryview:
        """The bytes of a tensor, read-only and not copied. Raises WeightError for a name that is not there."""
        return self._weights.read(name)

    def release(self, address: int, nbytes: int) -> None:
        """Give the memory of mapped bytes back that nobody is going to read soon; other memory is left alone."""
        self._weights.release(address, nbytes)

    def key(self, name: str, default: MetaValue | None = None) -> MetaValue | None:
        """A value of the GGUF metadata; a name that begins with a dot gets the architecture in front."""
        if name.startswith("."):
            name = "".join(self.architectures[:1]) + name
        return self.metadata.get(name, default)

    def json(self, name: str) -> dict[str, Any] | None:
        """The JSON object in the file `name` beside the weights; None when there is no such file.

        Raises SourceError when it is too large, no valid JSON, has a key twice, or is no object.
        """
        data = self._beside(name)
        if data is None:
            return None
        try:
            content = strictjson.parse(data)
        except ValueError as problem:
            raise self._bad_file(name, f"is no valid JSON: {problem}") from None
        if not isinstance(content, dict):
            raise self._bad_file(name, f"holds a JSON {type(content).__name__}, not an object")
        return content

    def text(self, name: str) -> str | None:
        """The UTF-8 text in the file `name` beside the weights; None when there is no such file. Raises SourceError."""
        data = self._beside(name)
        try:
            return None if data is None else data.decode("utf-8")
        except UnicodeDecodeError as problem:
            raise self._bad_file(name, f"is no UTF-8 at byte {problem.start}") from None

    def close(self) -> None:
        """Let go of the files. Bytes taken by `read` stay valid; arrays of `metadata` do not."""
        self._weights.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ModelSource({str(self.path)!r}, {self.format}, {', '.join(self.architectures) or 'no architecture'})"

    def _beside(self, name: str) -> bytes | None:
        if os.path.basename(name) != name or name in ("", ".", ".."):
            raise SourceError(
                f"{name!r} is no plain file name", remedy="files beside the weights are named without a path"
            )
        if self.directory is None or not os.path.lexists(self.directory / name):
            return None
        try:
            file = MappedFile(self.directory / name)
        except FormatError as problem:
            raise SourceError(problem.message, remedy=problem.remedy) from None
        limit = _MAX_VOCABULARY_BYTES if name in _VOCABULARIES else _MAX_TEXT_BYTES
        if file.size > limit:
            raise self._bad_file(name, f"has {file.size} bytes, more than the {limit} allowed")
        data = bytes(file.view(0, file.size))
        file.close()
        if data.startswith(POINTER):
            raise pointer_error(self.directory / name)
        return data

    def _bad_file(self, name: str, message: str) -> SourceError:
        return SourceError(f"{self.directory}/{name} {message}", remedy="fetch the file again, or repair it")

    def _read_config(
        self, known: Mapping[str, Any] | None, overrides: Mapping[str, object]
    ) -> tuple[str, dict[str, Any]]:
        """The name and content of config.json, or of params.json where only that is there."""
        name, config = "config.json", None if known is None else copy.deepcopy(dict(known))
        if config is None and (config := self.json(name)) is None:
            name, config = _PARAMS, self.json(_PARAMS)
        if config is None:
            raise SourceError(
                f"{self.directory} has weights but no config.json", remedy="fetch the config.json of the model too"
            )
        config = _merge_text_config(config, (self.directory or self.path) / name)
        merge_rope(config, (self.directory or self.path) / name)
        self.added = override_config(config, overrides, name)
        if self.directory is not None:
            _refuse_quantised(config, self.directory)
        return name, config


def _gguf_architecture(metadata: Mapping[str, MetaValue], path: Path) -> str:
    kind = metadata.get("general.type")
    if isinstance(kind, str) and kind in _GGUF_KINDS:
        what, _, remedy = _GGUF_KINDS[kind].partition(": ")
        raise SourceError(f"{path} is {what}", remedy=remedy)
    name = metadata.get("general.architecture")
    if name is None:
        raise SourceError(f"{path} has no general.architecture in its metadata", remedy="make the GGUF again")
    if not isinstance(name, str) or not _ARCHITECTURE.fullmatch(name):
        raise SourceError(f"{path}: general.architecture is {str(name)[:80]!r}, no name", remedy="make the GGUF again")
    return name


def _hf_architectures(config: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SourceError(
            f"{path}: architectures in config.json is {str(names)[:80]}, no list of names", remedy="repair it"
        )
    return tuple(names)


def _merge_text_config(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Lift the text model of a wrapper (vision, audio) to the root.

    The inner value wins, as transformers builds the text model from it. `architectures` names the checkpoint, and token
    ids of the root come first in transformers' `GenerationConfig.from_model_config`.
    """
    inner = config.get("text_config")
    if inner is None:
        return config
    if not isinstance(inner, dict):
        raise SourceError(
            f"{path}: text_config is a {type(inner).__name__}, no object", remedy="fetch config.json again"
        )
    outer_first = {"architectures", "bos_token_id", "eos_token_id", "pad_token_id"}
    merged = {key: value for key, value in config.items() if key != "text_config"}
    for key, value in inner.items():
        known = merged.get(key) is not None
        if not known or (value is not None and key not in outer_first):
            merged[key] = value
    return merged


def _refuse_quantised(config: Mapping[str, Any], directory: Path) -> None:
    """Raise SourceError for weights packed by a scheme that zoo has no kernels for. FP8 as DeepSeek ships it passes."""
    quantisation = config.get("quantization_config") or config.get("compression_config")
    method = None
    if isinstance(quantisation, dict):
        method = quantisation.get("quant_method")
        if method == "fp8":
            return
        if method is None and any(key in quantisation for key in ("load_in_4bit", "load_in_8bit")):
            method = "bitsandbytes"
    if quantisation:
        shown = str(method)[:80] if method else "an unnamed method"
        raise SourceError(f"{directory} is quantised with {shown} (quantization_config)", remedy=_UNQUANTISED)
    if quantisation := config.get("quantization"):
        # Mistral's params.json names the form of the weights there.
        form = quantisation.get("qformat_weight") if isinstance(quantisation, dict) else None
        who = f" as {str(form)[:80]} (quantization in params.json)" if form else " by MLX (quantization in config.json)"
        raise SourceError(f"{directory} is quantised{who}", remedy=_UNQUANTISED)
    for name, tool in _QUANTISER_FILES.items():
        if (directory / name).exists():
            raise SourceError(f"{directory} is quantised with {tool} ({name})", remedy=_UNQUANTISED)

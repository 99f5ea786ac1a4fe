"""Which files of a hub repository make up the model that was asked for. Works on a listing; no network here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from zoo.errors import HubError
from zoo.hub.records import Format
from zoo.hub.report import human_size

PREFERRED_QUANT = "Q4_K_M"

_REFERENCE = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?::(?P<selector>.+))?", re.A)
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
_QUANT = re.compile(
    r"(?:^|[-._])(?P<quant>(?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|NVFP4\w*|BF16|FP?16|FP?32))$", re.I | re.A
)
# GGUF files that are no language model: vision projectors and quantisation statistics.
_NOT_A_MODEL = re.compile(r"(?:^|[-._])(?:mmproj|imatrix)(?:[-._]|$)", re.I)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What zoo reads beside safetensors weights, and the terms they come with. All of it lies in the top folder.
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
    "*.model",
    "*.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE*",
    "NOTICE*",
)


@dataclass(frozen=True, slots=True)
class Reference:
    """`ORG/REPO`, or `ORG/REPO:SELECTOR` where the selector is a file, a quant, or the word safetensors."""

    repo: str
    selector: str | None

    @classmethod
    def parse(cls, text: str) -> Reference | None:
        """The reference that `text` spells, or None."""
        match = _REFERENCE.fullmatch(text)
        # The hub forbids these two in names, which keeps `ORG--REPO` unambiguous as a folder.
        if match is None or "--" in match["repo"] or ".." in match["repo"]:
            return None
        return cls(match["repo"], match["selector"])

    def __str__(self) -> str:
        return self.repo if self.selector is None else f"{self.repo}:{self.selector}"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository: its path there, its bytes, its sha256 in hex if the hub knows one."""

    name: str
    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Choice:
    """The files to fetch. `reference` names them unambiguously; `note` is what the user has to be told, or empty."""

    reference: Reference
    format: Format
    files: tuple[RemoteFile, ...]
    note: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class _Group:
    """One GGUF model: a file or all its shards, in order. `stem` is its path without shard number and extension."""

    stem: str
    files: tuple[RemoteFile, ...]

    @property
    def base(self) -> str:
        return self.stem.rpartition("/")[2]

    @property
    def quant(self) -> str | None:
        match = _QUANT.search(self.base)
        return match["quant"].upper() if match else None

    @property
    def is_model(self) -> bool:
        return _NOT_A_MODEL.search(self.base) is None

    @property
    def label(self) -> str:
        return f"{self.quant or self.base} ({human_size(sum(file.size for file in self.files))})"

    def answers(self, selector: str) -> bool:
        """Whether the selector is the path or the name of one of the files, with or without extension."""
        wanted = selector.casefold().removesuffix(".gguf")
        names = {self.stem, self.base}
        for file in self.files:
            stem = file.name.removesuffix(".gguf")
            names |= {stem, stem.rpartition("/")[2]}
        return wanted in {name.casefold() for name in names}

    def ends_with(self, selector: str) -> bool:
        """Whether the name ends in `-SELECTOR` or `.SELECTOR`, or is it."""
        return re.search(rf"(?:^|[-.]){re.escape(selector)}$", self.base, re.I) is not None


def choose(
    reference: Reference, files: Sequence[RemoteFile], read_index: Callable[[RemoteFile], Mapping[str, str]]
) -> Choice:
    """Pick the files of the model that `reference` names out of the listing `files`.

    `read_index` returns the weight_map (tensor to file name) of an index file. Raises HubError when nothing matches, a
    shard is missing, or several models match and none is the obvious one.
    """
    _check_names(reference.repo, files)
    groups = _gguf_groups(files)
    safetensors = [file for file in files if "/" not in file.name and file.name.endswith(".safetensors")]
    if reference.selector is not None and reference.selector.casefold() != "safetensors":
        return _named_gguf(reference, reference.selector, groups)
    groups = [group for group in groups if group.is_model]
    if safetensors and (reference.selector is not None or not groups):
        return _safetensors(reference, files, safetensors, read_index, alone=not groups)
    if safetensors:
        first = groups[0].quant or groups[0].base
        raise HubError(
            f"{reference.repo} holds safetensors ({human_size(sum(file.size for file in safetensors))}) and GGUF: "
            f"{_labels(groups)}",
            remedy=f"name one, `{reference.repo}:safetensors` or `{reference.repo}:{first}`",
        )
    if reference.selector is not None or not groups:
        raise _nothing(reference, files)
    return _default_gguf(reference, groups)


def _check_names(repo: str, files: Sequence[RemoteFile]) -> None:
    """Refuse a listing with a name that could leave a folder or steer a terminal."""
    for file in files:
        bad_part = any(part in ("", ".", "..") for part in file.name.split("/"))
        if bad_part or not file.name.isprintable() or set(file.name) & set("\\:"):
            raise HubError(
                f"{repo} lists a file called {file.name!r}, which is not a plain relative path",
                remedy="do not use this repository, or ask its owner to rename the file",
            )


def _gguf_groups(files: Sequence[RemoteFile]) -> list[_Group]:
    """All GGUF models of the listing by stem; whether a set of shards is complete is checked when it is taken."""
    groups: dict[str, list[RemoteFile]] = {}
    for file in sorted(files, key=lambda file: file.name):
        if file.name.endswith(".gguf"):
            stem = file.name.removesuffix(".gguf")
            match = _SHARD.fullmatch(stem)
            groups.setdefault(match["stem"] if match else stem, []).append(file)
    return [_Group(stem, tuple(members)) for stem, members in groups.items()]


def _take(reference: Reference, group: _Group, groups: Sequence[_Group], note: str = "") -> Choice:
    """The choice of one group, whose shards must be complete."""
    shards = [match for file in group.files if (match := _SHARD.fullmatch(file.name.removesuffix(".gguf")))]
    if shards:
        expected = [f"{group.stem}-{i + 1:05}-of-{shards[0]['count']}.gguf" for i in range(int(shards[0]["count"]))]
        found = [file.name for file in group.files]
        if found != expected:
            wrong = sorted(set(expected) ^ set(found))[:5]
            raise HubError(
                f"the shards of {group.stem} in {reference.repo} are not a complete set, see {', '.join(wrong)}",
                remedy="choose another quant, or ask the owner of the repository to upload the rest",
            )
    # A quant is a name only where one model has it; else the file is the name.
    alone = [other.stem for other in groups if other.is_model and other.quant == group.quant] == [group.stem]
    selector = group.quant if group.quant is not None and alone else group.stem
    return Choice(Reference(reference.repo, selector), "gguf", group.files, note)


def _named_gguf(reference: Reference, selector: str, groups: Sequence[_Group]) -> Choice:
    """The GGUF model that the selector names: a file first, then the quant, then the end of a name."""
    models = [group for group in groups if group.is_model]
    for found in (
        [group for group in groups if group.answers(selector)],
        [group for group in models if group.quant == selector.upper()],
        [group for group in models if group.ends_with(selector)],
    ):
        if len(found) > 1:
            raise HubError(
                f"{selector} fits several models in {reference.repo}: {', '.join(group.stem for group in found)}",
                remedy=f"name the file, for example `{reference.repo}:{found[0].stem}.gguf`",
            )
        if found:
            return _take(reference, found[0], groups)
    there = f"its GGUF models are {_labels(models)}" if models else "it holds no GGUF model"
    raise HubError(
        f"{reference.repo} has nothing called {selector}: {there}",
        remedy=f"pull one that is there, `zoo pull {reference.repo}"
        + (f":{models[0].quant or models[0].base}`" if models else "`"),
    )


def _default_gguf(reference: Reference, groups: Sequence[_Group]) -> Choice:
    """The GGUF model for a bare ORG/REPO: the only one, else Q4_K_M with a note, else an error with the list."""
    if len(groups) == 1:
        return _take(reference, groups[0], groups)
    preferred = [group for group in groups if group.quant == PREFERRED_QUANT]
    if len(preferred) == 1:
        note = f"{reference.repo} holds {_labels(groups)}; taking {PREFERRED_QUANT}, name another with :QUANT"
        return _take(reference, preferred[0], groups, note)
    first = preferred[0] if preferred else groups[0]
    named = first.stem if preferred else (first.quant or first.base)
    names = ", ".join(group.stem for group in preferred) if preferred else _labels(groups)
    raise HubError(
        f"{reference.repo} holds several models: {names}",
        remedy=f"name one, for example `zoo pull {reference.repo}:{named}`",
    )


def _safetensors(
    reference: Reference,
    files: Sequence[RemoteFile],
    weights: Sequence[RemoteFile],
    read_index: Callable[[RemoteFile], Mapping[str, str]],
    *,
    alone: bool,
) -> Choice:
    """Weights and companions of a safetensors checkpoint in the top folder; duplicates of the weights stay behind."""
    top = {file.name: file for file in files if "/" not in file.name}
    if "config.json" not in top:
        adapter = "adapter_config.json" in top
        raise HubError(
            f"{reference.repo} holds safetensors but no config.json"
            + (": it is an adapter, not a whole model" if adapter else ""),
            remedy="pull the model that the adapter belongs to" if adapter else "pull a repository of a whole model",
        )
    chosen = [file for name, file in top.items() if any(fnmatchcase(name, pattern) for pattern in COMPANIONS)]
    if WEIGHTS in top:
        chosen.append(top[WEIGHTS])
    elif INDEX in top:
        names = sorted(set(read_index(top[INDEX]).values()))
        there = {file.name for file in weights}
        if missing := [name for name in names if name not in there]:
            raise HubError(
                f"{INDEX} of {reference.repo} names files that are not among its safetensors: "
                + ", ".join(map(repr, missing[:5])),
                remedy="ask the owner of the repository to upload the rest",
            )
        chosen += [top[INDEX], *(top[name] for name in names)]
    elif len(weights) == 1:
        chosen.append(weights[0])
    else:
        raise HubError(
            f"{reference.repo} holds several safetensors files and no {INDEX}: "
            + ", ".join(file.name for file in weights[:5]),
            remedy="pull a repository in the usual layout",
        )
    named = Reference(reference.repo, None if alone else "safetensors")
    return Choice(named, "safetensors", tuple(sorted(chosen, key=lambda file: file.name)))


def _nothing(reference: Reference, files: Sequence[RemoteFile]) -> HubError:
    """The error for a repository without anything to open."""
    pickles = [file.name for file in files if file.name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickles:
        return HubError(
            f"{reference.repo} has its weights only as pickles ({pickles[0]}), which zoo never opens",
            remedy="look for a safetensors or GGUF version of the model",
        )
    return HubError(
        f"{reference.repo} holds no {'safetensors' if reference.selector else 'GGUF model and no safetensors'}",
        remedy="pull a repository that holds a language model in one of these formats",
    )


def _labels(groups: Sequence[_Group]) -> str:
    return ", ".join(group.label for group in groups)

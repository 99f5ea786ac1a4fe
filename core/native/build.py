"""Compiles the CPU library: every source once per instruction set, then one link. Only Python's own library is used.

    python core/native/build.py [--machine aarch64] [--output FOLDER] [--isa avx2 | --isa here]
    python core/native/build.py --test [--sanitize address | thread] --output FOLDER

Objects are kept in core/build/native by the hash of what they are made of, so an interrupted build goes on where it
stopped, and the finished library appears by one rename: whatever was there before works until then.
Environment: CXX (default g++, c++ or clang++, the first that is there), CXXFLAGS, LDFLAGS.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "src" / "zoo" / "_native"
LIBRARY = "libzoo_cpu.so"
TEST = "zoo_cpu_test"

AVX2 = ("-mavx2", "-mfma", "-mf16c", "-mbmi2", "-mpopcnt")
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx512bf16", "-mavx512vbmi")
ISAS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "scalar": (),
        "avx2": AVX2,
        "avxvnni": (*AVX2, "-mavxvnni"),
        "avx512": (*AVX2, *AVX512),
        "amx": (*AVX2, *AVX512, "-mamx-tile", "-mamx-int8", "-mamx-bf16"),
    },
    "aarch64": {
        "scalar": (),
        "dotprod": ("-march=armv8.2-a+dotprod+fp16",),
        "i8mm": ("-march=armv8.2-a+dotprod+fp16+i8mm",),
    },
}
# What Linux calls the features that a set needs, for `--isa here`; the library itself asks the processor.
FEATURES: dict[str, set[str]] = {
    "scalar": set(),
    "avx2": {"avx2", "fma", "f16c", "bmi2"},
    "avxvnni": {"avx2", "fma", "f16c", "bmi2", "avx_vnni"},
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16", "avx512vbmi"},
    "amx": {"avx512f", "avx512_vnni", "avx512_bf16", "avx512vbmi", "amx_tile", "amx_int8", "amx_bf16"},
    "dotprod": {"asimddp", "asimdhp"},
    "i8mm": {"asimddp", "asimdhp", "i8mm"},
}
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-pthread", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-Wall", "-Wextra"),
    *("-Wno-maybe-uninitialized", "-Wno-psabi"),  # from the intrinsics of GCC 12, and of functions that are all inlined
)
# The C++ runtime goes inside: the library then needs nothing but the C library of the system.
LINK = ("-shared", "-pthread", "-static-libstdc++", "-static-libgcc", "-Wl,--gc-sections")
GLIBC = {b"libc.so.6", b"libm.so.6", b"libpthread.so.0", b"ld-linux-x86-64.so.2", b"ld-linux-aarch64.so.1"}
SANITIZE: dict[str, tuple[str, ...]] = {
    # Without checks that find nothing in code of this kind and double the time of compilation.
    "address": (
        *("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-sanitize-address-use-after-scope"),
        "-fno-sanitize=null,object-size,pointer-overflow",
    ),
    "thread": ("-fsanitize=thread",),
}


class BuildError(Exception):
    """The library cannot be built; says why in one line."""


def build(output: Path = PACKAGE, machine: str | None = None, isas: Sequence[str] = ()) -> Path:
    """Compile and link, for all instruction sets or those named. Returns the library's path.

    Raises BuildError without touching what is there.
    """
    compiler, units = find_compiler(), _units(_machine(machine), isas)
    return _link(compiler, LINK, compile_all(compiler, FLAGS, units), output / LIBRARY)


def build_test(output: Path, machine: str | None = None, isas: Sequence[str] = (), sanitize: str = "") -> Path:
    """The C++ tests and all that they test as one program, which needs no Python. Returns its path."""
    compiler, extra = find_compiler(), SANITIZE[sanitize] if sanitize else ()
    # Beside a sanitizer the highest level of optimisation costs minutes, and hides what is to be seen.
    flags = (*FLAGS, "-O1", "-g1", *extra) if sanitize else FLAGS
    units = [*_units(_machine(machine), isas), *((source, ()) for source in sorted(HERE.glob("test/*.cpp")))]
    return _link(compiler, ("-pthread", *extra), compile_all(compiler, flags, units), output / TEST)


def platform_tag(library: Path) -> str:
    """The platform part of the tag of a wheel that holds a library: manylinux by the newest glibc that it asks for.

    Where it needs other libraries than those of glibc, or there is no glibc, the tag is that of this system.
    """
    raw = library.read_bytes()
    needed = set(re.findall(rb"(?<=\0)[\w.+-]+\.so\.\d+(?=\0)", raw))
    versions = [(int(major), int(minor)) for major, minor in re.findall(rb"\0GLIBC_(\d+)\.(\d+)[.\d]*(?=\0)", raw)]
    if versions and needed <= GLIBC:
        major, minor = max(versions)
        return f"manylinux_{major}_{minor}_{_machine(None)}"
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def _machine(named: str | None) -> str:
    machine = named or platform.machine()
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    if machine not in ISAS:
        raise BuildError(f"no CPU kernels are written for {machine}")
    return machine


def _link(compiler: Sequence[str], flags: Sequence[str], objects: Sequence[Path], target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        linked = Path(folder, target.name)
        _run([*compiler, *flags, *_words("LDFLAGS"), "-o", str(linked), *map(str, objects)])
        os.replace(linked, target)
    return target


def find_compiler() -> list[str]:
    """The command of a C++ compiler that exists."""
    if named := _words("CXX"):
        if shutil.which(named[0]) is None:
            raise BuildError(f"CXX names {named[0]}, which is not here")
        return named
    for name in ("g++", "c++", "clang++"):
        if shutil.which(name):
            return [name]
    raise BuildError("no C++ compiler is here (Debian, Ubuntu: apt install g++)")


def compile_all(
    compiler: Sequence[str], flags: Sequence[str], units: Iterable[tuple[Path, Sequence[str]]]
) -> list[Path]:
    """Object files of sources with flags of their own, compiled in parallel where they are not at hand."""
    store = HERE.parent / "build" / "native"
    if not os.access(store if store.exists() else HERE.parent, os.W_OK):
        store = Path(tempfile.mkdtemp(prefix="zoo-native-"))
    store.mkdir(parents=True, exist_ok=True)
    headers, of_tests = hashlib.sha256(), hashlib.sha256()
    for header in sorted(HERE.rglob("*.h")):
        (of_tests if header.parent.name == "test" else headers).update(header.read_bytes())
    common = [*compiler, *flags, *_words("CXXFLAGS"), f"-I{HERE}"]
    jobs = []
    for source, extra in units:
        command = [*common, *extra]
        seen = headers.hexdigest() + (of_tests.hexdigest() if source.parent.name == "test" else "")
        mark = hashlib.sha256(f"{command}{source}{seen}".encode() + source.read_bytes()).hexdigest()
        jobs.append((command, source, store / f"{source.stem}-{mark[:20]}.o"))
    kept = {target for _, _, target in jobs}
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(lambda job: _compile(*job), jobs))
    for old in store.glob("*.o"):
        if old not in kept and _age_s(old) > 3600:
            old.unlink(missing_ok=True)
    return [target for _, _, target in jobs]


def _units(machine: str, isas: Sequence[str]) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Each source with its own flags; the largest first, so that no thread is left with one at the end."""
    if "here" in isas:
        isas = [isa for isa in ISAS[machine] if FEATURES[isa] <= _features()]
    for source in sorted([*HERE.glob("ops/*.cpp"), *HERE.glob("matmul/*.cpp")], key=lambda path: -path.stat().st_size):
        for isa, extra in ISAS[machine].items():
            if not isas or isa in isas:
                yield source, (*extra, f"-DZOO_ISA={isa}")
    for source in sorted(HERE.glob("*.cpp")):
        yield source, ()


def _compile(command: Sequence[str], source: Path, target: Path) -> None:
    if target.exists():
        return
    # A name of its own: two builds at once, and a build that is killed, leave no half object under the real name.
    handle, partial = tempfile.mkstemp(dir=target.parent, suffix=".partial")
    os.close(handle)
    try:
        _run([*command, "-c", str(source), "-o", partial])
        os.replace(partial, target)
    finally:
        Path(partial).unlink(missing_ok=True)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["?"]
        raise BuildError(f"{command[0]} failed: {lines[0]}")
    if done.stderr:
        print(done.stderr, file=sys.stderr)


def _features() -> set[str]:
    try:
        return set(Path("/proc/cpuinfo").read_text().split())
    except OSError as error:
        raise BuildError("the processor's features cannot be read: name the instruction sets") from error


def _words(variable: str) -> list[str]:
    return shlex.split(os.environ.get(variable, ""))


def _age_s(path: Path) -> float:
    import time

    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0


def main() -> int:
    """Build from the command line. Exits with 1 and one line if it cannot be done."""
    parser = argparse.ArgumentParser(description="Compile zoo's CPU kernels.")
    parser.add_argument("--machine", choices=sorted(ISAS), help="processor to compile for (default: this one)")
    parser.add_argument("--output", type=Path, default=PACKAGE, help="folder of the library")
    parser.add_argument("--isa", action="append", default=[], help="instruction set to compile for, or 'here' for all "
                        "that this processor has (default: all)")  # fmt: skip
    parser.add_argument("--test", action="store_true", help=f"build the program {TEST} instead of the library")
    parser.add_argument("--sanitize", choices=sorted(SANITIZE), default="", help="a sanitizer for the test program")
    arguments = parser.parse_args()
    common = (arguments.output, arguments.machine, arguments.isa)
    try:
        print(build_test(*common, arguments.sanitize) if arguments.test else build(*common))
    except BuildError as error:
        print(f"no CPU kernels: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

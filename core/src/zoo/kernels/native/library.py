"""The shared library: where it is, whether it fits this zoo and this processor, and its instruction sets."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from zoo.errors import DeviceError, UsageError
from zoo.kernels.native import structs
from zoo.settings import Settings

PATH = Path(__file__).parents[2] / "_native" / "libzoo_cpu.so"

OFF = "off"
"""Value of ZOO_CPU_ISA that leaves everything to the reference."""

_COST = "the reference computes instead, ten times slower and more"


def usable() -> tuple[bool, str]:
    """Whether the library can be used, and if not why, with the remedy."""
    asked = Settings.from_env().cpu_isa
    if asked == OFF:
        return False, "ZOO_CPU_ISA is off"
    if not PATH.is_file():
        return False, f"zoo-core was installed without a C++ compiler (apt install g++, then reinstall); {_COST}"
    try:
        library = load()
    except OSError as error:
        return False, f"{PATH} cannot be loaded: {error}; reinstall zoo-core; {_COST}"
    if library.zoo_abi() != structs.ABI or not _sizes_fit(library):
        return False, f"{PATH} was built from other sources: reinstall zoo-core; {_COST}"
    return True, f"instruction set {instruction_set()}"


@functools.cache
def load() -> ctypes.CDLL:
    """The library with the types of its functions. Raises OSError where it cannot be loaded."""
    library = ctypes.CDLL(str(PATH))
    pointer, number, wide = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    for name, result, arguments in (
        ("zoo_abi", number, ()),
        ("zoo_op_bytes", wide, (ctypes.c_int32,)),
        ("zoo_isa", ctypes.c_char_p, (number, ctypes.POINTER(number))),
        ("zoo_pool_create", pointer, (ctypes.c_char_p, number)),
        ("zoo_pool_destroy", None, (pointer,)),
        ("zoo_execute", wide, (pointer, pointer, wide)),
        ("zoo_has_type", number, (pointer, ctypes.c_int32)),
        ("zoo_tile_rows", number, (pointer, ctypes.c_int32)),
        ("zoo_pack", None, (pointer, pointer, pointer)),
        ("zoo_read", ctypes.c_uint64, (pointer, pointer, wide)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def instruction_sets() -> dict[str, bool]:
    """Instruction sets of the build, best first, and whether this processor has them."""
    library, found, has, index = load(), {}, ctypes.c_int(), 0
    while (name := library.zoo_isa(index, ctypes.byref(has))) is not None:
        found[name.decode()] = bool(has.value)
        index += 1
    return found


def instruction_set() -> str:
    """The set that kernels use: ZOO_CPU_ISA, or the best that the processor has.

    Raises UsageError for a name that the build has not, DeviceError for one that the processor has not.
    """
    sets, asked = instruction_sets(), Settings.from_env().cpu_isa
    if asked is None:
        return next(name for name, has in sets.items() if has)
    if asked not in sets:
        raise UsageError(f"ZOO_CPU_ISA is {asked!r}", remedy=f"use one of {', '.join(sets)}, or {OFF}")
    if not sets[asked]:
        here = ", ".join(name for name, has in sets.items() if has)
        raise DeviceError(f"ZOO_CPU_ISA is {asked}, which this processor has not", remedy=f"it has {here}; or unset it")
    return asked


def _sizes_fit(library: ctypes.CDLL) -> bool:
    return all(library.zoo_op_bytes(code) == ctypes.sizeof(kind) for code, kind in structs.OPS.items())

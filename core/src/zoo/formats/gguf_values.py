"""Values of GGUF metadata: the type ids, and arrays that stay in the mapped file."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from zoo.formats.mapped import MappedFile

if TYPE_CHECKING:
    import numpy as np

MetaValue: TypeAlias = "int | float | bool | str | GGUFArray"

BOOL, STRING, ARRAY = 7, 8, 9
# Value type id -> (name, little-endian struct). Strings and arrays have no fixed size.
SCALARS: Mapping[int, tuple[str, struct.Struct]] = MappingProxyType(
    {
        0: ("u8", struct.Struct("<B")),
        1: ("i8", struct.Struct("<b")),
        2: ("u16", struct.Struct("<H")),
        3: ("i16", struct.Struct("<h")),
        4: ("u32", struct.Struct("<I")),
        5: ("i32", struct.Struct("<i")),
        6: ("f32", struct.Struct("<f")),
        BOOL: ("bool", struct.Struct("<?")),
        10: ("u64", struct.Struct("<Q")),
        11: ("i64", struct.Struct("<q")),
        12: ("f64", struct.Struct("<d")),
    }
)


class GGUFArray(Sequence[Any]):
    """An array of the metadata, read from the mapped file when asked for.

    Elements are int, float, bool or str (UTF-8; other bytes come out as surrogate escapes). `element_type` is "string"
    or a name in SCALARS. To iterate or slice is much faster than to ask for one element after the other.
    """

    def __init__(self, file: MappedFile, kind: int, bounds: Sequence[int]) -> None:
        """`bounds` are the bytes where each element begins and, last, where the array ends.

        A string begins with its length of 8 bytes.
        """
        self.element_type = "string" if kind == STRING else SCALARS[kind][0]
        self._form = None if kind == STRING else SCALARS[kind][1]
        self._file = file
        self._bounds = bounds

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        places = range(len(self))[index]
        if isinstance(places, int):
            return next(self._values(places, places + 1))
        if places.step == 1:
            return list(self._values(places.start, places.start + len(places)))
        return [self[place] for place in places]

    def __iter__(self) -> Iterator[Any]:
        return self._values(0, len(self))

    def __repr__(self) -> str:
        return f"GGUFArray({self.element_type}, {len(self)} elements)"

    def numpy(self) -> np.ndarray[Any, np.dtype[Any]]:
        """The numbers as a read-only array [len(self)] over the mapped file. Raises TypeError for strings."""
        import numpy as np

        if self._form is None:
            raise TypeError("an array of strings has no numpy form: iterate over it")
        data = self._file.view(self._bounds[0], self._bounds[-1] - self._bounds[0])
        return np.frombuffer(data, dtype=np.dtype(self._form.format))

    def _values(self, first: int, last: int) -> Iterator[Any]:
        base, end = self._bounds[first], self._bounds[last]
        data = self._file.view(base, end - base)
        if self._form is not None:
            return (value for (value,) in self._form.iter_unpack(data))
        return (
            str(data[begin - base + 8 : end - base], "utf-8", "surrogateescape")
            for begin, end in pairwise(islice(self._bounds, first, last + 1))
        )

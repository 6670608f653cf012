"""The parts of a split model as one file: NAME-00001-of-00003.gguf and its siblings.

The first part holds the metadata, any part may hold tensors. Each part says in `split.no`, `split.count` and
`split.tensors.count` which it is (from 0), how many there are, and how many tensors all have together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType

from hetrun.errors import ModelFileError
from hetrun.model.gguf_file import ModelFile
from hetrun.model.metadata import REFETCH, MetadataArray, MetadataValue, quoted
from hetrun.model.split_name import SplitName

PREFIX = "split."
_NO, _COUNT, _TENSORS = (f"{PREFIX}{key}" for key in ("no", "count", "tensors.count"))
_TOGETHER = "keep all parts in one folder, under the names they were made with"
_MIXED = "the files come from different splits: pull or copy all parts of one model again"


class SplitModelFile(ModelFile):
    """A model in several files. `path` is that of the first part, `paths` those of all.

    Made by `ModelFile.open`, whichever part it is given. `metadata` has no `split.` keys.
    """

    def __init__(self, parts: Sequence[ModelFile]) -> None:
        """parts: all, in order. ModelFileError where they do not belong together."""
        first = parts[0]
        self._parts = tuple(parts)
        self.path = first.path
        self.paths = tuple(part.path for part in parts)
        self.size_bytes = sum(part.size_bytes for part in parts)
        self.version = first.version
        self.alignment = min(part.alignment for part in parts)
        self._part_of = _tensors_of(parts)
        self.tensors = MappingProxyType({name: part.tensors[name] for name, part in self._part_of.items()})
        self._metadata: Mapping[str, MetadataValue] | None = MappingProxyType(
            {key: value for key, value in first.metadata.items() if not key.startswith(PREFIX)}
        )

    def release_pages(self) -> None:
        for part in self._parts:
            part.release_pages()

    def close(self) -> None:
        self._metadata = None
        for part in self._parts:
            part.close()

    def metadata_bytes(self, key: str) -> bytes:
        return self._parts[0].metadata_bytes(key)

    def blocks(self, name: str) -> memoryview:
        return self._part_of.get(name, self._parts[0]).blocks(name)


def open_split(part: ModelFile) -> SplitModelFile:
    """The whole model that `part` is a part of. Closes `part` where that fails.

    ModelFileError where the parts cannot be found, or do not belong together.
    """
    with ExitStack() as opened:
        opened.enter_context(part)
        number, count = _place(part)
        name = SplitName.parse(part.path.name)
        if name is None or (name.number, name.count) != (number, count):
            raise ModelFileError(
                f"is part {number} of {count} of a model, but is not named so",
                path=str(part.path),
                field=_NO,
                remedy=f"give the parts their names back: NAME-{number:05d}-of-{count:05d}.gguf is this one's",
            )
        paths = [part.path.with_name(name.part(i + 1)) for i in range(count)]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise ModelFileError(
                f"is part {number} of {count}; beside it there is no {', '.join(missing[:3])}{more}",
                path=str(part.path),
                remedy=_TOGETHER,
            )
        parts = []
        for i, path in enumerate(paths):
            other = part if i + 1 == number else opened.enter_context(ModelFile.open_single(path))
            if other is not part and _place(other) != (i + 1, count):
                found = "{} of {}".format(*_place(other))
                raise ModelFileError(
                    f"is named as part {i + 1} of {count}, but says that it is part {found}",
                    path=str(path),
                    field=_NO,
                    remedy=_MIXED,
                )
            parts.append(other)
        _check_metadata(parts)
        model = SplitModelFile(parts)
        opened.pop_all()
        return model


def _place(part: ModelFile) -> tuple[int, int]:
    """Which part it is, from 1, and of how many."""
    count = _integer(part, _COUNT, 1, 99_999, default=1)
    return _integer(
        part, _NO, 0, count - 1, default=0 if count == 1 else None
    ) + 1, count  # a whole file needs no number


def _integer(part: ModelFile, key: str, low: int, high: int, default: int | None = None) -> int:
    value = part.metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        said = "is missing" if value is None else f"is {quoted(str(value))}"
        raise ModelFileError(
            f"{key} {said}, it must be from {low} to {high}", path=str(part.path), field=key, remedy=REFETCH
        )
    return value


def _check_metadata(parts: Sequence[ModelFile]) -> None:
    """What a later part says beside its place must be what the first says."""
    first = parts[0].metadata
    for part in parts[1:]:
        for key, value in part.metadata.items():
            if key.startswith(PREFIX) or isinstance(value, MetadataArray):
                continue
            if key in first and first[key] != value:
                raise ModelFileError(
                    f"says {quoted(str(value))}, the first part {quoted(str(first[key]))}",
                    path=str(part.path),
                    field=key,
                    remedy=_MIXED,
                )


def _tensors_of(parts: Sequence[ModelFile]) -> dict[str, ModelFile]:
    """{tensor: the part that holds it}, in order."""
    found: dict[str, ModelFile] = {}
    for part in parts:
        for name in part.tensors:
            if name in found:
                raise ModelFileError(
                    f"holds tensor {quoted(name)}, which {found[name].path.name} holds too",
                    path=str(part.path),
                    remedy=_MIXED,
                )
            found[name] = part
    for part in parts:
        stated = _integer(part, _TENSORS, 0, 1 << 31)
        if stated != len(found):
            raise ModelFileError(
                f"the model has {stated} tensors by this part, the {len(parts)} parts hold {len(found)}",
                path=str(part.path),
                field=_TENSORS,
                remedy=_MIXED,
            )
    return found

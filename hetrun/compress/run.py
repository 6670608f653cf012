"""A model and a calibration text -> a compressed model, one matrix after the other, in the order in which they run."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hetrun import __version__, api
from hetrun.compress import container
from hetrun.compress.choose import Treatment, choose
from hetrun.compress.encode import Array, as_type
from hetrun.compress.forward import run as run_forward
from hetrun.compress.solve import METHODS, Gram, Method, solve
from hetrun.compress.work import WorkFolder
from hetrun.errors import ModelFileError, UsageError
from hetrun.graph.graph import Graph
from hetrun.model.architectures import GraphOptions
from hetrun.model.encodings import VERSION, is_container
from hetrun.model.gguf_file import ModelFile
from hetrun.model.tokenizer import Tokenizer
from hetrun.ops import MatMul
from hetrun.plugins import Registry
from hetrun.reference.dequant import StoredWeight
from hetrun.tensor import Weight

LEAST_TOKENS = 2048
DEFAULT_TOKENS, DEFAULT_CTX = 16384, 512


@dataclass(frozen=True)
class Options:
    """schemes, keeps: as `choose` has them.   tokens: of the calibration text, at most.   n_ctx: of a window of it."""

    schemes: Sequence[str] = ("w2s24",)
    keeps: Sequence[str] = ()
    method: Method = "sparsegpt"
    tokens: int = DEFAULT_TOKENS
    n_ctx: int = DEFAULT_CTX
    force: bool = False
    restart: bool = False


@dataclass(frozen=True)
class Done:
    """One tensor.   error: its output's squared error over the calibration, relative.   seconds: 0 where found done."""

    treatment: Treatment
    error: float
    seconds: float


@dataclass(frozen=True)
class Result:
    """tensors: in file order.   tokens: of the calibration text that were used.   errors: by name, of what changed.

    resumed: tensors that an earlier run had finished.
    """

    path: Path
    nbytes: int
    source_bytes: int
    tokens: int
    tensors: Sequence[Treatment]
    errors: Mapping[str, float]
    resumed: int


Progress = Callable[[int, int, Done], None]


def compress(model: Path, text: str, output: Path, options: Options, progress: Progress | None = None) -> Result:
    """Writes the compressed model to `output`. What a run that was ended has finished is found beside it and used.

    Memory: the activations of one layer for all calibration tokens, and one matrix with its Gram matrix.
    UsageError for options, text or output that cannot be meant, ModelFileError and its like for the model.
    """
    _check_output(model, output, options)
    with ModelFile.open(model) as file:
        if os.path.realpath(output) in map(os.path.realpath, file.paths):
            raise UsageError(f"--out {output}: is the model itself", remedy="name another file")
        if is_container(file.metadata):
            raise UsageError(f"{model}: is compressed already", remedy="compress the model that it was made of")
        graph = api.graph_of(file, GraphOptions(n_ctx=options.n_ctx), Registry.load())
        treatments = choose(graph, file.tensors, options.schemes, options.keeps)
        windows = _windows(file, text, options)
        return _Run(file, graph, treatments, windows, output, options, progress).run()


def _check_output(model: Path, output: Path, options: Options) -> None:
    if options.method not in METHODS:
        raise UsageError(f"no method {options.method!r}", remedy=f"known are {', '.join(METHODS)}")
    if output.is_dir():
        raise UsageError(f"--out {output}: is a folder", remedy="name a file in it")
    if output.exists() and not options.force:
        raise UsageError(f"--out {output}: exists", remedy="name another file, or replace it by --force")
    if not output.absolute().parent.is_dir():
        raise UsageError(f"--out {output}: there is no such folder", remedy="make the folder first")


def _windows(file: ModelFile, text: str, options: Options) -> list[list[int]]:
    """The calibration text in windows of n_ctx tokens, each begun with BOS where the model has it."""
    tokenizer = Tokenizer.from_metadata(file.metadata)
    ids = tokenizer.encode(text, add_special=False)
    tokenizer.release_encoder()
    head = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    size = options.n_ctx - len(head)
    least = max(LEAST_TOKENS, options.n_ctx)
    if len(ids) < least:
        raise UsageError(
            f"the calibration text has {len(ids)} tokens, at least {least} are needed",
            remedy=f"give a longer text of the kind the model will see; {DEFAULT_TOKENS} tokens are good",
        )
    n_windows = max(1, min(len(ids), options.tokens) // size)
    return [[*head, *ids[i * size : (i + 1) * size]] for i in range(n_windows)]


class _Run:
    def __init__(
        self,
        file: ModelFile,
        graph: Graph,
        treatments: Mapping[str, Treatment],
        windows: list[list[int]],
        output: Path,
        options: Options,
        progress: Progress | None,
    ) -> None:
        self.file = file
        self.graph = graph
        self.treatments = treatments
        self.windows = windows
        self.output = output
        self.options = options
        self.progress = progress
        self.numbers = {name: i for i, name in enumerate(file.tensors)}
        self.changed = [t for t in treatments.values() if t.scheme or t.type is not t.weight.type]
        self.errors: dict[str, float] = {}
        self.resumed = 0
        self._gram: tuple[str, Gram | None] = ("", None)

    def run(self) -> Result:
        with WorkFolder(self.output, self._job(), restart=self.options.restart) as self.work:
            self._check_space()
            self.resumed = sum(self.work.has(self.numbers[t.weight.name]) for t in self.changed)
            for treatment in self.changed:
                if treatment.scheme is None and not self._found(treatment):
                    started = time.perf_counter()
                    self._put(treatment, as_bytes(self._values(treatment.weight), treatment), 0.0, started)
            solved = [
                op
                for op in self.graph.ops
                if isinstance(op, MatMul) and self.treatments[op.weight.name].scheme is not None
            ]
            open_ops = [op for op in solved if not self._found(self.treatments[op.weight.name])]
            if open_ops:
                run_forward(self.graph, self.windows, self._fetch, self._before, open_ops[-1])
            return self._finish()

    def _job(self) -> dict[str, object]:
        """What the finished tensors depend on."""
        header = hashlib.sha256()
        for key in self.file.metadata:
            header.update(self.file.metadata_bytes(key))
        for weight in self.file.tensors.values():
            header.update(repr(weight).encode())
        return {
            "encodings": VERSION,
            "model": [header.hexdigest(), self.file.size_bytes, *(p.stat().st_mtime_ns for p in self.file.paths)],
            "text": hashlib.sha256(np.asarray(self.windows, np.int32).tobytes()).hexdigest(),
            "method": self.options.method,
            "tensors": {
                t.weight.name: [t.type.name, t.scheme.name if t.scheme else None] for t in self.treatments.values()
            },
        }

    def _check_space(self) -> None:
        n_bytes = sum(t.nbytes for t in self.treatments.values())
        n_bytes += sum(t.nbytes for t in self.changed if not self.work.has(self.numbers[t.weight.name]))
        free = shutil.disk_usage(self.work.path).free
        if free < n_bytes:
            raise UsageError(
                f"--out {self.output}: {n_bytes >> 20} MB are needed there, {free >> 20} MB are free",
                remedy="make room, or name a file on another disk",
            )

    def _found(self, treatment: Treatment) -> bool:
        """Whether it was done before; its error is noted then."""
        name = treatment.weight.name
        if name in self.errors:
            return True
        if not self.work.has(self.numbers[name]):
            return False
        self._note(treatment, self.work.read(self.numbers[name])[0], 0.0)
        return True

    def _put(self, treatment: Treatment, data: bytes, error: float, started: float) -> None:
        self.work.put(self.numbers[treatment.weight.name], error, data)
        self._note(treatment, error, time.perf_counter() - started)

    def _note(self, treatment: Treatment, error: float, seconds: float) -> None:
        self.errors[treatment.weight.name] = error
        if self.progress:
            self.progress(len(self.errors), len(self.changed), Done(treatment, error, seconds))

    def _values(self, weight: Weight) -> Array:
        values = StoredWeight(weight, self.file.blocks(weight.name)).array
        self.file.release_pages()
        return values

    def _fetch(self, weight: Weight) -> StoredWeight:
        treatment = self.treatments[weight.name]
        if weight.name not in self.errors:
            return StoredWeight(weight, self.file.blocks(weight.name))
        data = self.work.read(self.numbers[weight.name])[1]
        return StoredWeight(Weight(weight.name, treatment.type, weight.shape), memoryview(data))

    def _before(self, op: MatMul, x: Array) -> None:
        treatment = self.treatments[op.weight.name]
        if treatment.scheme is None or self._found(treatment):
            return
        started = time.perf_counter()
        solution = solve(
            self._values(op.weight),
            self._gram_of(op.x.name, x),
            prune=treatment.scheme.prune,
            quantise=treatment.scheme.quantise,
            method=self.options.method,
        )
        data = solution.codes.to_bytes() if solution.codes else as_bytes(solution.values, treatment)
        self._put(treatment, data, solution.error, started)

    def _gram_of(self, name: str, x: Array) -> Gram:
        """Kept until another input comes, as matmuls of one input stand together."""
        found = self._gram[1] if self._gram[0] == name else None
        if found is None:
            with np.errstate(all="ignore"):
                found = Gram.of(x)
            if not np.isfinite(found.values).all():
                raise ModelFileError(
                    f"the input of {name} is not finite on the calibration text",
                    path=str(self.file.path),
                    remedy="the model is damaged or overflows float32: try it with hetrun perplexity",
                )
            self._gram = (name, found)
        return found

    def _finish(self) -> Result:
        tensors = [self.treatments[name] for name in self.file.tensors]
        described = {t.weight.name: (t.weight, t.type) for t in tensors}
        schemes = sorted({t.scheme.name for t in tensors if t.scheme})
        tokens = len(self.windows) * len(self.windows[0])
        notes = {
            "hetrun.compress.version": __version__,
            "hetrun.compress.schemes": ", ".join(schemes) or "none",
            "hetrun.compress.method": self.options.method,
            "hetrun.compress.tokens": str(tokens),
        }
        metadata = container.metadata_of(self.file, described, notes)
        with self.work.result() as out:
            container.write(out, metadata, self.file.alignment, list(described.values()), self._data)
        return Result(
            self.output, self.output.stat().st_size, self.file.size_bytes, tokens, tensors, self.errors, self.resumed
        )

    def _data(self, name: str) -> Iterator[bytes | memoryview]:
        if name in self.errors:
            yield self.work.read(self.numbers[name])[1]
        else:
            yield self.file.blocks(name)
            self.file.release_pages()


def as_bytes(values: Array, treatment: Treatment) -> bytes:
    return b"".join(as_type(values, treatment.type))

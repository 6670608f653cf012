"""24,000 damaged GGUF files: each one opens or is refused, within 2 s and 1 GB, and never anything else.

A mutant is a function of (kind, number) alone. To replay those that a failure lists:
    python tests/unit/test_gguf_mutations.py FOLDER KIND FIRST COUNT
where FOLDER holds the base files (pytest keeps it: --basetemp=DIR). The mutants run in a process of their own, whose
address space may grow by 1 GB and no more, with an alarm of 2 s for each.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

resource = pytest.importorskip("resource", reason="limits on memory need a POSIX system")

from hetrun.errors import ModelFileError, UnsupportedModelError  # noqa: E402
from hetrun.model.gguf_file import ModelFile  # noqa: E402
from hetrun.model.metadata import MetadataArray  # noqa: E402

KINDS = ("bit-flips", "truncations", "field-overwrites", "splices")
MUTANTS_OF_A_KIND = 6000
REAL_MODEL_MUTANTS = 150
CASE_LIMIT_S = 2.0
MEMORY_LIMIT_BYTES = 1 << 30
EXTREMES = [0, 1, 2, 3, 4, 7, 8, 9, 12, 13, 31, 32, 33, 48, 255, 256, 65535, 65536]
EXTREMES += [
    sign * (1 << bits) + delta for bits in (16, 31, 32, 33, 40, 60, 62, 63) for sign in (1, -1) for delta in (-1, 0, 1)
]


# --- the mutants


def overwrite_field(rng, base, fields):
    offset, size = rng.choice(fields) if rng.random() < 0.8 else (rng.randrange(len(base) - 8), rng.choice([4, 8]))
    value = rng.choice([*EXTREMES, len(base), len(base) - offset, rng.getrandbits(64)])
    base[offset : offset + size] = struct.pack("<Q", value & ((1 << 64) - 1))[:size]


def mutate(kind, rng, base, fields):
    """A damaged copy of `base`. fields: [(offset, size)] of the integers in its header."""
    data = bytearray(base)
    header_end = fields[-1][0] + fields[-1][1]
    if kind == "bit-flips":
        for _ in range(rng.choice([1, 1, 2, 4, 16])):
            data[rng.randrange(header_end)] ^= 1 << rng.randrange(8)
    elif kind == "truncations":
        del data[rng.randrange(header_end if rng.random() < 0.7 else len(data)) :]
        if rng.random() < 0.3:
            data += rng.choice([bytes(4096), rng.randbytes(64), base[: rng.randrange(200)]])
    elif kind == "field-overwrites":
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            overwrite_field(rng, data, fields)
    else:
        start, length = rng.randrange(header_end), rng.randrange(1, 200)
        piece = base[start : start + length]
        target = rng.choice(fields)[0] if rng.random() < 0.5 else rng.randrange(header_end)
        if rng.random() < 0.5:
            data[target : target + rng.randrange(len(piece) + 1)] = piece * rng.choice([1, 1, 2, 50])
        else:
            data[target : target + len(piece)] = piece
    return bytes(data)


def touch(path):
    """Open `path` and read all that it says: "opened", or "refused" with one of the two errors that may be raised."""
    try:
        with ModelFile.open(path) as file:
            for value in file.metadata.values():
                if isinstance(value, MetadataArray):
                    raws = [value.raw(i) for i in range(len(value))] if value.element_kind == "string" else value
                    assert len(value.to_list()) == len(raws) == len(value)
            for name, weight in file.tensors.items():
                assert len(file.blocks(name).tobytes()) == weight.nbytes
            _ = file.architecture
    except (ModelFileError, UnsupportedModelError) as error:
        assert "\n" not in str(error)
        return "refused"
    return "opened"


# --- the process that runs them


class TookTooLong(BaseException):
    """Not an Exception, so that no handler in the reader can swallow it."""


def alarm(*_):
    raise TookTooLong


def limit_memory(n_bytes):
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    limit = pages * resource.getpagesize() + n_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def guarded(case, run, tally):
    """Run one case under the alarm; tally it by outcome, and list what is none of the allowed ones."""
    print(case, file=sys.stderr, flush=True)  # the last line names the case if the process dies
    faulthandler.dump_traceback_later(CASE_LIMIT_S + 1, exit=True)  # for a loop in C, which puts signals off
    signal.setitimer(signal.ITIMER_REAL, CASE_LIMIT_S)
    try:
        outcome = run()
    except BaseException as error:
        tally["failures"].append(f"{case}: {type(error).__name__}: {error}")
    else:
        tally[outcome] += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()


def worker(folder, kind, first, count):
    bases = [
        (path.read_bytes(), json.loads(path.with_suffix(".json").read_text())) for path in sorted(folder.glob("*.gguf"))
    ]
    tally = {"opened": 0, "refused": 0, "failures": []}
    signal.signal(signal.SIGALRM, alarm)
    limit_memory(MEMORY_LIMIT_BYTES + max(len(base) for base, _ in bases))
    path = folder / f"{kind}.mutant"
    for number in range(first, first + count):
        base, fields = bases[number % len(bases)]
        path.write_bytes(mutate(kind, random.Random(f"{kind} {number}"), base, fields))
        guarded(f"{kind} {number}", lambda: touch(path), tally)
    return tally


def real_model_worker(path, first, count):
    """Mutants of one large file, whose header is overwritten in place and put back. Its tensor data is a hole."""
    fields = json.loads(path.with_suffix(".json").read_text())
    tally = {"opened": 0, "refused": 0, "failures": []}
    signal.signal(signal.SIGALRM, alarm)
    limit_memory(MEMORY_LIMIT_BYTES + path.stat().st_size)
    with path.open("r+b") as file:
        header = file.read(fields[-1][0] + fields[-1][1])
        for number in range(first, first + count):
            mutant = mutate(
                ("bit-flips", "field-overwrites")[number % 2], random.Random(number), header + bytes(8), fields
            )
            os.pwrite(file.fileno(), mutant[: len(header)], 0)
            guarded(f"real {number}", lambda: touch(path), tally)
    return tally


FAULTS = {
    "hang": lambda: [0 for _ in iter(int, 1) if _],
    "hang-in-c": lambda: sum(iter(int, 1)),
    "memory": lambda: bytearray(2 * MEMORY_LIMIT_BYTES),
    "other-error": lambda: struct.unpack("<Q", b""),
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
}


def fault_worker(fault):
    tally = {"opened": 0, "refused": 0, "failures": []}
    signal.signal(signal.SIGALRM, alarm)
    limit_memory(MEMORY_LIMIT_BYTES)
    guarded(f"fault {fault}", FAULTS[fault], tally)
    return tally


if __name__ == "__main__":
    if sys.argv[1] == "fault":
        print(json.dumps(fault_worker(sys.argv[2])))
    elif sys.argv[2] == "real":
        print(json.dumps(real_model_worker(Path(sys.argv[1]), *map(int, sys.argv[3:]))))
    else:
        print(json.dumps(worker(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))))
    sys.exit()


# --- the base files, by the gguf package


def integer_fields(path):
    """[(offset, size)] of every integer in the header: counts, lengths, types, dimensions, offsets, by GGUFReader."""
    import gguf

    reader = gguf.GGUFReader(path)
    parts = [part for field in reader.fields.values() if not field.name.startswith("GGUF.") for part in field.parts]
    parts += [part for tensor in reader.tensors for part in tensor.field.parts]
    start = reader.data.ctypes.data
    spans = {(part.ctypes.data - start, part.itemsize) for part in parts if part.itemsize in (4, 8)}
    spans |= {(t.field.parts[3].ctypes.data - start + 8 * i, 8) for t in reader.tensors for i in range(len(t.shape))}
    return [(4, 4), (8, 8), (16, 8), *sorted(spans)]


def write_base(path, fill, version=3):
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    fill(writer, gguf)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 4, version)
    path.write_bytes(data)
    path.with_suffix(".json").write_text(json.dumps(integer_fields(path)))
    ModelFile.open(path).close()


def every_kind_of_value(writer, gguf):
    for kind in gguf.GGUFValueType:
        if kind not in (kind.ARRAY, kind.STRING):
            writer.add_key_value(f"a.{kind.name}", 1, kind)
            writer.add_key_value(f"b.{kind.name}", [1, 0, 1], kind.ARRAY, sub_type=kind)
    writer.add_array("nested", [[[1, 2], [3]], [[4]]])
    writer.add_array("nested.words", [["a", "bc"], ["def"]])


def vocabulary(writer, gguf):
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}".encode() * (i % 3) + b"\xc4\xa0" for i in range(40)])
    writer.add_token_types([1] * 40)
    writer.add_token_merges([f"a b{i}" for i in range(20)])


def weights(writer, gguf):
    import numpy as np

    writer.add_custom_alignment(64)
    writer.add_block_count(1)
    for i, name in enumerate(("F32", "F16", "Q4_0", "Q4_1", "Q8_0", "Q6_K")):
        kind = gguf.GGMLQuantizationType[name]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        shape = (*((2, 3)[: i % 3]), 256 // block * size)
        writer.add_tensor(f"blk.0.{name}.weight", np.full(shape, i, np.uint8), raw_dtype=kind)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    write_base(folder / "values.gguf", every_kind_of_value)
    write_base(folder / "vocabulary.gguf", vocabulary)
    write_base(folder / "weights.gguf", weights)
    write_base(folder / "weights_v2.gguf", weights, version=2)
    return folder


# --- the tests


def run(*arguments):
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("kind", KINDS)
def test_mutants_open_or_are_refused(bases, kind):
    done = run(bases, kind, 0, MUTANTS_OF_A_KIND)
    assert done.returncode == 0, done.stderr[-2000:]
    tally = json.loads(done.stdout)
    assert tally["failures"] == []
    assert tally["opened"] + tally["refused"] == MUTANTS_OF_A_KIND
    assert tally["refused"] > MUTANTS_OF_A_KIND // 10, "the mutants hardly touch what the reader checks"


def test_mutants_of_a_real_header_open_or_are_refused(smollm2_path, tmp_path):
    source, path = Path(smollm2_path), tmp_path / "model.gguf"
    fields = integer_fields(source)
    with path.open("wb") as file, source.open("rb") as whole:
        file.write(whole.read(fields[-1][0] + fields[-1][1]))
        file.truncate(source.stat().st_size)
    path.with_suffix(".json").write_text(json.dumps(fields))
    done = run(path, "real", 0, REAL_MODEL_MUTANTS)
    assert done.returncode == 0, done.stderr[-2000:]
    tally = json.loads(done.stdout)
    assert tally["failures"] == []
    assert tally["opened"] + tally["refused"] == REAL_MODEL_MUTANTS


@pytest.mark.parametrize(
    ("fault", "found"), [("hang", "TookTooLong"), ("memory", "MemoryError"), ("other-error", "error: unpack")]
)
def test_the_guard_catches(fault, found):
    (failure,) = json.loads(run("fault", fault).stdout)["failures"]
    assert failure.startswith(f"fault {fault}: {found}")


@pytest.mark.parametrize(("fault", "code"), [("crash", -signal.SIGSEGV), ("hang-in-c", 1)])
def test_the_guard_names_the_case_that_ended_the_process(fault, code):
    done = run("fault", fault)
    assert (done.returncode, done.stderr.splitlines()[0]) == (code, f"fault {fault}")

"""GGUF files that no writer writes: what is read all the same, and what is refused with the offset and the field."""

from __future__ import annotations

import json
import mmap
import os

import pytest
from gguf_bytes import ARCHITECTURE, Kind, entry, gguf_bytes, opened, tensor, text, u32, u64

from hetrun.errors import ModelFileError, ModelNotFoundError
from hetrun.model.gguf_file import ModelFile
from hetrun.model.metadata import MAX_ARRAY_DEPTH

F32, Q4_0 = 0, 2

# --- read all the same


@pytest.mark.parametrize("version", [2, 3])
def test_versions_2_and_3_are_read(version):
    with opened(gguf_bytes([ARCHITECTURE], [tensor("w", [2, 3])], bytes(24), version=version)) as file:
        assert (file.version, file.architecture, file.tensors["w"].shape) == (version, "llama", (3, 2))


def test_a_file_that_holds_only_a_vocabulary_opens():
    words = entry("tokenizer.ggml.tokens", Kind.ARRAY, u32(Kind.STRING) + u64(2) + text("a") + text("b"))
    head = b"GGUF" + u32(3) + u64(0, 2) + ARCHITECTURE + words  # ends without the padding before a data section
    with opened(head) as file:
        assert (dict(file.tensors), file.metadata["tokenizer.ggml.tokens"].to_list()) == ({}, ["a", "b"])


def test_a_scalar_tensor_is_a_row_of_one():
    with opened(gguf_bytes([], [tensor("w", [])], bytes(4))) as file:
        assert (file.tensors["w"].shape, bytes(file.blocks("w"))) == ((1,), bytes(4))


def test_strings_that_are_not_utf8_open_and_keep_their_bytes():
    pieces = [b"\xff\xfe", b"ok", b"\xe2\x96"]
    payload = u32(Kind.STRING) + u64(3) + b"".join(map(text, pieces))
    with opened(gguf_bytes([entry("t", Kind.ARRAY, payload), entry("s", Kind.STRING, text(b"a\xffb"))])) as file:
        array = file.metadata["t"]
        assert [array.raw(i) for i in range(3)] == pieces
        assert list(array) == array.to_list() == ["\ufffd\ufffd", "ok", "\ufffd"]
        assert file.metadata["s"] == "a\ufffdb"


def test_any_byte_but_zero_is_true():
    with opened(gguf_bytes([entry("b", Kind.BOOL, b"\x02")])) as file:
        assert file.metadata["b"] is True


def test_an_empty_array_is_empty():
    with opened(gguf_bytes([entry("a", Kind.ARRAY, u32(Kind.STRING) + u64(0))])) as file:
        assert (file.metadata["a"].to_list(), list(file.metadata["a"])) == ([], [])


def test_gaps_and_any_order_of_tensor_data_are_read():
    infos = [tensor("late", [8], F32, 96), tensor("early", [8], F32, 0)]
    with opened(gguf_bytes([], infos, bytes(range(128)))) as file:
        assert list(file.tensors) == ["late", "early"]
        assert bytes(file.blocks("late")) == bytes(range(96, 128))


# --- refusals: each names the offset and the field

HUGE = (1 << 64) - 1


def nested(n):
    inner = u32(Kind.UINT8) + u64(1) + b"\0"
    for _ in range(n - 1):
        inner = u32(Kind.ARRAY) + u64(1) + inner
    return entry("n", Kind.ARRAY, inner)


def aligned_to(value, kind=Kind.UINT32, packed=None):
    return gguf_bytes([ARCHITECTURE, entry("general.alignment", kind, u32(value) if packed is None else packed)])


AFTER_ARCHITECTURE = 24 + len(ARCHITECTURE)

# id: (bytes, message, field, offset)
REFUSED = {
    "text": (b"hello, world, this is no model", r"not a GGUF file: it begins with b'hello, w'", "magic", 0),
    "zip": (b"PK\x03\x04" + bytes(40), "looks like a ZIP archive", "magic", 0),
    "safetensors": (u64(90) + b'{"__metadata__"', "looks like a safetensors file", "magic", 0),
    "lfs-pointer": (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer", "magic", 0),
    "web-page": (b"<!doctype html>", "looks like a web page", "magic", 0),
    "ggml": (b"lmgg" + bytes(40), "a GGML file from before GGUF", "magic", 0),
    "one-byte": (b"G", "not a GGUF file", "magic", 0),
    "magic-alone": (b"GGUF", "4 bytes wanted, 0 left", "version", 4),
    "version-0": (gguf_bytes(version=0), "GGUF version 0, hetrun reads 2 and 3", "version", 4),
    "version-1": (gguf_bytes(version=1), "GGUF version 1, hetrun reads 2 and 3", "version", 4),
    "version-4": (gguf_bytes(version=4), "GGUF version 4, hetrun reads 2 and 3", "version", 4),
    "big-endian": (gguf_bytes(version=3 << 24), "a big-endian GGUF 3 file", "version", 4),
    "no-counts": (b"GGUF" + u32(3), "8 bytes wanted, 0 left", "tensor_count", 8),
    "entries-beyond-the-file": (gguf_bytes(n_entries=9), "9 items of at least 14 bytes", "metadata_kv_count", 16),
    "tensors-beyond-the-file": (gguf_bytes(n_tensors=99), "99 items of at least 25 bytes", "tensor_count", 8),
    "too-many-tensors": (gguf_bytes(n_tensors=1 << 40), "is the limit", "tensor_count", 8),
    "too-many-entries": (gguf_bytes(n_entries=HUGE), f"{HUGE} items, 65536 is the limit", "metadata_kv_count", 16),
    "one-entry-too-many": (
        gguf_bytes([ARCHITECTURE], data=bytes(32), n_entries=2),
        "a name of 0 bytes",
        "key 1 of 2",
        AFTER_ARCHITECTURE,
    ),
    "one-tensor-too-many": (
        gguf_bytes([], [tensor("w", [1])], bytes(64), n_tensors=2),
        "a name of 0 bytes",
        "name of tensor 1 of 2",
        24 + len(tensor("w", [1])),
    ),
    "empty-key": (gguf_bytes([entry("", Kind.UINT8, b"\0")]), "a name of 0 bytes", "key 0 of 1", 24),
    "key-not-utf8": (gguf_bytes([entry(b"ab\xff", Kind.UINT8, b"\0")]), "is not UTF-8", "key 0 of 1", 24 + 8 + 2),
    "key-beyond-the-file": (gguf_bytes([u64(999) + bytes(20)]), "999 bytes wanted", "key 0 of 1", 32),
    "key-too-long": (gguf_bytes([entry("k" * 65536, 0, b"\0")]), "a name of 65536 bytes", "key 0 of 1", 24),
    "key-twice": (
        gguf_bytes([ARCHITECTURE, ARCHITECTURE]),
        "'general.architecture' stands in the file twice",
        "key 1 of 2",
        AFTER_ARCHITECTURE,
    ),
    "unknown-value-type": (gguf_bytes([entry("k", 13, bytes(9))]), "unknown value type 13; known are 0", "'k'", 33),
    "value-beyond-the-file": (gguf_bytes([entry("k", 10, b"\0")], alignment=1), "8 bytes wanted, 1 left", "'k'", 37),
    "string-beyond-the-file": (gguf_bytes([entry("k", Kind.STRING, u64(1 << 62))]), "bytes wanted", "'k'", 45),
    "array-count-beyond-the-file": (
        gguf_bytes([entry("k", Kind.ARRAY, u32(Kind.UINT8) + u64(1 << 61))]),
        f"{1 << 61} items",
        "element count of 'k'",
        41,
    ),
    "array-of-strings-beyond-the-file": (
        gguf_bytes([entry("k", Kind.ARRAY, u32(Kind.STRING) + u64(2) + text("a") + u64(HUGE))]),
        f"a string of {HUGE} bytes ends",
        "'k'[1]",
        58,
    ),
    "array-of-strings-ends-early": (
        gguf_bytes([entry("k", Kind.ARRAY, u32(Kind.STRING) + u64(2) + text("a" * 8))], alignment=1),
        "the file ends before this string",
        "'k'[1]",
        65,
    ),
    "unknown-element-type": (gguf_bytes([entry("k", Kind.ARRAY, u32(77) + u64(0))]), "value type 77", "'k'", 37),
    "arrays-too-deep": (
        gguf_bytes([nested(MAX_ARRAY_DEPTH + 1)]),
        f"nested more than {MAX_ARRAY_DEPTH} deep",
        "'n'[0][0][0][0]",
        37 + 12 * MAX_ARRAY_DEPTH,
    ),
    "alignment-0": (aligned_to(0), "'0' is no power of two", "general.alignment", AFTER_ARCHITECTURE),
    "alignment-4": (aligned_to(4), "'4' is no power of two from 8", "general.alignment", AFTER_ARCHITECTURE),
    "alignment-48": (aligned_to(48), "'48' is no power of two", "general.alignment", AFTER_ARCHITECTURE),
    "alignment-2**31": (aligned_to(1 << 31), "is no power of two from 8 to", "general.alignment", AFTER_ARCHITECTURE),
    "alignment-bool": (aligned_to(1, Kind.BOOL, b"\1"), "'True' is no", "general.alignment", AFTER_ARCHITECTURE),
    "alignment-text": (aligned_to(1, Kind.STRING, text("32")), "'32' is no", "general.alignment", AFTER_ARCHITECTURE),
    "alignment-array": (
        aligned_to(1, Kind.ARRAY, u32(Kind.UINT32) + u64(1) + u32(32)),
        "MetadataArray of 1 uint32",
        "general.alignment",
        AFTER_ARCHITECTURE,
    ),
    "name-not-utf8": (gguf_bytes([], [tensor(b"\x80", [1])], bytes(4)), "is not UTF-8", "name of tensor 0 of 1", 32),
    "name-twice": (
        gguf_bytes([], [tensor("w", [1]), tensor("w", [1], offset=32)], bytes(64)),
        "two tensors have this name",
        "tensor 'w'",
        24 + len(tensor("w", [1])),
    ),
    "5-dims": (gguf_bytes([], [tensor("w", [1] * 5)], bytes(4)), "5 dimensions, 4 is the limit", "tensor 'w'", 33),
    "4-billion-dims": (gguf_bytes([], [tensor("w", [1], n_dims=(1 << 32) - 1)], bytes(4)), "dimensions", "'w'", 33),
    "dim-0": (gguf_bytes([], [tensor("w", [4, 0])], bytes(64)), r"a dimension of 0 in \[0, 4\]", "tensor 'w'", 37),
    "dims-overflow-to-0": (gguf_bytes([], [tensor("w", [1 << 32] * 2)], bytes(64)), r"2\*\*63 - 1", "tensor 'w'", 37),
    "dim-2**64-1": (gguf_bytes([], [tensor("w", [HUGE])], bytes(64)), r"more than 2\*\*63 - 1", "tensor 'w'", 37),
    "dim-huge": (
        gguf_bytes([], [tensor("w", [1 << 60])], bytes(64)),
        "the file at 128",
        "data offset of tensor 'w'",
        24,
    ),
    "type-unknown": (
        gguf_bytes([], [tensor("w", [32], 4242)], bytes(64)),
        "tensor 'w' has the unknown type 4242; known are 0 F32, 1 F16",
        "type of tensor 'w'",
        45,
    ),
    "type-removed": (gguf_bytes([], [tensor("w", [32], 31)], bytes(64)), "unknown type 31", "type of tensor 'w'", 45),
    "row-of-broken-blocks": (
        gguf_bytes([], [tensor("w", [48, 32], Q4_0)], bytes(4096)),
        "a row of 48 is no multiple of Q4_0's block of 32",
        "tensor 'w'",
        37,
    ),
    "data-misaligned": (
        gguf_bytes([], [tensor("w", [1], offset=4)], bytes(64)),
        "4 is no multiple of the alignment 32",
        "data offset of tensor 'w'",
        24,
    ),
    "data-overlaps": (
        gguf_bytes([], [tensor("v", [9]), tensor("w", [1], offset=32)], bytes(64)),
        "overlaps that of tensor 'v'",
        "data offset of tensor 'w'",
        24 + len(tensor("v", [9])),
    ),
    "data-shared": (
        gguf_bytes([], [tensor("v", [1]), tensor("w", [1])], bytes(64)),
        "overlaps that of tensor 'v'",
        "data offset of tensor 'w'",
        24 + len(tensor("v", [1])),
    ),
    "data-offset-huge": (
        gguf_bytes([], [tensor("w", [1], offset=HUGE - 31)], bytes(64)),
        "the file at 128",
        "data offset of tensor 'w'",
        24,
    ),
    "data-one-byte-short": (
        gguf_bytes([], [tensor("w", [8])], bytes(31)),
        "its data ends at byte 96, the file at 95",
        "data offset of tensor 'w'",
        24,
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case, tmp_path):
    data, message, field, offset = REFUSED[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=message) as raised:
        ModelFile.open(path)
    error = raised.value
    assert error.path == str(path) and str(path) in error.message
    assert "\n" not in str(error) and error.remedy
    assert field in error.field and error.offset == offset


@pytest.mark.parametrize("case", ["data-one-byte-short", "string-beyond-the-file", "array-of-strings-ends-early"])
def test_a_short_file_is_told_to_be_pulled_again(case):
    with pytest.raises(ModelFileError, match="pull or copy it again"):
        opened(REFUSED[case][0])


def test_the_deepest_allowed_array_is_read():
    with opened(gguf_bytes([nested(MAX_ARRAY_DEPTH)])) as file:
        assert json.dumps(file.metadata["n"].to_list()) == "[" * MAX_ARRAY_DEPTH + "0" + "]" * MAX_ARRAY_DEPTH


def test_every_truncation_of_a_header_is_refused():
    whole = gguf_bytes([ARCHITECTURE, nested(2)], [tensor("w", [8]), tensor("v", [2], offset=32)], bytes(40))
    opened(whole).close()
    for n_bytes in range(1, len(whole)):
        with pytest.raises(ModelFileError):
            opened(whole[:n_bytes])


@pytest.mark.parametrize("kind", [Kind.STRING, Kind.ARRAY], ids=["strings", "arrays"])
def test_a_file_of_nothing_but_empty_items_is_refused_unwalked(kind, tmp_path):
    path = tmp_path / "model.gguf"
    least = {Kind.STRING: 8, Kind.ARRAY: 12}[kind]
    count = (100 << 20) // least
    with path.open("wb") as file:
        file.write(gguf_bytes([entry("k", Kind.ARRAY, u32(kind) + u64(count))]))
        file.truncate(101 << 20)  # a hole: the file takes no space on the disk
    with pytest.raises(ModelFileError, match=f"{count} items, .* is the limit"):
        ModelFile.open(path)


def test_the_limit_on_items_is_for_all_arrays_together(monkeypatch):
    monkeypatch.setattr("hetrun.model.metadata.MAX_ITEMS", 5)
    words = u32(Kind.STRING) + u64(3) + text("a") * 3
    opened(gguf_bytes([entry("k", Kind.ARRAY, words)])).close()
    with pytest.raises(ModelFileError, match="3 items, 2 is the limit"):
        opened(gguf_bytes([entry("k", Kind.ARRAY, words), entry("l", Kind.ARRAY, words)]))


def test_hostile_names_stay_on_one_short_line():
    with pytest.raises(ModelFileError) as raised:
        opened(gguf_bytes([], [tensor("a\nb" * 9999, [0])], bytes(64)))
    assert len(str(raised.value)) < 400 and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "names no architecture"),
        ([entry("general.architecture", Kind.UINT8, b"\7")], "7 is no name of an architecture"),
        ([entry("general.architecture", Kind.STRING, text(""))], "'' is no name of an architecture"),
    ],
    ids=["missing", "number", "empty"],
)
def test_architecture_must_be_a_name(entries, message):
    with opened(gguf_bytes(entries)) as file, pytest.raises(ModelFileError, match=message) as raised:
        _ = file.architecture
    assert raised.value.field == "general.architecture"


# --- paths


@pytest.mark.parametrize("name", ["missing.gguf", "no/such/folder.gguf", "nul\0byte.gguf", "x" * 5000])
def test_a_missing_file_is_not_found(name, tmp_path):
    with pytest.raises(ModelNotFoundError, match="no such file"):
        ModelFile.open(f"{tmp_path}/{name}")


def test_a_path_through_a_file_is_not_found(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ModelNotFoundError, match="no such file"):
        ModelFile.open(tmp_path / "file" / "model.gguf")


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(ModelFileError, match="is a directory"):
        ModelFile.open(tmp_path)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelFileError, match="is empty"):
        ModelFile.open(tmp_path / "model.gguf")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a POSIX system")
def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path):
    os.mkfifo(tmp_path / "model.gguf")
    with pytest.raises(ModelFileError, match="is not a regular file"):
        ModelFile.open(tmp_path / "model.gguf")


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs a POSIX system")
def test_a_file_without_permission_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes())
    path.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:  # root reads everything
            os.seteuid(65534)
        with pytest.raises(ModelFileError, match=r"cannot be read: Permission denied \(.*chmod"):
            ModelFile.open(path)
    finally:
        os.seteuid(user)


def test_a_file_that_cannot_be_mapped_is_refused(tmp_path, monkeypatch):
    def no_space(*args, **kwargs):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", no_space)
    (tmp_path / "model.gguf").write_bytes(gguf_bytes())
    with pytest.raises(ModelFileError, match=r"cannot be mapped into memory: .*Cannot allocate"):
        ModelFile.open(tmp_path / "model.gguf")

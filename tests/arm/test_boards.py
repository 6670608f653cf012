"""The cpu device on emulated ARM boards: the wheel for the board, in the board's own Python, under qemu-user."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from arm import generate_on_board
from arm.board import Board
from models import tiny_llama

# What each core of qemu's has, of the instruction sets that the library knows: the best comes last.
BEST_ISA = {
    ("armv7l", "cortex-a9"): "neon",
    ("aarch64", "cortex-a53"): "neon",
    ("aarch64", "cortex-a76"): "dotprod",
    ("aarch64", "max"): "i8mm",
}
CORES = list(BEST_ISA)
MODELS = ("Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
N_TOKENS = 16

# The kernel tests of the host, run on the board. A core that has more than the one before it runs what that adds.
KERNEL_TESTS = ("test_cpu_kernels.py", "test_cpu_attention.py")
ADDED = {("aarch64", "cortex-a76"): "dotprod", ("aarch64", "max"): "i8mm"}


@pytest.mark.parametrize(("target", "core"), CORES)
def test_the_best_instruction_set_of_the_core_is_found(target: str, core: str, board: Callable[[str], Board]) -> None:
    out = board(target).python(core, "-c", "from hetrun_cpu import native; print(native.isa_names())")
    assert ast.literal_eval(out)[-1] == BEST_ISA[target, core]


@pytest.mark.parametrize(("target", "core"), CORES)
@pytest.mark.parametrize("tests", KERNEL_TESTS)
def test_kernels_equal_the_oracle(
    tests: str, target: str, core: str, board: Callable[[str], Board], checkout: Path
) -> None:
    folder = checkout / "tests"
    options = ["-k", ADDED[target, core]] if (target, core) in ADDED else []
    out = board(target).python(
        core, "-m", "pytest", "-q", "-x", "-c", "/dev/null", "-o", f"pythonpath={folder}", "-p", "no:cacheprovider",
        "--import-mode=importlib", f"--rootdir={folder}", *options, str(folder / "unit" / tests),
    )  # fmt: skip
    assert " passed" in out


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    return [str(tiny_llama(folder / f"{quant}.gguf", quant=quant)) for quant in MODELS]


@pytest.mark.parametrize(("target", "core"), CORES)
def test_a_model_generates_the_tokens_of_the_host(
    target: str, core: str, board: Callable[[str], Board], models: list[str]
) -> None:
    want = {model: generate_on_board.greedy(model, "generic", N_TOKENS) for model in models}
    out = json.loads(board(target).python(core, generate_on_board.__file__, str(N_TOKENS), *models))
    for model, by_isa in out["tokens"].items():
        assert by_isa == dict.fromkeys(by_isa, want[model]), model
        assert BEST_ISA[target, core] in by_isa
    assert "numpy" not in out["modules"]

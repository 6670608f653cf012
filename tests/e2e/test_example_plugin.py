"""A third-party device in a clean environment: beside hetrun's wheel it passes the kit and generates tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from e2e.conftest import make_environment
from models import tiny_llama

FOLDER = Path("examples") / "hetrun_example_device"
MAX_TOKENS = 12


@pytest.fixture(scope="module")
def environment(wheel: Path, checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """hetrun's wheel, the example beside it, and pytest."""
    environment = make_environment(tmp_path_factory.mktemp("third-party"))
    environment.pip_install(str(wheel), "pytest")
    # A copy, because the build leaves files beside the sources; --no-deps, because hetrun is here already.
    source = shutil.copytree(checkout / FOLDER, tmp_path_factory.mktemp("source") / "example")
    environment.pip_install("--no-deps", str(source))
    return environment


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", quant="Q8_0")


def generate(environment: Any, model: Path, *arguments: str) -> dict[str, Any]:
    done = environment.run(
        "hetrun", "generate", "--model", str(model), "--prompt", "the thing", "--max-tokens", str(MAX_TOKENS),
        "--temperature", "0", "--json", *arguments,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


def placed_on(device: str) -> list[str]:
    """Options that send the matmuls of every feed-forward to `device`, the rest to the cpu."""
    pins = [f"--pin=blk.*.ffn_{name}={device}" for name in ("gate", "up", "down")]
    return ["--device", "cpu", "--device", device, *pins]


def test_device_is_listed(environment: Any) -> None:
    assert "example:0" in environment.run("hetrun", "devices").stdout


def test_device_passes_the_kit(environment: Any) -> None:
    arguments = ["--pyargs", "hetrun.testing.suite", "--hetrun-device", "example", "-q", "-p", "no:cacheprovider"]
    report = environment.run("pytest", *arguments).stdout
    assert "example:0 (emulated): " in report
    assert " failed" not in report.splitlines()[-1]


def test_in_tree_device_passes_the_kit_as_installed(environment: Any) -> None:
    arguments = ["--pyargs", "hetrun.testing.suite", "--hetrun-device", "cpu", "-q", "-p", "no:cacheprovider"]
    assert "cpu:0 (hardware): " in environment.run("pytest", *arguments).stdout


def test_device_generates_beside_the_cpu(environment: Any, model: Path) -> None:
    """The matmuls of the feed-forward on the example give the tokens that they give on the reference."""
    mixed = generate(environment, model, *placed_on("example"))
    other = generate(environment, model, *placed_on("reference"))
    assert {segment["device"] for segment in mixed["segments"]} == {"cpu:0", "example:0"}
    assert mixed["generated_tokens"] == MAX_TOKENS
    assert mixed["text"] == other["text"]


def test_op_pinned_to_a_device_that_refuses_it_shows_its_reason(environment: Any, model: Path) -> None:
    arguments = ["--model", str(model), "--prompt", "the", "--device", "cpu", "--device", "example"]
    done = environment.run("hetrun", "generate", *arguments, "--pin", "blk.*.ffn_norm=example", check=False)
    assert done.returncode == 6
    assert "the example multiplies matrices only, it has no rms_norm" in done.stderr


def test_uninstalled_device_leaves_no_trace(environment: Any) -> None:
    """The core names no device: without the package there is none."""
    environment.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", "hetrun-example-device")
    assert "example:0" not in environment.run("hetrun", "devices").stdout

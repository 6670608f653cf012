"""`--system` with devices that are only modelled: what runs, what is said of it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import hetrun, require_device
from models import tiny_llama

from hetrun.resources import resource_path

RUN = ("--prompt", "the thing is", "--max-tokens", "12")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_device("cpu")
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", quant="Q4_0")


def test_text_is_the_cpus_and_times_are_told_apart(tiny: Path, tmp_path: Path) -> None:
    """One line says what stands in, one what this machine took, one what is predicted and from what."""
    acted = hetrun(tmp_path, "generate", "--model", tiny, *RUN, "--system", "pynq-z1")
    assert acted.code == 0
    assert acted.out == hetrun(tmp_path, "generate", "--model", tiny, *RUN, "--device", "cpu").out
    note, host, modelled = acted.err.splitlines()
    assert note == "note: only modelled: model:cortex-a9, model:pynq-z1; cpu:0 stands in and computes"
    assert host.startswith("[load ")
    assert modelled.startswith(
        "[those are times of cpu:0, which stood in; predicted for model:cortex-a9, model:pynq-z1:"
    )
    assert modelled.endswith("analytic:profile cortex-a9; analytic:profile pynq-z1]")


def test_json_keeps_modelled_times_apart(tiny: Path, tmp_path: Path) -> None:
    result = hetrun(tmp_path, "generate", "--model", tiny, *RUN, "--device", "model:cortex-a76", "--json").json
    modelled = result["modelled"]
    assert (modelled["devices"], modelled["stand_in"]) == (["model:cortex-a76"], "cpu:0")
    assert modelled["basis"] == ["analytic:profile cortex-a76"]
    assert modelled["decode_tps"] == pytest.approx(11 / modelled["decode_s"])
    assert 0 < modelled["host_s"] <= result["prefill_s"] + result["decode_s"]
    assert "modelled" not in hetrun(tmp_path, "generate", "--model", tiny, *RUN, "--device", "cpu", "--json").json


def test_a_profile_of_modelled_times_names_them_so(tiny: Path, tmp_path: Path) -> None:
    """No column of the model's own times is headed as if they were measured; those of this machine are."""
    generated = hetrun(tmp_path, "generate", "--model", tiny, *RUN, "--device", "model:cortex-a76", "--profile").err
    headings = [line for line in generated.splitlines() if "predicted" in line and "error" in line and "[" not in line]
    assert len([line for line in headings if " modelled " in line]) >= 5
    assert not [line for line in headings if " measured " in line]
    args = ("profile", "--model", tiny, "--prompt-tokens", "4", "--gen-tokens", "2", "--json", "--device")
    assert hetrun(tmp_path, *args, "model:cortex-a76").json["decode"]["clock"] == "modelled"
    assert hetrun(tmp_path, *args, "cpu").json["decode"]["clock"] == "measured"


def test_plan_of_a_board_drives_generation(tiny: Path, tmp_path: Path) -> None:
    hetrun(tmp_path, "plan", "--model", tiny, "--system", "pynq-z1", "--ctx", "64", "--save", "p.json")
    done = hetrun(tmp_path, "generate", "--model", tiny, *RUN, "--ctx", "64", "--plan", "p.json", "--json")
    assert done.json["devices"] == ["model:cortex-a9", "model:pynq-z1"]
    assert {s["device"] for s in done.json["segments"]} == {"model:cortex-a9", "model:pynq-z1"}


def test_a_profile_of_ones_own_is_found_beside_the_system(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "boards"
    folder.mkdir()
    profile = resource_path("hetrun/configs/devices/cortex-a76.toml").read_text()
    (folder / "my-board.toml").write_text(profile)
    (folder / "desk.toml").write_text(
        'description = "a board"\ndevices = ["model:my-board"]\nprofiles = ["my-board.toml"]\n'
    )
    done = hetrun(tmp_path, "generate", "--model", tiny, *RUN, "--system", folder / "desk.toml", "--json")
    assert done.json["modelled"]["basis"] == ["analytic:profile my-board"]


def test_nothing_is_measured_of_a_model(tiny: Path, tmp_path: Path) -> None:
    done = hetrun(tmp_path, "bench", "--model", tiny, "--system", "rpi5")
    assert (done.code, done.out) == (2, "")
    assert done.errors == ["error: model:cortex-a76: only modelled, there is nothing to measure"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            'description = "x"\ndevices = ["model:cortex-a8"]\n',
            "mine.toml:2: top level devices: no profile 'cortex-a8'",
        ),
        ("", "mine.toml: the file is empty"),
        ('description = "x"\ndevices = ["cpu"]\n[links.cpu]\nupload = 3\n', "[links.cpu] upload: 3 is not a table"),
        (
            'description = "x"\ndevices = ["cpu"]\n'
            '[links.cpu]\nupload = { latency_s = 0.0, bytes_per_s = 1.0, basis = "analytic:x" }\n',
            "cpu:0 has no memory behind a link",
        ),
    ],
)
def test_mistake_in_a_system_is_one_line(text: str, said: str, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(text)
    done = hetrun(tmp_path, "generate", "--model", tiny, *RUN, "--system", "mine.toml")
    assert (done.code, done.out, len(done.errors)) == (6, "", 1)
    assert said in done.errors[0]
    assert done.hints

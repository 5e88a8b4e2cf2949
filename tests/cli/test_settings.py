"""Settings: option, then environment, then mgm.yaml, then the default."""

from __future__ import annotations

from typing import get_args

import pytest
import typer
from pydantic import ValidationError

from mg_milvus.cli import options
from mg_milvus.cli.settings import NAMES, Settings, settings_from
from mg_milvus.schema.models import PROFILES, FusionSettings
from mg_milvus.search.query import AUTO


@pytest.fixture(autouse=True)
def _clean_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        monkeypatch.delenv("MGM_" + name.upper(), raising=False)


def test_defaults():
    settings = settings_from()
    assert settings.uri == "mgm.db"
    assert settings.device == "auto"
    assert settings.batch_size == 64
    assert (settings.token, settings.collection, settings.schema_source, settings.encoder, settings.workers) == (
        None,
    ) * 5


def test_option_beats_environment_beats_file_beats_default(tmp_path, monkeypatch):
    (tmp_path / "mgm.yaml").write_text("uri: file.db\ncollection: of_file\ndevice: cpu\n")
    monkeypatch.setenv("MGM_URI", "env.db")
    monkeypatch.setenv("MGM_COLLECTION", "of_env")
    settings = settings_from(uri="option.db")
    assert (settings.uri, settings.collection, settings.device, settings.batch_size) == (
        "option.db",
        "of_env",
        "cpu",
        64,
    )


@pytest.mark.parametrize(
    ("variable", "text", "attribute", "value"),
    [
        ("MGM_URI", "http://localhost:19530", "uri", "http://localhost:19530"),
        ("MGM_TOKEN", "root:Milvus", "token", "root:Milvus"),
        ("MGM_COLLECTION", "holidays", "collection", "holidays"),
        ("MGM_DEVICE", "cuda", "device", "cuda"),
        ("MGM_SCHEMA", "schema.yaml", "schema_source", "schema.yaml"),
        ("MGM_ENCODER", "mine.safetensors", "encoder", "mine.safetensors"),
        ("MGM_BATCH_SIZE", "32", "batch_size", 32),
        ("MGM_WORKERS", "3", "workers", 3),
    ],
)
def test_every_setting_has_its_variable_and_its_key(tmp_path, monkeypatch, variable, text, attribute, value):
    monkeypatch.setenv(variable, text)
    assert getattr(settings_from(), attribute) == value
    monkeypatch.delenv(variable)
    (tmp_path / "mgm.yaml").write_text(f"{variable.removeprefix('MGM_').lower()}: '{text}'\n")
    assert getattr(settings_from(), attribute) == value


def test_an_empty_variable_is_not_set(tmp_path, monkeypatch):
    (tmp_path / "mgm.yaml").write_text("uri: file.db\n")
    monkeypatch.setenv("MGM_URI", "")
    assert settings_from().uri == "file.db"


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "uri:\n"])
def test_an_empty_file_sets_nothing(tmp_path, text):
    (tmp_path / "mgm.yaml").write_text(text)
    assert settings_from().uri == "mgm.db"


def test_home_is_found_without_a_shell(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    (tmp_path / "mgm.yaml").write_text("uri: ~/photos.db\n")
    assert settings_from().uri == "/home/ada/photos.db"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("colection: x\n", "unknown key 'colection'; did you mean 'collection'?"),
        ("batchsize: 3\n", "did you mean 'batch_size'?"),
        ("qqqq: 3\n", "it may hold uri, token, collection, device, schema, encoder, batch_size, workers"),
        ("- uri\n", "mgm.yaml holds list, expected lines such as"),
        ("uri: [\n", "mgm.yaml cannot be read as YAML"),
        ("batch_size: 0\n", "'batch_size' in mgm.yaml is 0: input should be greater than or equal to 1"),
        ("device: gpu\n", "'device' in mgm.yaml is 'gpu': input should be 'auto', 'cpu', 'cuda' or 'mps'"),
        ("schema: 5\n", "'schema' in mgm.yaml is 5"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path, text, expected):
    (tmp_path / "mgm.yaml").write_text(text)
    with pytest.raises(typer.BadParameter) as caught:
        settings_from()
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_variable_is_named(monkeypatch):
    monkeypatch.setenv("MGM_WORKERS", "many")
    with pytest.raises(typer.BadParameter, match="MGM_WORKERS is 'many'"):
        settings_from()


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        settings_from().uri = "other.db"
    assert isinstance(settings_from(), Settings)


def test_the_choices_of_the_options_are_those_of_the_library():
    assert {profile.value for profile in options.Profile} == {AUTO, *PROFILES}
    assert {fusion.value for fusion in options.Fusion} == set(
        get_args(FusionSettings.model_fields["method"].annotation)
    )
    assert {device.value for device in options.Device} == set(get_args(Settings.model_fields["device"].annotation))


def test_numbers_per_granularity():
    assert options.numbers("coarse=1, fine=0.5", "--weights", "coarse=1") == {"coarse": 1.0, "fine": 0.5}
    assert options.numbers("fine=0", "--weights", "coarse=1") == {"fine": 0.0}


@pytest.mark.parametrize(
    "text", ["coarse", "coarse=", "=1", "coarse=x", "coarse=-1", "coarse=nan", "coarse=inf", "", "a=1,"]
)
def test_numbers_written_otherwise_are_refused(text):
    with pytest.raises(typer.BadParameter, match="write it as coarse=1,fine=3"):
        options.numbers(text, "--weights", "coarse=1,fine=3")


def test_a_granularity_given_twice_is_refused():
    with pytest.raises(typer.BadParameter, match="'fine' comes twice"):
        options.numbers("fine=1,fine=2", "--weights", "coarse=1")

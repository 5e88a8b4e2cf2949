"""The doctor: what is found, and that every problem has a remedy."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata

import pytest

from mg_milvus import doctor
from mg_milvus.config import MilvusConfig
from mg_milvus.encoder.load import load_encoder
from mg_milvus.index import ImageIndex
from tests.images import save_image


def check_of(
    name: str, uri: object, *, collection: str | None = None, timeout: float = 10.0, **options
) -> doctor.Check:
    """The check of that name; those after it are not made."""
    config = MilvusConfig(str(uri), None, collection, timeout)
    return next(check for check in doctor.examine(config, **options) if check.name == name)


@pytest.fixture
def versions(monkeypatch):
    """Pretend that packages have other versions."""
    pretended: dict[str, str] = {}
    real = metadata.version

    def version(package: str) -> str:
        if pretended.get(package) == "gone":
            raise metadata.PackageNotFoundError(package)
        return pretended.get(package) or real(package)

    monkeypatch.setattr("importlib.metadata.version", version)
    return pretended


def test_without_an_index_it_says_so_and_makes_none(tmp_path):
    file = tmp_path / "mgm.db"
    check = check_of("milvus", file)
    assert check.ok
    assert check.message == f"no index here yet ({file}): mgm ingest makes it"
    assert list(tmp_path.iterdir()) == []


def test_the_packages_here_are_right(tmp_path):
    checks = {check.name: check for check in doctor.examine(MilvusConfig(str(tmp_path / "mgm.db")))}
    for name in (
        "python",
        "pymilvus",
        "milvus-lite",
        "setuptools",
        "onnxruntime",
        "torch",
        "torchvision",
        "Pillow",
        "image formats",
    ):
        assert checks[name].ok, checks[name]
    assert checks["torch"].message == metadata.version("torch")
    assert "fit together" in checks["torch and torchvision"].message
    assert checks["device"].message.startswith("auto is ")
    assert checks["encoder"].ok, checks["encoder"]
    assert checks["encoder"].message.endswith(f"encodes a test image in {load_encoder().runtime}")


@pytest.mark.parametrize(
    ("package", "version", "remedy"),
    [
        ("milvus-lite", "3.0.0", 'pip install "milvus-lite>=2.5.1,<3"'),
        ("milvus-lite", "2.4.12", 'pip install "milvus-lite>=2.5.1,<3"'),
        ("milvus-lite", "gone", 'pip install "milvus-lite>=2.5.1,<3"'),
        ("setuptools", "82.0.1", 'pip install "setuptools>=0,<82"'),
        ("pymilvus", "2.6.3", 'pip install "pymilvus>=3.0.2,<4"'),
    ],
)
def test_a_wrong_version_comes_with_the_command_that_mends_it(tmp_path, versions, package, version, remedy):
    versions[package] = version
    check = check_of(package, tmp_path / "mgm.db")
    assert not check.ok
    assert check.remedy == remedy


@pytest.mark.parametrize("version", ["2.15.0+cpu", "2.15.0", "2.15.1.dev3", "2.6", "3.0.0rc1"])
def test_versions_of_all_forms_are_understood(tmp_path, versions, version):
    versions["torch"] = version
    assert check_of("torch", tmp_path / "mgm.db").ok == (not version.startswith("3"))


def test_a_server_needs_no_milvus_lite(versions):
    versions["milvus-lite"] = "gone"
    with pytest.raises(StopIteration):
        check_of("milvus-lite", "http://127.0.0.1:9", timeout=0.5)


def test_a_server_that_is_not_there(tmp_path):
    check = check_of("milvus", "http://127.0.0.1:9", timeout=0.5)
    assert not check.ok
    assert "127.0.0.1:9" in check.message
    assert "start the server" in check.remedy


def test_a_torch_that_does_not_fit_torchvision(tmp_path, monkeypatch):
    def torch_versions():
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("mg_milvus.encoder.torch_runtime.torch_versions", torch_versions)
    check = check_of("torch and torchvision", tmp_path / "mgm.db")
    assert not check.ok
    assert "torchvision::nms" in check.message
    assert check.remedy == "install the two together: pip install -U torch torchvision"


def test_a_device_that_is_not_here(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    check = check_of("device", tmp_path / "mgm.db", device="cuda")
    assert not check.ok
    assert "cuda" in check.message
    assert check.remedy == "use --device auto or cpu"


def test_a_device_that_is_not_here_is_one_fault(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    save_image(tmp_path / "1.jpg", 1)
    with ImageIndex.open(tmp_path / "mgm.db") as index:
        index.ingest(tmp_path / "1.jpg")
    checks = list(doctor.examine(MilvusConfig(str(tmp_path / "mgm.db"), collection="images"), device="cuda"))
    assert [check.name for check in checks if not check.ok] == ["device"]
    assert {"encoder", "collection"} <= {check.name for check in checks}


def test_a_file_that_is_no_milvus_lite_file(tmp_path):
    file = tmp_path / "mgm.db"
    file.write_bytes(b"this is not SQLite " * 100)
    check = check_of("milvus", file, timeout=1.0)
    assert not check.ok
    assert check.remedy


def test_regions_are_checked_and_repaired(photos, tmp_path):
    uri = tmp_path / "mgm.db"
    with ImageIndex.open(uri, "regions") as index:
        index.ingest(photos / "disc")
        store = index.session.store
        (row,) = store.fetch([index.query(photos / "disc/00.jpg", k=1)[0].id], ("coarse", "mid", "fine")).values()
        stray = replace(row, id="e" * 32, region_codes=bytes(464))
        store.regions.upsert([stray])
    check = check_of("regions", uri)
    assert not check.ok
    assert check.message == "1 images are gone but for their regions, 0 lack regions"
    assert "--repair" in check.remedy
    check = check_of("regions", uri, repair=True)
    assert check.ok
    assert check.message == "the regions of 1 images that are gone were removed"
    assert check_of("regions", uri).message == "580 codes of regions, in step with the images"
    with ImageIndex.open(uri) as index:
        index.session.store.regions.delete([row.id])
    check = check_of("regions", uri, repair=True)
    assert not check.ok
    assert check.message == "0 images are gone but for their regions, 1 lack regions"
    assert check.remedy == "mgm ingest FOLDER encodes what is missing"
    with ImageIndex.open(uri) as index:
        report = index.ingest(photos / "disc")
        assert (report.updated, report.unchanged) == (1, 19)
    assert check_of("regions", uri).ok

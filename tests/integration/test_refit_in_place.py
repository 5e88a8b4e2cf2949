"""A refit in place: the name, ids, fields, tags and names of clusters stay, and an interruption loses nothing."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mg_milvus import ImageError, ImageIndex, MilvusConfig, QueryError, Schema, SchemaError
from mg_milvus.ingest import fit_heads
from mg_milvus.store.client import Connection
from mg_milvus.store.milvus import MilvusStore
from tests.conftest import kind_of_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image

SCHEMA = Schema.from_yaml(
    "fields: [{name: label, type: string}]\nregions: {bits: 64, scales: [{size: 0.7, grid: 2}]}\n"
    "granularities: [{name: coarse, bits: 32}, {name: fine, bits: 64}]"
)


def paint(folder: Path, kind: str, numbers: range) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{kind}{number:03}.png" for number in numbers]
    for file, number in zip(files, numbers, strict=True):
        kind_of_image(kind, number).save(file)
    return files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty discs in ``first``, and thirty blocks in ``later``."""
    folder = tmp_path_factory.mktemp("refit")
    paint(folder / "first", "disc", range(30))
    paint(folder / "later", "blocks", range(30))
    return folder


def filled(file: Path, folder: Path, *encoders: Any) -> ImageIndex:
    """60 images, one with a tag of a user; heads as shipped, or with a function as the encoder, for the first 50."""
    with ImageIndex.open(file, SCHEMA if not encoders else None, *encoders) as index:
        if encoders:
            index.ingest(folder / "first", *sorted((folder / "later").iterdir())[:20])
        else:
            index.ingest(folder / "first")
        index.ingest(folder)
        index.tag([folder / "first" / "disc003.png"], add=["beach"])
    return ImageIndex.open(file, SCHEMA if not encoders else None, *encoders)


@pytest.fixture(scope="module")
def with_regions(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Codes of the network, with regions, and heads as shipped."""
    file = tmp_path_factory.mktemp("refit") / "i.db"
    filled(file, folder).close()
    return file


def tiny_pictures(images: list[Image.Image]) -> np.ndarray:
    """An encoder without a network."""
    return np.stack([np.asarray(image.resize((6, 6)), np.float32).ravel() / 255 - 0.5 for image in images])


def contents(index: ImageIndex) -> dict[str, tuple[str, dict[str, Any]]]:
    """Id -> path and fields of its row."""
    return {row.id: (row.path, dict(row.fields)) for row in index.images(limit=1000)}


def collections(index: ImageIndex) -> set[str]:
    """All that is in the file."""
    store = index.session.store
    assert isinstance(store, MilvusStore)
    return store.succession.there()


def test_everything_but_the_codes_stays(tmp_path: Path, folder: Path, with_regions: Path) -> None:
    file = Path(shutil.copy(with_regions, tmp_path))
    with ImageIndex.open(file, SCHEMA) as index:
        index.name_cluster(index.clusters().clusters[0].key, "round things")
        named = set(index.clusters().ids("round things"))
        before, fingerprint = contents(index), index.fingerprint
        assert index.info().advice == ("the hash heads are the shipped ones; mgm refit would fit them to 60 images",)
        for number in (2, 3):
            report = index.refit()
            assert (report.added, report.adapted_on, report.failures) == (60, 60, ())
            assert index.fingerprint != fingerprint
            assert (index.collection, index.schema.collection, index.count()) == ("images", "images", 60)
            assert contents(index) == before
            assert index.count({"user_tags": "beach"}) == 1
            assert (index.info().heads, index.info().advice) == ("adapted on 60 images", ())
            kept = set(index.clusters().ids("round things"))
            assert len(kept & named) > len(kept | named) / 2
            expected = {"", "_encoder", "_regions", "_whole"}
            assert collections(index) == {f"images_refit{number}{ending}" for ending in expected}
            assert index.session.store.collections() == ["images"]
    with ImageIndex.open(file, SCHEMA) as again:  # as another process: the only collection of the file
        image = folder / "later" / "blocks007.png"
        assert (again.collection, contents(again)) == ("images", before)
        assert again.query(image, k=1)[0].distances["fine"] == 0
        assert again.query(image, k=3, regions="contains")[0].path == str(image)
        assert again.ingest(folder).unchanged == 60
        assert again.tag([image], add=["toys"]) == 1


class Killed(BaseException):
    """As SIGKILL, nothing catches it."""


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Let the n-th write from now on, and all after it, not happen; the list counts them."""
    written: list[int] = []
    write = Connection.write

    def watched(self: Connection, operation: Callable[[], Any]) -> Any:
        written.append(len(written))
        if len(written) > written_at_most[0] >= 0:
            raise Killed
        return write(self, operation)

    written_at_most = [-1]
    monkeypatch.setattr(Connection, "write", watched)

    def begin(most: int) -> list[int]:
        written.clear()
        written_at_most[0] = most
        return written

    return begin


def test_killed_at_any_write_of_the_swap(
    tmp_path: Path, folder: Path, with_regions: Path, kill: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever has happened, the name has one of both, whole."""
    image = folder / "first" / "disc011.png"
    with ImageIndex.open(shutil.copy(with_regions, tmp_path)) as index:
        before, old = contents(index), index.fingerprint
        take_over = MilvusStore.take_over
        monkeypatch.setattr(MilvusStore, "take_over", lambda _: False)
        index.refit()  # all but the swap
        monkeypatch.setattr(MilvusStore, "take_over", take_over)
        held, ended = [old], False
        while not ended:
            kill(1)
            with closing(MilvusStore(MilvusConfig(index.uri, collection="images_refit2"))) as new:
                try:
                    ended = new.take_over()
                except Killed:
                    ended = False
            kill(-1)
            with ImageIndex.open(index.uri) as other:
                assert contents(other) == before, held
                assert other.query(image, k=1)[0].path == str(image), held
                assert len(other.query(image, k=5, regions="contains")) == 5, held
                held.append(other.fingerprint)
        # After the mark the former still has the name; then it is dropped, its encoder, its regions, its columns.
        assert (held[:2], len(held)) == ([old, old], 6)
        assert len(set(held[2:]) - {old}) == 1
        assert index.refit().added == 60  # another one


def test_a_repeated_refit_completes_the_swap(
    tmp_path: Path, folder: Path, kill: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled(tmp_path / "i.db", folder, tiny_pictures) as index:
        before = contents(index)
        take_over = MilvusStore.take_over

        def killed_halfway(store: MilvusStore) -> bool:
            if store.collection == "images_refit2":
                kill(2)  # marked, and the former collection dropped
            return take_over(store)

        monkeypatch.setattr(MilvusStore, "take_over", killed_halfway)
        with pytest.raises(Killed):
            index.refit()
        kill(-1)
        monkeypatch.setattr(MilvusStore, "take_over", take_over)
        assert "images_encoder" in collections(index)
        report = index.refit()
        assert (report.added, report.unchanged) == (0, 60)
        assert "has been completed" in report.advice[0]
        assert collections(index) == {f"images_refit2{ending}" for ending in ("", "_encoder", "_whole")}
        assert contents(index) == before


def test_killed_while_encoding_it_goes_on(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is not encoded again; what was changed and deleted meanwhile is followed."""
    monkeypatch.setattr(fit_heads, "_ROWS", 8)
    with filled(tmp_path / "i.db", folder, tiny_pictures) as index:
        old = index.fingerprint
        upsert, written = MilvusStore.upsert, []

        def killed_at_the_fifth(store: MilvusStore, rows: Any) -> None:
            if len(written) == 4:
                raise Killed
            written.append(len(rows))
            upsert(store, rows)

        with monkeypatch.context() as patch:
            patch.setattr(MilvusStore, "upsert", killed_at_the_fifth)
            with pytest.raises(Killed):
                index.refit()
        assert written == [8, 8, 8, 8]
        assert index.fingerprint == old
        assert index.session.store.collections() == ["images"]
        index.tag([folder / "later" / "blocks001.png"], add=["toys"])
        index.delete([folder / "later" / "blocks002.png"])
        before = contents(index)
        report = index.refit()
        assert (report.seen, report.added + report.updated + report.unchanged) == (59, 59)
        assert report.added == 59 - (32 - report.removed)
        assert contents(index) == before
        assert index.count({"user_tags": "toys"}) == 1
        assert index.fingerprint != old


def test_what_was_begun_for_fewer_images_is_begun_anew(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ImageIndex.open(tmp_path / "i.db", encoder=tiny_pictures) as index:
        index.ingest(folder)
        with monkeypatch.context() as patch:
            patch.setattr(MilvusStore, "take_over", lambda _: False)
            index.refit()
        many = paint(tmp_path / "more", "disc", range(1000, 1190))
        index.ingest(*many)
        assert index.refit().adapted_on == 250


def test_images_that_cannot_be_read_keep_the_collection_as_it_is(tmp_path: Path) -> None:
    files = paint(tmp_path / "a", "disc", range(60))
    with ImageIndex.open(tmp_path / "i.db", encoder=tiny_pictures) as index:
        index.ingest(*files)
        old = index.fingerprint
        files[4].unlink()
        message = r"1 images of 'images' cannot be read.*disc004.png \(No such file.*mgm delete PATH"
        with pytest.raises(ImageError, match=message):
            index.refit()
        assert (index.fingerprint, index.count()) == (old, 60)
        files[5].write_bytes(b"no image any more")
        index.delete([files[4]])
        with pytest.raises(ImageError, match=r"1 images .*disc005.png"):
            index.refit()
        assert (index.fingerprint, index.count()) == (old, 59)
        index.delete([files[5]])
        assert index.refit().seen == 58
        assert index.count() == 58


def test_what_cannot_be_fitted_is_refused(tmp_path: Path, folder: Path) -> None:
    with ImageIndex.open(tmp_path / "few.db") as index:
        index.ingest(*sorted((folder / "first").iterdir())[:3])
        with pytest.raises(QueryError, match="'images' has 3 images, expected at least 50"):
            index.refit()
    with ImageIndex.open(tmp_path / "fixed.db", Schema.from_yaml("encoder: {heads: fixed}")) as index:
        index.ingest(*sorted((folder / "first").iterdir())[:3])
        with pytest.raises(QueryError, match=r"the hash heads of 'images' are fixed .*mgm refit --to NAME"):
            index.refit()


def test_a_refit_that_was_begun_never_has_the_name(tmp_path: Path, folder: Path) -> None:
    """Should the collection be dropped, a part of its images under its name would be mistaken for all."""
    with filled(tmp_path / "i.db", folder, tiny_pictures) as index:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MilvusStore, "take_over", lambda _: False)
            index.refit()
        index.session.store._client.drop_collection("images")  # type: ignore[attr-defined]
        assert "images_refit2" in collections(index)
    with ImageIndex.open(tmp_path / "i.db") as again:
        assert not again.exists
        assert again.session.store.collections() == []


def test_no_schema_has_the_name_of_a_refit() -> None:
    with pytest.raises(SchemaError, match="'_refit' and a number are reserved"):
        Schema(collection="photos_refit2")

"""The memory that an ingest takes, however many images there are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import make_photos


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: ru_maxrss has another unit elsewhere")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """Peak memory of ingests of 100 and of 600 images, both with shipped heads: 20 kB an image would be seen."""
    photos = make_photos(tmp_path / "photos", per_kind=200)
    few = sorted(photos.rglob("*.jpg"))[:100]
    code = (
        "import sys, resource; from tests.memory_store import install; install();"
        "from mg_milvus import ImageIndex, Schema;"
        "s = Schema.from_yaml('encoder: {heads: fixed}'); i = ImageIndex.open('memory:', s);"
        "i.session.store.upsert = lambda rows: None;"
        "r = i.ingest(*sys.argv[1:], batch_size=32); assert r.added in (100, 600), r;"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = [
        int(subprocess.run([sys.executable, "-c", code, *map(str, sources)], capture_output=True, check=True).stdout)
        for sources in (few, [photos])
    ]
    assert peaks[1] - peaks[0] < 10_000, "kilobytes"

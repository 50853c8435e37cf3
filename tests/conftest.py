"""Shared fixtures: one small Ray, one tiny encoder, the real sample data where it is at hand."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import S3Server, running_s3

REAL_DATA = Path(os.environ.get("BEERAY_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses this process's Ray or types commands in `world` is slow."""
    for item in items:
        if {"ray_session", "world"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with `goodbooks-sample/` and `ml-latest-small/`: BEERAY_TEST_DATA, or ../shared/data."""
    if not (REAL_DATA / "goodbooks-sample" / "ratings.csv").is_file():
        pytest.skip(f"no sample data in {REAL_DATA}: set BEERAY_TEST_DATA")
    return REAL_DATA


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray of two CPUs and a small object store, started once for all tests that need one."""
    import ray

    from beeray.runtime.session import init_ray, ray_init_arguments

    init_ray(ray_init_arguments(num_cpus=2, object_store_mib=256))
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    """A real S3 API on loopback, with an empty bucket."""
    with running_s3() as server:
        yield server


@pytest.fixture(scope="module")
def ray_dir() -> Iterator[Path]:
    """Folder of the Rays that commands start; short, since sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="b-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)

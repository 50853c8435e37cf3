"""A disk that is full: one line that says so, nothing half-written, and the same command goes on when there is room."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from beeray.data.embeddings import open_embeddings
from beeray.data.store import Store

if TYPE_CHECKING:
    from conftest import Done, World

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]

SIZE_MIB, ROOM_KIB = 64, 120


class Disk:
    """A small disk.

    Attributes:
        path: where it is mounted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self, room_kib: int = ROOM_KIB) -> None:
        """Leave only so much room."""
        free = shutil.disk_usage(self.path).free - (room_kib << 10)
        self._ballast.write_bytes(b"\0" * free)

    def clear(self) -> None:
        """Make room."""
        self._ballast.unlink()


@pytest.fixture
def disk() -> Iterator[Disk]:
    path = Path(tempfile.mkdtemp(prefix="full-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        path.rmdir()
        pytest.skip("a disk of one's own can be mounted by root alone")
    yield Disk(path)
    subprocess.run(["umount", "--lazy", str(path)], check=True)
    path.rmdir()


def test_training_keeps_its_last_checkpoint_and_goes_on_when_there_is_room(
    world: World, trained: Done, disk: Disk
) -> None:
    mlflow = f"tracking.uri=sqlite:///{world.folder / 'full.db'}"
    command = ("train", "name=full", "train.checkpoint_every_steps=2", f"runs_dir={disk.path}", mlflow)
    disk.fill()
    refused = world.run(*command)
    assert "runs_dir: the checkpoint after step " in refused.complaint
    assert "No space left on device" in refused.complaint
    assert not (disk.path / "full" / "model").exists()
    disk.clear()
    done = world.run(*command)
    assert done.code == 0, done.err
    assert done.record["training"]["steps"] == 15
    shutil.copytree(disk.path / "full", world.path("full"))
    assert world.distance("first", "full") < 1e-7


def test_preparing_leaves_no_store_and_makes_one_when_there_is_room(world: World, disk: Disk) -> None:
    store = disk.path / "store"
    command = ("prepare", "name=full-store", f"data.store={store}")
    disk.fill(room_kib=12)
    refused = world.run(*command)
    assert "No space left on device" in refused.complaint
    assert not (store / "meta.json").exists()
    disk.clear()
    done = world.run(*command)
    assert done.code == 0, done.err
    assert Store.open(str(store)).meta.num_items == 120


def test_the_nightly_job_publishes_nothing_and_readers_keep_what_was_there(world: World, disk: Disk) -> None:
    path = disk.path / "vectors"
    command = ("embed", "name=full-embed", f"embed.path={path}", "embed.model=untouched")
    first = world.run(*command)
    assert first.code == 0, first.err
    before = open_embeddings(str(path))
    disk.fill(room_kib=16)
    refused = world.run(*command, "embed.incremental=false", "embed.normalize=true")
    assert "No space left on device" in refused.complaint
    assert open_embeddings(str(path)).version == before.version
    disk.clear()
    done = world.run(*command, "embed.incremental=false", "embed.normalize=true")
    assert done.code == 0, done.err
    now = open_embeddings(str(path))
    assert now.version != before.version and now.num_rows == 120

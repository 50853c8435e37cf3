"""The run's folder: which commands may go on in it, and files that are whole or not there."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beeray.config import Config, load_config, validate_config
from beeray.errors import DataError, RunError
from beeray.runtime import run_folder, whole_files
from beeray.runtime.run_folder import RunFolder
from beeray.runtime.whole_files import write_whole


def a_config(runs_dir: Path, **sections: Any) -> Config:
    tree: dict[str, Any] = {"name": "mine", "runs_dir": str(runs_dir), "data": {"source": "shop"}}
    return validate_config(tree | sections)


def claimed(tmp_path: Path, **sections: Any) -> RunFolder:
    folder = RunFolder(a_config(tmp_path, **sections))
    folder.claim("store-a")
    return folder


def test_steps_are_in_order_and_the_last_line_of_a_repeated_step_counts(tmp_path: Path) -> None:
    folder = claimed(tmp_path)
    assert folder.steps() == []
    for step, loss in [(0, 1.5), (1, 1.4), (2, 1.3), (1, 1.1), (2, 1.0)]:
        folder.log_step({"step": step, "loss": loss})
    assert folder.steps() == [{"step": 0, "loss": 1.5}, {"step": 1, "loss": 1.1}, {"step": 2, "loss": 1.0}]


def test_a_torn_last_line_is_ignored_and_does_not_swallow_the_step_written_after_it(tmp_path: Path) -> None:
    folder = claimed(tmp_path)
    folder.log_step({"step": 0, "loss": 1.5})
    with open(folder.path / "steps.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 1, "lo')
    assert folder.steps() == [{"step": 0, "loss": 1.5}]
    folder.log_step({"step": 1, "loss": 1.4})
    assert folder.steps() == [{"step": 0, "loss": 1.5}, {"step": 1, "loss": 1.4}]


def test_a_config_with_another_result_is_refused_with_keys_and_both_values(tmp_path: Path) -> None:
    claimed(tmp_path)
    changed = a_config(tmp_path, train={"lr": 2e-5, "relu": False}, seed=7)
    with pytest.raises(RunError) as caught:
        RunFolder(changed).check_config()
    message = str(caught.value)
    assert f"run 'mine' in {tmp_path / 'mine'} was started with another config (" in message
    assert "(seed: 42 → 7; train.lr: 1e-05 → 2e-05; train.relu: True → False)" in message
    assert message.endswith("choose another name=… or start over with --fresh")


def test_no_more_than_six_changed_keys_are_shown(tmp_path: Path) -> None:
    claimed(tmp_path)
    train = {"lr": 2e-5, "relu": False, "epochs": 1, "batch_size": 2, "max_output": 7, "top_k": 3, "epsilon": 1e-3}
    with pytest.raises(RunError, match=r"and 2 more\)") as caught:
        RunFolder(a_config(tmp_path, train=train, seed=7)).check_config()
    assert str(caught.value).count("→") == 6


@pytest.mark.parametrize(
    "sections",
    [
        {"evaluate": {"recall_at": [5]}},
        {"tracking": {"experiment": "other"}},
        {"train": {"checkpoint_every_steps": 3, "keep_checkpoints": 1, "evaluate_every_epochs": 1}},
        {"cluster": {"address": "10.0.0.1:6379", "max_failures": 9, "threads_per_worker": 1, "cpus_per_worker": 2}},
        {"cluster": {"num_workers": 2}, "deepspeed": {"stage": 2}},
        {"train": {"token_budget": 64, "activation_budget_gib": 0.0}},
        {"data": {"source": "shop", "store": "stores/elsewhere", "num_buckets": 3}},
    ],
)
def test_a_config_that_computes_the_same_may_go_on(tmp_path: Path, sections: dict[str, Any]) -> None:
    claimed(tmp_path)
    RunFolder(a_config(tmp_path, **sections)).check_config()


def test_a_folder_that_nobody_claimed_takes_any_config(tmp_path: Path) -> None:
    RunFolder(a_config(tmp_path)).check_config()
    assert list(tmp_path.iterdir()) == []


def test_a_kept_config_of_another_version_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = claimed(tmp_path)
    (folder.path / "config.yaml").write_text("name: mine\ndata: {source: shop}\nold_key: 3\n")
    with pytest.raises(RunError, match=r"is not a config of this version \(.*unknown key 'old_key'.*--fresh") as caught:
        folder.check_config()
    assert "\n" not in str(caught.value)


def test_a_store_that_changed_is_refused_and_the_same_one_is_not(tmp_path: Path) -> None:
    folder = claimed(tmp_path)
    folder.claim("store-a")
    assert folder.begun
    folder.check_store("store-a")
    with pytest.raises(RunError, match=r"was started on store store-a, the store is now store-b \(its tables, rules"):
        folder.claim("store-b")
    assert json.loads((folder.path / "run.json").read_text())["store_fingerprint"] == "store-a"


def test_a_folder_that_nobody_claimed_takes_any_store(tmp_path: Path) -> None:
    folder = RunFolder(a_config(tmp_path))
    folder.check_store("store-a")
    assert not folder.begun


def test_checkpoints_without_the_record_of_their_run_are_nobody_s_and_are_not_gone_on_with(tmp_path: Path) -> None:
    folder = claimed(tmp_path)
    (folder.path / "checkpoints" / "checkpoint_1").mkdir(parents=True)
    folder.check_config()
    (folder.path / "run.json").unlink()  # as a backup that was brought back in part
    for check in (folder.check_config, lambda: folder.claim("store-a")):
        with pytest.raises(
            RunError, match=r"run\.json is not there.*which config and store they are of.*--fresh"
        ) as caught:
            check()
        assert "\n" not in str(caught.value)
    folder.clear()
    folder.claim("store-a")


def test_a_second_command_of_the_same_name_is_refused_while_the_first_is_at_work(tmp_path: Path) -> None:
    said = rf"run 'mine' in .* by another command \(process {os.getpid()} on "
    with RunFolder(a_config(tmp_path)).locked():
        with pytest.raises(RunError, match=said) as caught, RunFolder(a_config(tmp_path)).locked():
            pass
        assert "\n" not in str(caught.value)
        with RunFolder(a_config(tmp_path, name="other")).locked():
            pass
    with RunFolder(a_config(tmp_path)).locked():
        pass


def test_what_a_run_began_with_is_read_once_under_its_lock_and_anew_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed(tmp_path)
    read: list[str] = []

    def read_record(path: Path, run: str) -> dict[str, Any] | None:
        read.append(path.name)
        return whole_files.read_record(path, run)

    monkeypatch.setattr(run_folder, "read_record", read_record)
    ours = RunFolder(a_config(tmp_path))
    with ours.locked():
        ours.check_store("store-a")
        assert ours.num_shards == 1 and ours.begun_with() == ("store-a", None)
        assert read == ["run.json"]
        ours.clear()
        assert ours.begun_with() is None
        ours.claim("store-b")
        assert ours.begun_with() == ("store-b", None)
    other = RunFolder(a_config(tmp_path))
    other.clear()
    other.claim("store-c")
    assert ours.begun_with() == ("store-c", None), "another command may have written it meanwhile"


def test_a_file_system_without_locks_is_told_as_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(DataError, match=r"takes no locks .No locks available."), RunFolder(a_config(tmp_path)).locked():
        pass


def test_validation_metrics_of_a_repeated_epoch_count_once_and_before_is_kept(tmp_path: Path) -> None:
    folder = claimed(tmp_path)
    assert (folder.validation(), folder.before()) == ([], None)
    for step, score in [(5, 0.1), (10, 0.2), (5, 0.3)]:
        folder.log_validation({"step": step, "ndcg@10": score})
    folder.keep_before({"test": 0.5})
    again = RunFolder(a_config(tmp_path))
    assert again.validation() == [{"step": 5, "ndcg@10": 0.3}, {"step": 10, "ndcg@10": 0.2}]
    assert again.before() == {"test": 0.5}
    assert folder.steps() == []


def test_the_kept_config_is_the_whole_config_and_can_be_given_as_config(tmp_path: Path) -> None:
    folder = claimed(tmp_path, train={"lr": 2e-5}, encoder={"prefix": "query: "})
    kept = folder.path / "config.yaml"
    assert load_config(str(kept)) == folder.config
    assert kept.read_text().startswith(f"# fingerprint: {folder.config.result_digest()}\n")


def test_a_run_is_finished_only_with_both_model_and_metrics(tmp_path: Path) -> None:
    folder = claimed(tmp_path)
    exported = tmp_path / "exported"
    exported.mkdir()
    (exported / "weights").write_text("new")
    assert folder.finished() is None
    folder.take_model(exported)
    assert folder.finished() is None
    folder.finish({"loss": 0.5})
    assert folder.finished() == {"loss": 0.5}
    folder.clear()
    assert folder.finished() is None and not folder.path.exists()


def test_a_finished_run_that_was_moved_is_told_where_it_is_now(tmp_path: Path) -> None:
    folder = claimed(tmp_path / "here")
    folder.model.mkdir()
    folder.finish({"folder": str(folder.path), "model": str(folder.model), "loss": 0.5})
    (tmp_path / "here").rename(tmp_path / "there")
    moved = tmp_path / "there" / "mine"
    told = RunFolder(a_config(tmp_path / "there")).finished()
    assert told == {"folder": str(moved), "model": str(moved / "model"), "loss": 0.5}


def test_a_model_is_taken_whole_and_replaces_the_one_before_and_what_a_crash_left(tmp_path: Path) -> None:
    folder = claimed(tmp_path)
    for names in (["old", "config"], ["weights", "config"]):
        exported = tmp_path / names[0]
        exported.mkdir()
        for name in names:
            (exported / name).write_text(names[0])
        (folder.path / "model.partial").mkdir(exist_ok=True)
        (folder.path / "model.partial" / "half").write_text("half")
        folder.take_model(exported)
        assert {path.name: path.read_text() for path in folder.model.iterdir()} == {name: names[0] for name in names}
    assert not (folder.path / "model.partial").exists()


def test_a_model_that_cannot_be_copied_leaves_the_one_before(tmp_path: Path) -> None:
    folder = claimed(tmp_path)
    exported = tmp_path / "exported"
    exported.mkdir()
    (exported / "weights").write_text("good")
    folder.take_model(exported)
    (exported / "weights").unlink()
    (exported / "weights").symlink_to(tmp_path / "nothing")
    with pytest.raises(DataError, match=rf"{folder.model}: cannot be read or written \(.*No such file"):
        folder.take_model(exported)
    assert (folder.model / "weights").read_text() == "good"
    assert not (folder.path / "model.partial").exists()


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No byte more can be written: what was opened is a device that is full."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")

    def opened(path: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        file = open(path, mode, *arguments, **keywords)  # noqa: SIM115
        if mode != "r":
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, file.fileno())
            os.close(full)
        return file

    for module in ("beeray.runtime.run_folder", "beeray.runtime.locks", "beeray.data.storage"):
        monkeypatch.setattr(f"{module}.open", opened, raising=False)
    yield


def test_a_full_disk_is_one_line_whatever_is_written(tmp_path: Path, full_disk: None) -> None:
    folder = RunFolder(a_config(tmp_path))
    folder.path.mkdir()
    for name, write in {
        "metrics.json": lambda: folder.finish({"loss": 0.5}),
        "steps.jsonl": lambda: folder.log_step({"step": 0}),
        "mine.lock": lambda: folder.locked().__enter__(),
    }.items():
        said = "Invalid argument" if name.endswith(".lock") else "No space left on device"  # a device cannot be cut
        with pytest.raises(DataError, match=rf"{name}: cannot be read or written \({said}\)"):
            write()
    assert [path.name for path in folder.path.iterdir()] == ["steps.jsonl"]


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def later(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "replace", replace)
        monkeypatch.setattr(Path, "rename", rename)
        write_whole(path, "the other's")
        return replace(self, target)

    path, rename = tmp_path / "file", Path.rename
    monkeypatch.setattr(Path, "replace", later)
    monkeypatch.setattr(Path, "rename", later)
    write_whole(path, "mine")
    assert path.read_text() == "mine" and list(tmp_path.iterdir()) == [path]

"""A user's mistakes, typed as commands: one line that says what, where and the remedy, exit code 2, nothing left.

All mistakes are made in one process after the other (a verb's `main` with its arguments and both streams),
since starting Python and Ray for each would take minutes. Those before `RAY` find no Ray to join.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from own_process import run_python

if TYPE_CHECKING:
    from conftest import World

pytestmark = pytest.mark.timeout(1800)

Tables = dict[str, dict[str, list[Any]]]


@dataclass(frozen=True)
class Mistake:
    """What is typed, on which tables, and what the complaint must name."""

    name: str
    expected: list[str]
    arguments: list[str] = field(default_factory=list)
    tables: Tables = field(default_factory=dict)
    missing: str = ""
    verb: str = "train"


def good_tables() -> Tables:
    pairs = [(user, (user + step) % 12) for user in range(14) for step in range(6)]
    return {
        "catalog": {"sku": list(range(12)), "title": [f"item {item}" for item in range(12)]},
        "interactions": {"buyer": [user for user, _ in pairs], "sku": [item for _, item in pairs]},
    }


def catalog_with(sku: int, title: str | None) -> Tables:
    good = good_tables()["catalog"]
    return {"catalog": {"sku": [*good["sku"], sku], "title": [*good["title"], title]}}


def interactions_with(**columns: list[Any]) -> Tables:
    return {"interactions": good_tables()["interactions"] | columns}


TEXT_IDS = [f"sku {pair}" for pair in good_tables()["interactions"]["sku"]]

WITHOUT_RAY = [
    Mistake("unknown-key", ["unknown key 'train.epoch'", "did you mean 'train.epochs'?"], ["train.epoch=3"]),
    Mistake("unknown-section", ["unknown key 'trian'", "did you mean 'train'?"], ["trian.lr=3"], verb="prepare"),
    Mistake("wrong-type", ["train.lr is 'fast'", "valid number"], ["train.lr=fast"]),
    Mistake("out-of-range", ["deepspeed.stage is 4", "0, 1, 2 or 3"], ["deepspeed.stage=4"], verb="evaluate"),
    Mistake("no-config", ["--config 'nowhere.yaml': no such file", "goodbooks.yaml"], ["--config", "nowhere.yaml"]),
    Mistake(
        "unknown-dimension",
        ["tune.space has unknown key 'train.lrr'", "did you mean 'train.lr'?"],
        ["tune.space={train.lrr: {choice: [1e-3]}}"],
        verb="tune",
    ),
    Mistake(
        "uneven-batch",
        ["train.batch_size is 9", "multiple of cluster.num_workers (2)"],
        ["train.batch_size=9", "cluster.num_workers=2"],
    ),
]

RAY = [
    Mistake("no-encoder", ["encoder.name '{here}'", "no encoder", "SentenceTransformer.save"], ["encoder.name={here}"]),
    Mistake("no-such-encoder", ["encoder.name '{here}/nothing'", "no sentence"], ["encoder.name={here}/nothing"]),
    Mistake("too-long", ["encoder.max_seq_length 65", "positions for 64 tokens"], ["encoder.max_seq_length=65"]),
    Mistake("missing-file", ["catalog.parquet: no such file, folder or match; check the path"], missing="catalog"),
    Mistake("missing-interactions", ["interactions.parquet: no such file"], missing="interactions", verb="prepare"),
    Mistake(
        "missing-column",
        ["data.interactions has no column 'buyer' (for user_id)", "its columns are customer, sku"],
        tables={
            "interactions": {
                "customer": good_tables()["interactions"]["buyer"],
                "sku": good_tables()["interactions"]["sku"],
            }
        },
    ),
    Mistake(
        "goodbooks-folder",
        ["{here}/item_text_descriptions.feather: no such file"],
        ["data.source=goodbooks", "data.path={here}"],
        verb="prepare",
    ),
    Mistake(
        "two-texts",
        ["item_id: 3 appears twice with two texts: 'item 3' and 'another'"],
        tables=catalog_with(3, "another"),
    ),
    Mistake("empty-text", ["item_id 12 has null or empty text", "data.empty_text: drop"], tables=catalog_with(12, " ")),
    Mistake(
        "nothing-remains",
        ["nothing remains after filtering", "users below min interactions 14", "lower data.min_value"],
        ["data.min_user_interactions=7"],
    ),
    Mistake(
        "no-shared-item",
        [
            "share no item",
            "the catalog has '0', '1', '2' (string)",
            "the interactions 'sku 0', 'sku 1', 'sku 2' (string)",
        ],
        tables=interactions_with(sku=TEXT_IDS),
        verb="prepare",
    ),
    Mistake(
        "too-many-workers",
        ["cluster.num_workers is 64: the cluster can place 2 of them", "lacks 62", "lower cluster.num_workers"],
        ["cluster.num_workers=64", "train.batch_size=64"],
    ),
    Mistake(
        "too-many-gpus",
        ["cluster.num_workers is 1: the cluster can place 0 of them (0.5 CPU + 1000 GPU each"],
        ["cluster.use_gpu=true", "cluster.gpus_per_worker=1000"],
        verb="evaluate",
    ),
]

SCRIPT = """
import importlib, json, os, sys, time
from pathlib import Path

def typed(case):
    os.chdir(case["folder"])
    kept = os.dup(1), os.dup(2)
    files = [os.open(Path(case["folder"]).parent / f"{case['name']}.{n}", os.O_CREAT | os.O_WRONLY) for n in (1, 2)]
    sys.argv = [f"beeray.{case['verb']}", *case["arguments"]]
    sys.stdout.flush(), sys.stderr.flush()
    os.dup2(files[0], 1), os.dup2(files[1], 2)
    started = time.monotonic()
    try:
        code = importlib.import_module(f"beeray.{case['verb']}").main()
    except SystemExit as left:
        code = left.code
    seconds = time.monotonic() - started
    sys.stdout.flush(), sys.stderr.flush()
    os.dup2(kept[0], 1), os.dup2(kept[1], 2)
    return {"code": code, "seconds": seconds}

groups = json.load(open(sys.argv[1]))
os.environ["RAY_ADDRESS"] = "127.0.0.1:1"
results = {case["name"]: typed(case) for case in groups["without_ray"]}
del os.environ["RAY_ADDRESS"]
import ray
from beeray.runtime.session import init_ray, ray_init_arguments
init_ray(ray_init_arguments(num_cpus=2, object_store_mib=100))
results |= {case["name"]: typed(case) for case in groups["ray"]}
ray.shutdown()
print(json.dumps(results))
"""


def lay_out(mistake: Mistake, folder: Path, encoder: Path) -> dict[str, Any]:
    """Write the tables and the config of one case; returns what the script needs."""
    folder.mkdir(parents=True)
    for name, columns in (good_tables() | mistake.tables).items():
        if name != mistake.missing:
            pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    config = {
        "data": {
            "source": "tables",
            "catalog": {"path": str(folder / "catalog.parquet"), "item_id": "sku", "template": "{title}"},
            "interactions": {"path": str(folder / "interactions.parquet"), "user_id": "buyer", "item_id": "sku"},
            "num_buckets": 2,
        },
        "split": {"validation": 2, "test": 2},
        "encoder": {"name": str(encoder), "max_seq_length": 16},
        "train": {"batch_size": 4, "max_output": 8, "max_steps": 1},
        "tracking": {"log_model": False},
    }
    (folder / "bad.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    given = [one.replace("{here}", str(folder)) for one in mistake.arguments]
    model = ["--model", "untouched"] if mistake.verb == "evaluate" else []
    config_given = [] if "--config" in given else ["--config", "bad.yaml"]
    arguments = [*config_given, *model, *given]
    return {"name": mistake.name, "folder": str(folder), "verb": mistake.verb, "arguments": arguments}


@pytest.fixture(scope="module")
def typed(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Type every mistake; the folder of the cases, and the exit code and seconds of each."""
    root = tmp_path_factory.mktemp("mistakes")
    groups = {
        "without_ray": [lay_out(one, root / one.name, world.encoder) for one in WITHOUT_RAY],
        "ray": [lay_out(one, root / one.name, world.encoder) for one in RAY],
    }
    (root / "cases.json").write_text(json.dumps(groups))
    done = run_python("-c", SCRIPT, str(root / "cases.json"), cwd=root, limit_s=1500, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return root, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("mistake", [*WITHOUT_RAY, *RAY], ids=lambda mistake: mistake.name)
def test_a_mistake_is_one_line_and_exit_code_2_and_leaves_nothing(
    typed: tuple[Path, dict[str, Any]], mistake: Mistake
) -> None:
    root, results = typed
    out, err = ((root / f"{mistake.name}.{stream}").read_text(encoding="utf-8") for stream in (1, 2))
    assert results[mistake.name]["code"] == 2, err
    assert out == ""
    complaint = err.splitlines()[-1]
    assert complaint.startswith(f"beeray {mistake.verb}: ")
    for piece in mistake.expected:
        assert piece.format(here=root / mistake.name) in complaint
    assert "Traceback" not in err and err.count("beeray ") == 1

    folder = root / mistake.name
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    given = {"bad.yaml", "catalog.parquet", "interactions.parquet"}
    assert left - given <= {f"runs/logs/bad-{mistake.verb}.log", "runs/logs/bad.lock"}
    assert {path.name for path in (folder / "stores").glob("*")} == set()
    assert {path.name for path in (folder / "runs").glob("*")} <= {"logs"}


def test_workers_that_cannot_be_placed_are_not_waited_for(typed: tuple[Path, dict[str, Any]]) -> None:
    assert typed[1]["too-many-workers"]["seconds"] < 30


def test_an_argument_that_is_no_override_is_exit_code_2(world: World) -> None:
    refused = world.run("prepare", "seed")
    assert refused.complaint == "beeray prepare: override 'seed': must be of the form key.sub=value, e.g. train.lr=2e-5"

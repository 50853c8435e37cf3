"""What facts of nodes mean: versions, clocks, memory, disk. Nodes are made up, expectations worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_encoder import build_tiny_encoder

from beeray import doctor
from beeray.config import Config, validate_config
from beeray.core.encoder import load_encoder, save_encoder
from beeray.core.head import append_head
from beeray.errors import BeerayError, EncoderError
from beeray.runtime.doctor.clocks import judge_clocks
from beeray.runtime.doctor.encoder import check_encoder
from beeray.runtime.doctor.facts import NodeFacts, read_facts
from beeray.runtime.doctor.memory import GIB, Parameters, judge_disk, judge_memory, state_bytes
from beeray.runtime.doctor.versions import judge_versions
from beeray.verbs.doctor import _Examination, begun_with

VERSIONS = {
    "python": "3.11.9",
    "beeray": "0.1+aa",
    "torch": "2.13.0",
    "ray": "2.60.0",
    "deepspeed": "0.19.8",
    "numpy": "2.4.0",
    "NVIDIA driver": "none",
}
MILLION = 1_000_000
ALL_TRAINED = Parameters(held=MILLION, trained=MILLION)
HEAD = (32 + 1) * 32 + (32 + 1) * 70 + (70 + 1) * 32


def a_node(name: str = "a", free_gib: float = 8.0, used: float = 0.5, **other: str) -> NodeFacts:
    return NodeFacts(name, VERSIONS | other, 8, int(16 * GIB), int(free_gib * GIB), used)


def a_config(**changes: Any) -> Config:
    return validate_config({"name": "examined", "data": {"source": "shop"}, **changes})


HERE = a_node("this command")


def test_facts_of_this_machine_are_its_own() -> None:
    facts = read_facts("me")
    assert (facts.versions["torch"], facts.versions["ray"]) == (version("torch"), version("ray"))
    assert facts.name == "me"
    assert 0 < facts.free_memory_bytes <= facts.memory_bytes
    assert 0 < facts.disk_used < 1
    assert judge_versions(facts, [facts, replace(facts, name="other")]).status == "ok"


def test_versions_alike_pass_and_drivers_are_compared_among_the_nodes_alone() -> None:
    nodes = [a_node(name, **{"NVIDIA driver": "580.1"}) for name in "ab"]
    finding = judge_versions(HERE, nodes)
    assert finding.status == "ok"
    assert finding.said == "alike on 2 nodes: Python 3.11.9, torch 2.13.0, ray 2.60.0, deepspeed 0.19.8, beeray 0.1+aa"


def test_cpu_nodes_beside_gpu_nodes_pass_and_a_gpu_node_with_another_cuda_or_none_fails() -> None:
    head = a_node("head", torch="2.13.0+cpu", **{"CUDA of torch": "none"})
    here = replace(head, name="this command")
    of_gpu = {"CUDA of torch": "13.0", "NVIDIA driver": "580.1"}
    gpus = [replace(a_node(name, **of_gpu), num_gpus=1.0) for name in "ab"]
    assert judge_versions(here, [head, *gpus]).status == "ok"
    older = replace(a_node("c", **(of_gpu | {"CUDA of torch": "12.8"})), num_gpus=1.0)
    finding = judge_versions(here, [head, *gpus, older])
    assert (finding.status, finding.measured["differing"]) == ("FAILED", ["CUDA of torch"])
    assert finding.said.startswith("CUDA of torch is 13.0 mostly and 12.8 on node c;")
    for_cpus = replace(head, name="d", num_gpus=1.0, versions=head.versions | {"NVIDIA driver": "580.1"})
    assert "CUDA of torch is 13.0 mostly and none on node d" in judge_versions(here, [head, *gpus, for_cpus]).said


@pytest.mark.parametrize("package", ["python", "beeray", "torch", "ray", "deepspeed"])
def test_a_node_with_another_version_of_what_matters_fails_and_is_named(package: str) -> None:
    finding = judge_versions(HERE, [a_node("a"), a_node("b", **{package: "9.9"}), a_node("c", **{package: "9.9"})])
    assert finding.status == "FAILED"
    assert finding.said == (
        f"{package} is {VERSIONS[package]} here and 9.9 on node b and 1 more; install the versions of constraints.txt, "
        "and the same beeray, on every node (or use one image for all)"
    )


@pytest.mark.parametrize(("package", "shown"), [("numpy", "numpy is 2.4.0 here"), ("NVIDIA driver", "580.1 mostly")])
def test_a_difference_that_mostly_does_no_harm_is_a_warning(package: str, shown: str) -> None:
    driver = {"NVIDIA driver": "580.1"}
    finding = judge_versions(
        HERE, [a_node("a", **driver), a_node("b", **driver), a_node("c", **driver | {package: "9"})]
    )
    assert finding.status == "warning"
    assert shown in finding.said and "9 on node c" in finding.said


def test_a_node_that_cannot_run_beeray_is_named_with_what_to_do() -> None:
    finding = judge_versions(HERE, [a_node("a")], {"b": "ModuleNotFoundError: No module named 'beeray'"})
    assert finding.status == "FAILED"
    assert finding.said == (
        "node b: beeray cannot be run there (ModuleNotFoundError: No module named 'beeray'); install beeray and "
        "constraints.txt on every node, or submit the job with --working-dir . from the checkout"
    )


@pytest.mark.parametrize(
    ("clock", "status", "said"),
    [
        (105.0, "ok", "within 2 s of each other"),  # anywhere between question and answer is right
        (112.0, "ok", "within 2 s of each other"),
        (
            113.5,
            "warning",
            "the clock of node b is 3.5 s off this machine's (at most 2 s; records and leases go by it)",
        ),
        (1.0, "warning", "the clock of node b is 99.0 s off"),
        (1010.0, "FAILED", "object stores refuse requests of a wrong clock); run chrony or ntpd on every node"),
    ],
)
def test_clocks(clock: float, status: str, said: str) -> None:
    finding = judge_clocks([("a", 100.0, 100.2, 100.1), ("b", 100.0, 110.0, clock)])
    assert finding.status == status
    assert said in finding.said


@pytest.mark.parametrize(
    ("stage", "num_workers", "expected"),
    [(0, 4, 16), (1, 4, 8 + 3), (2, 4, 4 + 4), (3, 4, 5), (1, 1, 20), (3, 1, 20)],  # bytes a parameter
)
def test_state_of_a_worker_by_zero_stage(stage: int, num_workers: int, expected: int) -> None:
    assert state_bytes(ALL_TRAINED, stage, num_workers) == expected * MILLION


@pytest.mark.parametrize(("stage", "expected"), [(0, 4 * 9 + 16), (1, 4 * 9 + 11), (2, 4 * 9 + 8), (3, 1 * 9 + 5)])
def test_a_worker_keeps_nothing_but_the_weights_of_what_is_held_fixed(stage: int, expected: int) -> None:
    """Of ten million parameters one is trained, on four workers: only ZeRO-3 shares weights out."""
    assert state_bytes(Parameters(held=10 * MILLION, trained=MILLION), stage, 4) == expected * MILLION


def test_memory_that_is_short_names_the_node_its_need_and_what_to_turn() -> None:
    config = a_config(
        cluster={"num_workers": 4}, train={"batch_size": 4, "activation_budget_gib": 2.0}, deepspeed={"stage": 0}
    )
    # two workers a node, each 0.8 GiB for the process, 16 bytes a parameter (1 GiB), 2 GiB of activations: 7.6 GiB
    parameters = Parameters(held=2**26, trained=2**26)
    judged = {free: judge_memory(config, parameters, [a_node("a", 64), a_node("b", free)]) for free in (7.5, 8.0, 10.0)}
    assert [judged[free].status for free in (7.5, 8.0, 10.0)] == ["FAILED", "warning", "ok"]
    assert judged[7.5].said == (
        "node b has 7.5 GiB free, and training takes at least 7.6 GiB there (2 workers of 67 M parameters, ZeRO-0, "
        "train.activation_budget_gib 2); lower train.activation_budget_gib, raise deepspeed.stage, lower "
        "cluster.num_workers or give larger machines"
    )


def test_on_gpus_the_state_is_theirs_and_the_nodes_need_only_the_processes() -> None:
    config = a_config(cluster={"use_gpu": True}, deepspeed={"stage": 0})
    small = [("worker 0 on node a", int(1.5 * GIB))]
    parameters = Parameters(held=2**26, trained=2**26)
    finding = judge_memory(config, parameters, [a_node("a", 3.0)], small)  # 1 GiB of state and 1 of activations
    assert finding.status == "FAILED"
    assert "GPU of worker 0 on node a has 1.5 GiB free, and training takes at least 2.0 GiB there" in finding.said
    assert judge_memory(config, parameters, [a_node("a", 3.0)], [("worker 0 on node a", int(3 * GIB))]).status == "ok"


def test_low_rank_adapters_of_a_large_encoder_fit_where_all_of_it_would_not() -> None:
    """Seven billion parameters on one GPU of 80 GB: 112 GB when all are trained, 28 GB of weights when few are."""
    config = a_config(cluster={"use_gpu": True, "num_workers": 1}, deepspeed={"stage": 0})
    gpu = [("worker 0 on node a", 80 * 10**9)]
    every, few = Parameters(7000 * MILLION, 7000 * MILLION), Parameters(7000 * MILLION, 5 * MILLION)
    assert judge_memory(config, every, [a_node("a", 64)], gpu).status == "FAILED"
    finding = judge_memory(config, few, [a_node("a", 64)], gpu)
    assert finding.status == "ok", finding.said
    assert (finding.measured["parameters"], finding.measured["trained_parameters"]) == (7000 * MILLION, 5 * MILLION)
    short = judge_memory(config, few, [a_node("a", 64)], [("worker 0 on node a", 20 * 10**9)])
    assert "(1 worker of 7000 M parameters, 5.0 M of them trained, ZeRO-0, " in short.said


def test_disk_that_is_short_names_the_folder_and_its_need() -> None:
    config = a_config(train={"keep_checkpoints": 2}, runs_dir="/shared/runs")
    # three checkpoints of 12 bytes a parameter and two exports of 4: 44 bytes, 2.75 GiB
    parameters = Parameters(held=2**26, trained=2**26)
    finding = judge_disk(config, parameters, [a_node("a")], int(2.6 * GIB))
    assert finding.status == "FAILED"
    assert finding.said == (
        "runs_dir '/shared/runs' has 2.6 GiB free, and a run takes 2.8 GiB there for checkpoints; free some of it, "
        "lower train.keep_checkpoints, or choose another disk (runs_dir)"
    )
    assert judge_disk(config, parameters, [a_node("a")], int(3 * GIB)).status == "warning"
    assert judge_disk(config, parameters, [a_node("a")], int(4 * GIB)).status == "ok"


def test_checkpoints_hold_no_moments_of_what_is_held_fixed() -> None:
    config = a_config(train={"keep_checkpoints": 2})
    # three checkpoints of 4 bytes a parameter and 8 a trained one, two exports of 4: 20 × 64 Mi + 24 × 1 Mi bytes
    finding = judge_disk(config, Parameters(held=2**26, trained=2**20), [a_node("a")], int(4 * GIB))
    assert finding.measured["need_bytes"] == 20 * 2**26 + 24 * 2**20


def test_the_encoder_is_what_the_run_begins_with_and_must_take_what_trains_it(tmp_path: Path) -> None:
    model = load_encoder(str(build_tiny_encoder(tmp_path / "earlier")), max_seq_length=32)
    append_head(model, 6)
    save_encoder(model, tmp_path / "headed")
    given = str(tmp_path / "headed")

    def checked(**train: Any) -> Any:
        config = a_config(encoder={"name": "never/opened", "max_seq_length": 32}, train={"init_from": given} | train)
        assert begun_with(config) == given
        return check_encoder(config, begun_with(config), torch.device("cpu"))

    assert checked().status == "ok" and checked().said.startswith(f"{given}: ")
    with pytest.raises(EncoderError, match=r"train\.head\.units is 8: .* has a head of 6 units"):
        checked(head={"units": 8})
    with pytest.raises(EncoderError, match=r"train\.freeze_layers is 3: the encoder has 2 layers"):
        checked(freeze_layers=3)
    with pytest.raises(BeerayError, match=r"train\.init_from 'nowhere': neither a run nor an encoder is there"):
        begun_with(a_config(train={"init_from": "nowhere"}))


@pytest.mark.parametrize(
    ("train", "held", "trained"),
    [
        ({}, 0, None),
        # matrices of 4 × 32 and 32 × 4 beside each layer's query, key and value, of two layers
        ({"lora": {"rank": 4, "targets": ["query", "key", "value"]}}, 2 * 3 * 2 * 4 * 32, 2 * 3 * 2 * 4 * 32),
        # 32 → 32, 32 → 64 + 6, and back, with biases: all of the head, and nothing of the layers
        ({"freeze_layers": 2, "head": {"units": 6}}, HEAD, HEAD),
    ],
)
def test_parameters_are_counted_as_training_sets_the_encoder_up(
    tmp_path: Path, train: dict[str, Any], held: int, trained: int | None
) -> None:
    folder = str(build_tiny_encoder(tmp_path / "encoder"))
    model = load_encoder(folder, max_seq_length=32)
    pooler = sum(weight.numel() for name, weight in model.named_parameters() if "pooler" in name)
    given = sum(weight.numel() for weight in model.parameters())
    config = a_config(encoder={"name": folder, "max_seq_length": 32}, train=train)
    finding = check_encoder(config, folder, torch.device("cpu"))
    counts = finding.measured["parameters"], finding.measured["trained_parameters"]
    assert counts == (given + held, given if trained is None else trained + (pooler if "head" in train else 0))
    assert ("of them trained)" in finding.said) == (trained is not None)


def test_help_leaves_no_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["doctor", "--help"])
    with pytest.raises(SystemExit):
        doctor.main()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_so_full_that_ray_makes_no_objects_fails_however_large_it_is() -> None:
    finding = judge_disk(a_config(), ALL_TRAINED, [a_node("a", used=0.96)], int(100 * GIB))
    assert finding.status == "FAILED"
    assert "96% full: Ray creates no objects from 95% on" in finding.said


def test_where_no_node_has_answered_this_one_is_judged() -> None:
    examination: Any = SimpleNamespace(facts=[])
    (here,) = _Examination._known(examination)
    assert here.name == "this command" and here.free_memory_bytes > 0
    examination.facts = [a_node("b")]
    assert [node.name for node in _Examination._known(examination)] == ["b"]

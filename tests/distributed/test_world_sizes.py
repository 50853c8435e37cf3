"""One, two and four ranks, under any ZeRO stage, train the same model: DeepSpeed and gloo, without Ray.

The reference is torch alone in one process, every activation kept. See `three_steps.py` for what each rank runs.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import three_steps
import torch
from tiny_encoder import HIDDEN, build_tiny_encoder

from beeray.core.traffic import embeddings_bytes, embeddings_gradient_bytes, indices_bytes, weights_bytes

PROGRAM = Path(__file__).with_name("three_steps.py")
STAGES = ("0", "1", "2", "3")
CASES = ("bounded", "clipped", "catalog")
FURTHER_CASES = {"softmax": ("1", "3"), "adapted": ("2", "3")}
"""Other objectives and adapted encoders, and the ZeRO stages that they are tried under on two ranks."""
TOLERANCE = 1e-5
JOBS = {
    1: [f"{case}:{variant}" for case in CASES for variant in ("plain", *STAGES)]
    + ["unclipped:plain", "within:plain", "within:1"],
    2: [f"{case}:{stage}" for case in CASES for stage in (*STAGES, "ahead")]
    + ["bounded:muted", "bounded:detached", "within:1", "within:ahead"],
    4: [f"{case}:{stage}" for case in CASES for stage in (*STAGES, "ahead")],
}
JOBS[1] += [f"{case}:plain" for case in FURTHER_CASES]
JOBS[2] += [f"{case}:{stage}" for case, stages in FURTHER_CASES.items() for stage in stages] + ["softmax:muted"]
START_S = 600

Result = dict[str, Any]
Results = Callable[[str, str, int], Result]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What a job left, `results(case, variant, world_size)`; each world is started once, for all its jobs."""
    folder = tmp_path_factory.mktemp("worlds")
    encoder = build_tiny_encoder(folder / "encoder", dropout=0.0, seed=1)
    started: set[int] = set()

    def result(case: str, variant: str, world_size: int) -> Result:
        if world_size not in started:
            started.add(world_size)
            run_world(world_size, [str(encoder), str(folder), *JOBS[world_size]], folder)
        path = folder / f"{case}-{variant}-world{world_size}.pt"
        assert path.is_file(), f"the world of {world_size} ranks did not get as far as {case}:{variant}"
        return dict(torch.load(path))

    return result


def run_world(world_size: int, arguments: list[str], folder: Path, program: Path = PROGRAM) -> None:
    """One process per rank; the first that fails ends the others, which would wait for it forever."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world_size),
        "LOCAL_SIZE": str(world_size),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(PROGRAM.parents[2]),
    }
    logs = [folder / f"world{world_size}-rank{rank}.log" for rank in range(world_size)]
    ranks = []
    for rank, log in enumerate(logs):
        environment = os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, str(program), *arguments]
        ranks.append(subprocess.Popen(command, env=environment, stdout=log.open("w"), stderr=subprocess.STDOUT))
    try:
        deadline = time.monotonic() + START_S
        while any(process.poll() is None for process in ranks):
            assert time.monotonic() < deadline, f"{world_size} ranks took longer than {START_S} s"
            for process, log in zip(ranks, logs, strict=True):
                assert not process.poll(), f"a rank of {world_size} failed:\n{log.read_text()[-3000:]}"
            time.sleep(0.2)
        assert not any(process.returncode for process in ranks), [log.read_text()[-3000:] for log in logs]
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def largest_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> tuple[float, str]:
    """Largest difference of the parameters that the loss depends on, and the name of the one that has it.

    BERT's pooler stands beside the path to the embedding and has no gradient: torch leaves it alone, DeepSpeed gives
    it a gradient of zero and so lets weight decay shrink it.
    """
    differences = {
        name: float((left[name] - right[name]).abs().max())
        for name in left.keys() & right.keys()
        if "pooler" not in name
    }
    assert len(differences) > 30, sorted(differences)
    name = max(differences, key=lambda parameter: differences[parameter])
    return differences[name], name


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(4, marks=pytest.mark.long)])
@pytest.mark.parametrize("case", CASES)
def test_any_world_size_and_zero_stage_ends_with_the_parameters_of_one_plain_process(
    results: Results, case: str, world_size: int
) -> None:
    reference = results(case, "plain", 1)
    found = {
        f"{case}, {world_size} ranks, ZeRO-{stage}": largest_difference(
            results(case, stage, world_size)["end"], reference["end"]
        )
        for stage in STAGES
    }
    assert max(difference for difference, _ in found.values()) < TOLERANCE, found


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(4, marks=pytest.mark.long)])
@pytest.mark.parametrize("case", CASES)
def test_parameters_without_gradient_too_are_the_same_in_every_world_and_stage(
    results: Results, case: str, world_size: int
) -> None:
    reference = results(case, "0", 1)["end"]
    poolers = [name for name in reference if "pooler" in name]
    assert poolers
    for stage in STAGES:
        end = results(case, stage, world_size)["end"]
        assert end.keys() == reference.keys()
        for name in poolers:
            difference = float((end[name] - reference[name]).abs().max())
            assert difference < TOLERANCE, (name, stage, difference)


@pytest.mark.parametrize("case", CASES)
def test_three_steps_move_the_parameters_a_hundred_times_farther_than_worlds_may_differ(
    results: Results, case: str
) -> None:
    reference = results(case, "plain", 1)
    moved = largest_difference(reference["start"], reference["end"])
    assert moved[0] > 1e-3 >= 100 * TOLERANCE, moved


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(4, marks=pytest.mark.long)])
@pytest.mark.parametrize("stage", STAGES)
def test_the_compared_steps_recompute_part_of_their_work_and_lose_some_users(
    results: Results, stage: str, world_size: int
) -> None:
    """Otherwise the equalities above would say nothing about recomputation, thinning and unequal ranks."""
    bounded, clipped = results("bounded", stage, world_size)["work"], results("clipped", stage, world_size)["work"]
    for step in bounded:
        assert 0 < step["num_recomputed_tokens"] < step["num_padded_tokens"], step
        assert step["num_items"] == 24, step
    for step in clipped:
        assert step["num_recomputed_tokens"] == step["num_padded_tokens"] > 0, step
    users_before = (16, 13, 3)
    users_after = [step["num_users"] for step in bounded]
    assert users_after[0] < users_before[0] and users_after[1] < users_before[1] and users_after[2] > 0, users_after
    assert users_after == [step["num_users"] for step in results("bounded", "plain", 1)["work"]]


def test_the_gradient_clipping_that_worlds_agree_on_was_active(results: Results) -> None:
    clipped, unclipped = results("clipped", "plain", 1), results("unclipped", "plain", 1)
    difference = largest_difference(clipped["end"], unclipped["end"])
    assert difference[0] > 30 * TOLERANCE, difference


@pytest.mark.parametrize("case", FURTHER_CASES)
def test_prefixes_distillation_adapters_and_frozen_layers_on_two_ranks_end_as_on_one(
    results: Results, case: str
) -> None:
    reference = results(case, "plain", 1)
    assert largest_difference(reference["start"], reference["end"])[0] > 1e-3
    found = {
        stage: largest_difference(results(case, stage, 2)["end"], reference["end"]) for stage in FURTHER_CASES[case]
    }
    assert max(difference for difference, _ in found.values()) < TOLERANCE, found


def test_a_rank_whose_users_and_items_count_nothing_gives_another_model_under_distillation_too(
    results: Results,
) -> None:
    difference = largest_difference(results("softmax", "muted", 2)["end"], results("softmax", "plain", 1)["end"])
    assert difference[0] > 100 * TOLERANCE, difference


def test_frozen_layers_end_as_they_began_and_adapters_do_not(results: Results) -> None:
    for found in (results("adapted", "plain", 1), results("adapted", "2", 2)):
        moved = {
            name
            for name, value in found["end"].items()
            if name in found["start"] and float((value - found["start"][name]).abs().max()) > 1e-6
        }
        assert moved and all("layer.1." in name and "lora_" in name for name in moved), moved


@pytest.mark.parametrize("fault", ["muted", "detached"])
def test_a_rank_whose_gradient_is_lost_gives_another_model(results: Results, fault: str) -> None:
    """`muted`: what rank 1's users say is lost; `detached`: what all users say about rank 1's items."""
    difference = largest_difference(results("bounded", fault, 2)["end"], results("bounded", "plain", 1)["end"])
    assert difference[0] > 100 * TOLERANCE, difference


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.long)])
@pytest.mark.parametrize("case", CASES)
def test_steps_planned_ahead_in_a_thread_end_with_the_very_same_parameters(
    results: Results, case: str, world_size: int
) -> None:
    ahead, inline = results(case, "ahead", world_size), results(case, "1", world_size)
    assert largest_difference(ahead["end"], inline["end"])[0] == 0.0
    assert [step["num_users"] for step in ahead["work"]] == [step["num_users"] for step in inline["work"]]


def test_users_scored_within_their_domains_are_so_on_two_ranks_of_which_each_has_one_domain(results: Results) -> None:
    reference = results("within", "plain", 1)
    for variant, world_size in (("1", 1), ("1", 2), ("ahead", 2)):
        found = results("within", variant, world_size)
        assert largest_difference(found["end"], reference["end"])[0] < TOLERANCE, (variant, world_size)
        assert [step["num_users"] for step in found["work"]] == [step["num_users"] for step in reference["work"]]
    assert largest_difference(reference["end"], results("bounded", "plain", 1)["end"])[0] > 100 * TOLERANCE


DIM, NUM_ITEMS_OF_STEP = HIDDEN, 24


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.long)])
@pytest.mark.parametrize("stage", ["0", "1", "2"])
def test_bytes_sent_in_a_step_are_those_of_the_formula(results: Results, stage: str, world_size: int) -> None:
    """docs/scaling.md; the third step, since the first also agrees on what an activation costs."""
    found = results("bounded", stage, world_size)
    step, ranks = found["work"][2], world_size
    assert step["num_items"] == NUM_ITEMS_OF_STEP
    batch = three_steps.global_batch(3, 2)
    longest = max(len(np.unique(three_steps.users_of_rank(batch, rank, ranks).indices)) for rank in range(ranks))
    rows = NUM_ITEMS_OF_STEP // ranks
    # by hand, a ring: 8 bytes a count and for how many users count, 4 an index and a number of E
    assert step["sent"] == {
        "indices": 2 * (ranks - 1) * 8 * ranks / ranks + (ranks - 1) * 4 * longest + 2 * (ranks - 1) * 8 / ranks,
        "embeddings": (ranks - 1) * 4 * rows * DIM,
        "embeddings_gradient": 2 * (ranks - 1) * 4 * NUM_ITEMS_OF_STEP * DIM / ranks,
    }
    assert sum(step["sent"].values()) == (
        indices_bytes(longest, ranks)
        + embeddings_bytes([rows] * ranks, DIM)
        + embeddings_gradient_bytes([rows] * ranks, DIM, by_all_reduce=True)
    )
    sizes = {name: value.numel() for name, value in found["start"].items()}
    with_gradient = sum(size for name, size in sizes.items() if "pooler" not in name)
    of_engine = sum(step["collectives"].values()) - sum(step["sent"].values())
    assert of_engine == weights_bytes(sum(sizes.values()), ranks, int(stage), with_gradient)
    # by hand: the gradient once, and with stages 1 and 2 the norm and the weights
    if stage == "0":
        assert of_engine == 8 * sum(sizes.values()) * (ranks - 1) / ranks
    else:
        by_hand = 8 * with_gradient + 2 * 8 + 4 * sum(sizes.values())
        assert of_engine == by_hand * (ranks - 1) / ranks

"""The cluster launcher's YAML: valid by Ray's own schema, and what it starts is what Ray understands."""

from __future__ import annotations

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def launcher() -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / "launcher.yaml").read_text(encoding="utf-8"))
    return tree


def test_it_is_valid_by_rays_schema_as_it_stands_and_with_rays_defaults(launcher: dict[str, Any]) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(launcher, schema)
    validate_config(prepare_config(copy.deepcopy(launcher)))


def test_nothing_that_ray_adds_of_its_own_is_typed_on_a_node(launcher: dict[str, Any]) -> None:
    """Ray's defaults for AWS install another Ray, into a Python that the image's user may not write to."""
    typed = prepare_config(copy.deepcopy(launcher))
    commands = {name: value for name, value in typed.items() if name.endswith("_commands")}
    assert commands == {name: launcher[name] for name in commands}
    assert {name for name, value in commands.items() if not value} == {
        "setup_commands",
        "head_setup_commands",
        "worker_setup_commands",
    }
    for name in ("setup_commands", "head_setup_commands"):
        del launcher[name]
    assert any("pip install" in one for one in prepare_config(launcher)["head_setup_commands"]), "it would, if left out"


def test_the_disk_that_is_mounted_is_made_the_images_users(launcher: dict[str, Any]) -> None:
    *_, mount, given = launcher["initialization_commands"]
    assert "mount -t nfs4" in mount
    assert given == 'test "$(stat -c %u /shared)" = 1000 || sudo chown 1000:1000 /shared'


def test_every_type_of_node_has_an_image_of_the_users(launcher: dict[str, Any]) -> None:
    """Ray fills in one with Ubuntu 18.04 and CUDA 11.2 where a type has none."""
    for node_type in launcher["available_node_types"].values():
        assert node_type["node_config"]["ImageId"].startswith("ami-")
    lines = (ROOT / "cluster" / "launcher.yaml").read_text(encoding="utf-8").splitlines()
    named = [line for line in lines if "ImageId:" in line]
    assert len(named) == len(launcher["available_node_types"])
    assert all("# (yours)" in line for line in named)


def test_a_misspelt_key_is_noticed(launcher: dict[str, Any]) -> None:
    launcher["max_worker"] = launcher.pop("max_workers")
    with pytest.raises(jsonschema.ValidationError):
        validate_config(launcher)


def test_gpus_scale_from_none(launcher: dict[str, Any]) -> None:
    types = launcher["available_node_types"]
    assert launcher["head_node_type"] in types
    assert types["gpu"]["resources"]["GPU"] == 1
    assert types["gpu"]["min_workers"] == 0 < types["gpu"]["max_workers"] <= launcher["max_workers"]


@pytest.mark.parametrize("role", ["head", "worker"])
def test_nodes_are_started_with_options_that_ray_has_and_ask_for_the_token(launcher: dict[str, Any], role: str) -> None:
    (command,) = [one for one in launcher[f"{role}_start_ray_commands"] if "ray start" in one]
    words = shlex.split(command)
    assert "RAY_AUTH_MODE=token" in words
    known = {option for parameter in start.params for option in parameter.opts}
    used = [word.split("=")[0] for word in words[words.index("start") + 1 :]]
    assert used and set(used) <= known, set(used) - known


def test_the_dashboard_is_bound_to_loopback_and_the_token_comes_from_a_file(launcher: dict[str, Any]) -> None:
    (command,) = [one for one in launcher["head_start_ray_commands"] if "ray start" in one]
    assert "--dashboard-host=127.0.0.1" in command
    assert launcher["file_mounts"] == {"/home/beeray/.ray/auth_token": "~/.ray/auth_token"}
    assert launcher["docker"]["image"] == "beeray:cuda"
    assert re.search(r"/shared:/shared", " ".join(launcher["docker"]["run_options"]))

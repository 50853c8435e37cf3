"""What the package never does: read pickles, build objects from YAML, listen to the network, trust code unread.

Its own sources are walked, so that a new call is found on the day it is written.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beeray.config import validate_config
from beeray.data.embeddings import read_latest
from beeray.data.manifest import Manifest
from beeray.errors import BeerayError, ConfigError, DataError, EmbeddingsError
from beeray.runtime.session import ray_init_arguments

PACKAGE = Path(__file__).resolve().parents[1] / "beeray"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PICKLING = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
CODE_FROM_TEXT = {"eval", "exec", "compile", "__import__"}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a call's function; what is no plain name is `?`."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def offences(source: str) -> Iterator[str]:
    """What of a source reads what can run code, or would."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"import {name}" for name in names if name.partition(".")[0] in PICKLING)
        if not isinstance(node, ast.Call):
            continue
        called, given = dotted(node.func), {word.arg: word.value for word in node.keywords}
        if called == "torch.load" and not _is(given.get("weights_only"), True):
            yield "torch.load without weights_only=True"
        if called in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.Loader", "yaml.UnsafeLoader"):
            yield called
        if called in ("np.load", "numpy.load") and not _is(given.get("allow_pickle", ast.Constant(False)), False):
            yield "np.load with allow_pickle"
        if called.endswith(("read_pickle", "loads_pickle", "hub.load")) or called in CODE_FROM_TEXT:
            yield called
        if "shell" in given and not _is(given["shell"], False):
            yield f"{called} with shell"


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_walk_sees_what_it_looks_for(source: str) -> None:
    assert len(list(offences(source))) == 1


def test_no_source_reads_pickles_or_runs_text() -> None:
    fine = "torch.load(path, weights_only=True)\nnp.load(path)\nnp.load(path, allow_pickle=False)\nmodel.eval()\n"
    assert list(offences(fine)) == []
    found = {
        str(path.relative_to(PACKAGE)): list(offences(path.read_text(encoding="utf-8")))
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    assert len(found) > 200
    assert {name: said for name, said in found.items() if said} == {}


def test_every_encoder_is_opened_with_what_the_config_says_of_its_code() -> None:
    callers = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and dotted(node.func).endswith("load_encoder"):
                callers.append(path.name)
                words = {word.arg for word in node.keywords}
                assert {"trust_remote_code", "revision"} <= words or path.parts[-2:] == ("verbs", "demo.py"), path
            if isinstance(node, ast.Call) and dotted(node.func).endswith("SentenceTransformer"):
                assert path.name == "encoder.py", f"{path}: opens an encoder by itself"
    assert set(callers) == {"inputs.py", "embedder.py", "task.py", "demo.py"}


def config(**sections: Any) -> Any:
    return validate_config({"name": "x", "data": {"source": "shop"}, **sections})


def test_code_of_encoders_is_off_unless_asked_for() -> None:
    encoder = config().encoder
    assert (encoder.trust_remote_code, encoder.revision) == (False, None)


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:7], COMMIT.upper(), COMMIT + "0", f"{COMMIT}\n"])
def test_code_is_trusted_of_one_whole_commit_alone(revision: str | None) -> None:
    with pytest.raises(
        ConfigError, match=r"encoder\.trust_remote_code is true and encoder\.revision .* \(40 hex digits\)"
    ):
        config(encoder={"trust_remote_code": True, "revision": revision})
    trusting = config(encoder={"name": "a/b", "trust_remote_code": True, "revision": COMMIT}).encoder
    assert (trusting.revision_of("a/b"), trusting.revision_of("c/d")) == (COMMIT, COMMIT)
    if revision is not None:
        plain = config(encoder={"name": "a/b", "revision": revision}).encoder
        assert (plain.revision_of("a/b"), plain.revision_of("c/d")) == (revision, None)


def test_a_ray_that_is_started_here_shows_nothing_to_the_network() -> None:
    arguments = ray_init_arguments(num_cpus=2, object_store_mib=100)
    assert arguments["include_dashboard"] is False
    assert arguments.get("dashboard_host", "127.0.0.1") == "127.0.0.1"
    for path in PACKAGE.rglob("*.py"):
        assert "0.0.0.0" not in path.read_text(encoding="utf-8"), path
    import inspect

    import ray

    assert inspect.signature(ray.init).parameters["dashboard_host"].default in ("127.0.0.1", "localhost")


NAMES = ["../x", "/x", "a/b", "", ".", "..", "a\n", "\x00", "-x", "é", "x" * 300 + "/", "%2e%2e/x"]


@pytest.mark.parametrize("name", NAMES)
def test_what_becomes_a_file_s_name_is_a_plain_name(name: str) -> None:
    with pytest.raises(ConfigError):
        validate_config({"name": name, "data": {"source": "shop"}})
    with pytest.raises(ConfigError):
        config(data={"source": "shop", "domain": name})
    with pytest.raises(ConfigError):
        config(data={"domains": {name: {"source": "shop"}}})


@pytest.mark.parametrize("outside", ["../x.parquet", "/etc/passwd", "a/../../x", "..", "a//b", "", "a\x00", 3, None])
def test_a_manifest_and_a_pointer_name_files_below_their_folder_alone(tmp_path: Path, outside: Any) -> None:
    record = {
        **dict.fromkeys(["version", "created", "item_id_type", "encoding_digest", "config_digest"], "x"),
        **{"model": {}, "encoding": {}, "catalog": {}, "counts": {}},
        **{"schema_version": 1, "rows": 1, "format": {"dtype": "float32", "dim": 2, "normalize": False}},
    }
    good = {"path": "errors/part-00000.parquet", "rows": 1, "bytes": 1, "sha256": "0"}
    Manifest.from_json(json.dumps(record | {"files": [good]}).encode(), "m.json")
    with pytest.raises(EmbeddingsError, match=r"m\.json: the manifest is damaged"):
        Manifest.from_json(json.dumps(record | {"files": [good | {"path": outside}]}).encode(), "m.json")
    if isinstance(outside, str):
        (tmp_path / "latest").write_text(json.dumps({"version": outside, "manifest_sha256": "0"}))
        with pytest.raises(EmbeddingsError, match="is damaged"):
            read_latest(str(tmp_path))


def test_an_error_is_one_line_whatever_it_quotes() -> None:
    assert str(DataError("a\nb\r\x1b[2J\u2028\ud800\u202e é 蜜")) == r"a\nb\r\x1b[2J\u2028\ud800\u202e é 蜜"
    assert str(BeerayError()) == ""

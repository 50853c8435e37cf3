"""What README.md and docs/*.md tell readers to type and to set is there: verbs, flags, configs, keys, links.

Lines quoted from beeray are checked by test_troubleshooting_doc.py, Python blocks on embeddings by
data/test_reading_embeddings.py, docker's and kubectl's files by cluster/test_cluster_page.py.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from doc_mistakes import (
    KEY,
    wrong_commands,
    wrong_defaults,
    wrong_flags,
    wrong_keys,
    wrong_links,
    yaml_mistake,
)
from doc_pages import ROOT, Page
from test_troubleshooting_doc import is_said, quoted, said
from tiny_encoder import build_tiny_encoder

from beeray.runtime.mlflow_run import _metric_name as mlflow_name
from beeray.runtime.results import flat_means

PAGES = [Page.of(path) for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
OWN_DATA = Page.of(ROOT / "docs" / "own-data.md")


def by_name(page: Page) -> str:
    return page.name


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_commands_name_what_is_there_and_are_accepted(page: Page, tmp_path: Path) -> None:
    assert wrong_commands(page, tmp_path) == []


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_keys_and_their_values_are_the_config_trees(page: Page) -> None:
    assert wrong_keys(page) == []


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_defaults_in_tables_are_those_of_the_config(page: Page) -> None:
    assert wrong_defaults(page) == []


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_configs_that_are_shown_are_valid(page: Page) -> None:
    shown = [text for language, text in page.fenced if language == "yaml"] + list(page.files.values())
    assert [mistake for text in shown if (mistake := yaml_mistake(text))] == []


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_links_lead_somewhere(page: Page) -> None:
    assert wrong_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_flags_belong_to_a_verb(page: Page) -> None:
    assert wrong_flags(page) == []


def test_every_page_is_linked_from_the_readme() -> None:
    readme = PAGES[0]
    assert {f"docs/{page.name.rpartition('/')[2]}" for page in PAGES[1:]} - set(readme.links) == set()


def test_what_the_pages_have_is_found() -> None:
    """Otherwise nothing would be checked."""
    lines = [line for page in PAGES for line in [*page.command_lines(), *page.mentioned]]
    assert len(lines) > 80
    assert {"tiny-shop.yaml"} == set(OWN_DATA.files)
    assert "shop.yaml" in PAGES[0].files
    assert len([span for page in PAGES for span in page.spans if KEY.search(span)]) > 150
    assert sum(len(page.links) for page in PAGES) > 30


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("    python -m beeray.trian --config goodbooks\n", "no such verb"),
        ("    python jobs/trian.py --config goodbooks\n", "no such verb"),
        ("    python -m beeray.train --config goodbooks --frsh\n", "--frsh"),
        ("    python -m beeray.train --config shop.yaml\n", "neither under configs/ nor shown"),
        ("    python -m beeray.train --config goodbooks train.lt=1\n", "train.lt"),
        ("    python -m beeray.train --config goodbooks \\\n        train.lr=-1\n", "train.lr"),
        ("    ray job submit --workingdir . -- python -m beeray.train --config goodbooks\n", "--workingdir"),
        ("    ray job submit --working-dir . -- python -m beeray.trian --config goodbooks\n", "no such verb"),
        ("    make demmo\n", "demmo"),
        ("Type `python -m beeray.train\n--config goodbuks` now.\n", "goodbuks"),
        ("Type `python -m beeray.trian` now.\n", "beeray/trian.py"),
        ("See `jobs/trian.py`.\n", "jobs/trian.py"),
        ("That is for `beeray.trian`.\n", "beeray/trian.py"),
        ("    python -m beeray.train\n", "required: --config"),
        ("```bash\npithon -m beeray.train\n```\n", "nobody checks"),
        ("    python benchmarks/scaling_model.py --mfuu 0.3\n", "--mfuu"),
    ],
)
def test_a_wrong_command_is_found(text: str, expected: str, tmp_path: Path) -> None:
    (found,) = wrong_commands(Page("a page", text), tmp_path)
    assert expected in found


def test_a_config_may_be_shown_on_the_page_or_written_by_it(tmp_path: Path) -> None:
    command = "    python -m beeray.train --config shop train.lr=1\n"
    shown = "```yaml\n# shop.yaml\nsplit: {kind: item}\n```\n"
    written = "```bash\ncat > shop.yaml <<'EOF'\nsplit: {kind: item}\nEOF\n```\n"
    for block in (shown, written):
        assert wrong_commands(Page("a page", block + command), tmp_path) == []
        assert wrong_commands(Page("a page", block.replace("item", "itm") + command), tmp_path) != []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`train.lt`", "train.lt"),
        ("`cluster.num_workers.x`", "cluster.num_workers.x"),
        ("`data.domains.<name>.wait`", "data.domains.<name>.wait"),
        ("`{train.lt: {choice: [1]}}`", "train.lt"),
        ("`split.kind: itm`", "split.kind"),
        ("`train.lr=-1`", "train.lr"),
    ],
)
def test_a_wrong_key_is_found(text: str, expected: str) -> None:
    (found,) = wrong_keys(Page("a page", f"Set {text}.\n"))
    assert expected in found


def test_keys_files_and_modules_are_told_apart() -> None:
    text = "`train.lr`, `train.lora.rank`, `data.domains.<name>.weight`, `encoder.*`, `train.py`, `beeray.train.x`\n"
    assert wrong_keys(Page("a page", text)) == []


@pytest.mark.parametrize(
    ("row", "is_wrong"),
    [
        ("| `train.epochs` | how long | 5 |", False),
        ("| `train.epochs` | how long | 6 |", True),
        ("| `train.lr`, `train.optimizer` | | 1e-5, nadam |", False),
        ("| `train.lr`, `train.optimizer` | | 1e-5, adamw |", True),
        ("| `train.relu` | | false |", True),
        ("| `train.top_k` | | all |", False),
    ],
)
def test_a_wrong_default_is_found(row: str, is_wrong: bool) -> None:
    page = Page("a page", f"| key | what | default |\n|---|---|---|\n{row}\n")
    assert bool(wrong_defaults(page)) is is_wrong


def test_a_wrong_link_flag_or_config_is_found() -> None:
    page = Page("a page", "## A b, c\n\n[a](nothing.md), [b](#a-b), [c](design.md#no), [d](#a-b-c), `--freshly`\n")
    assert len(wrong_links(page)) == 3
    assert wrong_flags(page) == ["--freshly"]
    assert yaml_mistake("train: {lr: 1e-5}") == ""
    assert "lrr" in yaml_mistake("train: {lrr: 1e-5}")


def test_lines_that_the_page_on_own_data_quotes_are_said_by_the_code() -> None:
    text = re.sub(r"^```.*?^```$", "", OWN_DATA.text, flags=re.MULTILINE | re.DOTALL)
    lines = quoted(text)
    assert len(lines) > 12
    texts = said()
    assert [line for line in lines if not is_said(line, texts)] == []


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_example_to_paste_runs_from_tables_to_published_embeddings(tmp_path: Path) -> None:
    (example,) = [text for language, text in OWN_DATA.fenced if language == "bash"]
    encoder = build_tiny_encoder(tmp_path / "encoder")
    (theirs,) = re.findall(r"name: \"(\S+)\"", example)
    done = subprocess.run(
        ["bash", "-e", "-c", example.replace(theirs, str(encoder))],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    prepared, trained, untouched, embedded = (json.loads(line) for line in done.stdout.splitlines())
    shop = tmp_path / "tiny-shop"
    assert prepared["items"] == 120 and prepared["items_by_split"] == {"train": 96, "validation": 12, "test": 12}
    assert prepared["dropped"]["interactions_below_min_value"] > 0 and prepared["dropped"]["interactions_repeated"] > 0
    assert trained["training"]["steps"] > 20
    assert (
        untouched["metrics"]["test"]["held_out"]["ndcg@10"] == trained["metrics_before"]["test"]["held_out"]["ndcg@10"]
    )
    assert embedded["rows"] == 120 and embedded["model"]["name"] == str(shop / "runs" / "tiny-shop" / "model")
    assert (shop / "runs" / "tiny-shop" / "report.html").is_file()
    for said_to_be_there in re.findall(r"`((?:stores|runs|embeddings)/[^`]+)`", OWN_DATA.prose):
        if "<" not in said_to_be_there:
            assert (shop / said_to_be_there).is_dir(), said_to_be_there


def test_figures_have_the_names_in_mlflow_that_the_pages_tell() -> None:
    scored = {"ndcg@100": {"mean": 0.3}}
    names = flat_means({"test": {"held_out": {**scored, "domains": {"books": scored}}}})
    whole, books = (mlflow_name(f"final/{name}") for name in sorted(names, key=len))
    assert f"`{whole}`" in (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    assert f"`{books}`" in (ROOT / "docs" / "several-data-sets.md").read_text(encoding="utf-8")

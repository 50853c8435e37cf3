"""The sweep's page: axes with the right places and ticks, a curve a trial, nothing fetched."""

from __future__ import annotations

import math
from html.parser import HTMLParser

import pytest

from beeray.config import Dimension
from beeray.runtime.sweep.folder import COMPLETE, FAILED, STOPPED, Trial, best_of
from beeray.runtime.sweep.page import axis, coordinates, curves, log_ticks, sweep_page

SPACE = {
    "train.lr": Dimension(loguniform=(1e-5, 1e-3)),
    "train.max_output": Dimension(choice=(50, 100, "all")),
    "train.weight_decay": Dimension(uniform=(0.0, 1.0)),
}


def some_trials() -> list[Trial]:
    def values(lr: float, items: object, decay: float) -> dict[str, object]:
        return {"train.lr": lr, "train.max_output": items, "train.weight_decay": decay}

    return [
        Trial(0, values(1e-4, 100, 0.25), COMPLETE, {1: 0.2, 2: 0.3}, 0.3),
        Trial(1, values(1e-5, "all", 0.5), STOPPED, {1: 0.1}, 0.1),
        Trial(2, values(1e-3, 50, 0.75), COMPLETE, {1: 0.25, 2: 0.4}, 0.4),
        Trial(3, values(1e-3, 50, 1.0), FAILED, reason="the loss became <nan>"),
    ]


class Fetched(HTMLParser):
    """What a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str | None] = []
        self.num_scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.num_scripts += tag == "script"
        self.addresses += [value for name, value in attrs if name in ("src", "href")]


def test_an_axis_is_logarithmic_placed_or_plain_as_its_dimension_is() -> None:
    lr = axis("train.lr", SPACE["train.lr"], [1e-4, 1e-5])
    assert lr["values"] == pytest.approx([-4, -5]) and lr["range"] == pytest.approx([-5, -3])
    assert lr["ticktext"] == ["1e-05", "2e-05", "5e-05", "0.0001", "0.0002", "0.0005", "0.001"]
    assert lr["tickvals"] == pytest.approx([math.log10(float(text)) for text in lr["ticktext"]])
    items = axis("train.max_output", SPACE["train.max_output"], ["all", 50])
    assert (items["values"], items["tickvals"], items["ticktext"]) == ([2, 0], [0, 1, 2], ["50", "100", "all"])
    plain = axis("train.weight_decay", SPACE["train.weight_decay"], [0.25])
    assert plain["values"] == [0.25] and plain["range"] == [0.0, 1.0]
    assert plain["ticktext"] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


def test_ticks_of_a_wide_range_are_powers_of_ten_and_of_a_narrow_one_its_ends() -> None:
    assert log_ticks(1e-6, 1e-2) == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
    assert log_ticks(2.1e-4, 4.9e-4) == [2.1e-4, 4.9e-4]


def test_lines_carry_the_metric_and_the_best_curve_stands_out() -> None:
    trials = some_trials()[:3]
    parallel = coordinates(trials, SPACE, "validation/ndcg@10", "max").data[0]
    assert [one.label for one in parallel.dimensions] == [*SPACE, "validation/ndcg@10"]
    assert list(parallel.dimensions[-1]["values"]) == [0.3, 0.1, 0.4] == list(parallel.line.color)
    drawn = curves(trials, "validation/ndcg@10", best_of(trials, "max")).data
    assert [(line.name, list(line.x), list(line.y)) for line in drawn] == [
        ("complete", [1, 2], [0.2, 0.3]),
        ("stopped", [1], [0.1]),
        ("trial-002, the best", [1, 2], [0.25, 0.4]),
    ]
    assert all(line.hovertemplate.startswith(f"trial-00{number}, ") for number, line in enumerate(drawn))
    assert drawn[2].line.width > drawn[0].line.width


def test_the_page_stands_alone_and_names_every_trial() -> None:
    page = sweep_page("Sweep <s>", some_trials(), SPACE, "validation/ndcg@10", "max")
    fetched = Fetched()
    fetched.feed(page)
    assert fetched.num_scripts > 0 and fetched.addresses == []
    assert "Sweep &lt;s&gt;" in page and "the loss became &lt;nan&gt;" in page
    assert "4 trials: 2 complete, 1 stopped, 1 failed. Best validation/ndcg@10: 0.4000 (trial-002)." in page
    assert all(f"<td>trial-00{number}</td>" in page for number in range(4))
    assert page.count('class="plotly-graph-div"') == 2


def test_a_sweep_of_failures_has_a_page_without_figures() -> None:
    page = sweep_page("s", some_trials()[3:], SPACE, "m", "max")
    assert "1 trials: 1 failed." in page and "plotly-graph-div" not in page

"""One finished run for all tests of its page."""

from __future__ import annotations

import pytest
from finished_run import a_run

from beeray.config import Config


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The config of a finished run, made by hand."""
    return a_run(tmp_path_factory.mktemp("runs"))

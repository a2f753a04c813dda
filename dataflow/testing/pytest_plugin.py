"""Fixtures for pytest. In a ``conftest.py``::

    pytest_plugins = ["dataflow.testing.pytest_plugin"]

It is asked for by name, not loaded into every pytest run of a machine that has this package.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dataflow.testing.mini_cluster import MiniCluster


@pytest.fixture
def mini_cluster() -> Iterator[MiniCluster]:
    """An open MiniCluster: all jobs of the test run in its process, and end with it."""
    with MiniCluster() as cluster:
        yield cluster

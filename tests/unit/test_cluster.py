"""Which Ray a program joins."""

from __future__ import annotations

import pytest
import ray

from dataflow.errors import ClusterError
from jobmanager.cluster import connect


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this program had joined the Ray at 10.0.0.1:6379."""

    class Context:
        gcs_address = "10.0.0.1:6379"

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", Context)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(
    "address",
    [None, "auto", "local", "10.0.0.1:6379", "head:6379", "127.0.0.1:6379", "ray://head:10001"],
)
def test_who_is_connected_stays_connected(connected: None, address: str | None) -> None:
    connect(address=address)


@pytest.mark.parametrize("by_variable", [False, True])
def test_who_is_connected_elsewhere_is_not_taken_there_silently(
    connected: None, by_variable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "10.0.0.1:6380"
    if by_variable:
        monkeypatch.setenv("RAY_ADDRESS", other)
    with pytest.raises(ClusterError) as refused:
        connect(address=None if by_variable else other)
    assert "the Ray at 10.0.0.1:6379 already" in str(refused.value)
    assert "the one at 10.0.0.1:6380" in str(refused.value)

"""What programs import from the package of connectors, as they did from PyFlink's of old."""

from __future__ import annotations

import pytest

from dataflow.datastream import connectors
from dataflow.datastream.connectors import file_system, number_seq


def test_the_package_has_sources_and_sinks_by_their_old_paths() -> None:
    assert connectors.FileSource is file_system.FileSource
    assert connectors.FileSink is file_system.FileSink
    assert connectors.NumberSequenceSource is number_seq.NumberSequenceSource
    for module, names in connectors._ELSEWHERE.items():
        for name in names:
            assert getattr(connectors, name).__name__ == name, module
    with pytest.raises(AttributeError, match=r"connectors' has no attribute 'FlinkKafkaConsumer'"):
        _ = connectors.FlinkKafkaConsumer

"""Which regions run again after a failure: Flink's RestartPipelinedRegionFailoverStrategy."""

from __future__ import annotations

from collections.abc import Iterable

from jobmanager.region import Region, RegionState


def to_restart(failed: Iterable[Region]) -> list[Region]:
    """The failed regions, those whose results they need and that are gone, and their consumers.

    Results that are made again may be others (records may come in another order, be distributed
    anew), so whoever has read the old ones, or what was made of them, starts again too. Regions
    that wait are left out: they run anyway, once what they need is there.
    """
    found: dict[Region, None] = {}
    left = list(failed)
    while left:
        region = left.pop()
        if region in found or (region.state is RegionState.WAITING and not region.recommits):
            continue
        found[region] = None
        for exchange in region.consumes:
            left += (producer for producer in exchange.producers if producer.released)
        for exchange in region.produces:
            left += exchange.consumers
    return list(found)

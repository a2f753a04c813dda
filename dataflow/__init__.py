"""Stateful stream processing in Python: Flink's execution model on Ray actors.

``dataflow.common`` and ``dataflow.datastream`` mirror ``pyflink.common`` and
``pyflink.datastream``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os

try:
    __version__ = importlib.metadata.version("ray-dataflow")
except importlib.metadata.PackageNotFoundError:  # run from a source tree, not installed
    __version__ = "0+unknown"


def _refuse_shadowed_packages() -> None:
    """The other packages have common names; a program's own ``state.py`` must not replace one."""
    home = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    for name in ("state", "taskmanager", "jobmanager"):
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ImportError(f"package {name!r} of ray-dataflow is missing beside {home}")
        places = list(spec.submodule_search_locations or [])
        if os.path.join(home, name) not in map(os.path.realpath, places):
            found = spec.origin or ", ".join(places)
            raise ImportError(
                f"{found} hides the package {name!r} of ray-dataflow: rename that file or folder, "
                "or take its folder off the import path"
            )


_refuse_shadowed_packages()

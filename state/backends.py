"""Which state backend ``state.backend.type`` names."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

from dataflow.common.config_options import ConfigOptions
from dataflow.common.config_values import STATE_BACKENDS_GROUP
from dataflow.common.configuration import Configuration
from dataflow.common.keys import KeyGroupRange
from dataflow.errors import ConfigError
from state.backend import BackendContext, KeyedStateBackend
from state.heap_backend import HeapKeyedStateBackend
from state.rocksdb import manifest as rocksdb_manifest
from state.snapshot import NativeState

Factory = Callable[[BackendContext], KeyedStateBackend]


def _rocksdb(context: BackendContext) -> KeyedStateBackend:
    try:
        from state.rocksdb.backend import RocksDBKeyedStateBackend
    except ImportError as error:
        raise ConfigError(
            f"operator {context.operator_name!r}: state.backend.type = rocksdb needs the package "
            "rocksdict where the TaskManagers run: pip install ray-dataflow[rocksdb] "
            f"({type(error).__name__}: {error})"
        ) from None
    return RocksDBKeyedStateBackend(context)


_BUILT_IN: dict[str, Factory] = {"hashmap": HeapKeyedStateBackend.of, "rocksdb": _rocksdb}


def create_backend(context: BackendContext, name: str | None = None) -> KeyedStateBackend:
    """The backend called ``name``, or else the one that the configuration names.

    Raises ConfigError when it is not installed here.
    """
    if name is None:
        name = Configuration(context.configuration).get(ConfigOptions.STATE_BACKEND)
    make = _BUILT_IN.get(name) or _registered(name)
    backend = make(context)
    if not isinstance(backend, KeyedStateBackend):
        raise ConfigError(
            f"state.backend.type = {name!r}: the entry point made a {type(backend).__name__}, "
            "which is no KeyedStateBackend"
        )
    return backend


def _registered(name: str) -> Factory:
    for entry in entry_points(group=STATE_BACKENDS_GROUP, name=name):
        try:
            factory: Factory = entry.load()
        except Exception as error:
            raise ConfigError(
                f"state.backend.type = {name!r}: the entry point {entry.value} cannot be loaded: "
                f"{type(error).__name__}: {error}"
            ) from error
        return factory
    raise ConfigError(
        f"state.backend.type = {name!r}: no package that is installed where the TaskManagers run "
        f"has an entry point of that name in the group {STATE_BACKENDS_GROUP}"
    )


def leave_out(native: NativeState, key_groups: KeyGroupRange) -> frozenset[str]:
    """The shared files that are not needed for these key groups, of a state with the other files.

    Those may be changed by this: the state does without what is left out from now on.
    """
    if native.backend != "rocksdb":
        return frozenset()
    return rocksdb_manifest.leave_out(native, key_groups)

"""The only place where bytes become Python objects.

Loading a pickle runs whatever its writer put into it, so every ``loads`` below is a statement of
trust, and a test forbids unpickling anywhere else:

* **code** (``dumps_code``/``loads_code``): the user's functions, cloudpickled by whoever submitted
  the job and loaded only in TaskManagers. Submitting a job *is* running code on the cluster.
* **data** (``dumps_data``/``loads_data``): records between tasks, state, splits and committables,
  written by the job's own tasks and read back by them. Whoever can write to the checkpoint storage
  can therefore run code in the job. State of functions (``dumps_state``/``loads_state``) is data
  whose classes may have changed when it is read.

Nothing that arrives from a connector, a REST call or any other outsider may come here.
"""

from __future__ import annotations

import io
import pickle
import sys
import types
from collections import ChainMap
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import cloudpickle

from dataflow.common.dataclass_state import SchemaMismatch, reduce_dataclass

PROTOCOL = 5
DEFINITION_BYTES_MAX = 256 * 1024  # of a class that records of it bring along


def _with_file_name(
    make: Callable[..., types.CodeType], arguments: tuple[Any, ...], file_name: str
) -> types.CodeType:
    return make(*arguments).replace(co_filename=file_name)


def _reduce_code(code: types.CodeType) -> tuple[Any, ...]:
    make, arguments = cloudpickle.Pickler.dispatch_table[types.CodeType](code)
    return _with_file_name, (make, arguments, code.co_filename)


class _CodePickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
    """Keeps file names, for tracebacks: cloudpickle 3.1.3 replaces them by "<dynamic-code>"."""

    dispatch_table = ChainMap({types.CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table)


def dumps_code(value: Any) -> bytes:
    """Pickle by value what the receiver cannot import: lambdas, closures, the script's classes."""
    with io.BytesIO() as file:
        _CodePickler(file, protocol=PROTOCOL).dump(value)
        return file.getvalue()


def loads_code(blob: bytes) -> Any:
    """The inverse of ``dumps_code``; only for blobs of the job's own JobGraph."""
    return cloudpickle.loads(blob)


def dumps_data(value: Any) -> bytes:
    """Pickle plain data; classes travel by reference, those that nobody can import by value."""
    try:
        return pickle.dumps(value, protocol=PROTOCOL)
    except (AttributeError, pickle.PicklingError):  # as for a class within a function
        with io.BytesIO() as file:
            _LocalClassPickler(file, protocol=PROTOCOL).dump(value)
            return file.getvalue()


class _LocalClassPickler(pickle.Pickler):
    """With the definition of every class that is local to a function, pickled once per process.

    cloudpickle knows a class again that it has seen, such as in the functions of the job, so that
    ``isinstance`` holds at the other end.
    """

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, type) or _is_importable(value):
            return NotImplemented
        definition = _definitions.get(value)
        if definition is None:
            definition = _definition_of(value)
        return _local_class, (definition,)


def brings_classes(blob: bytes) -> bool:
    """Whether ``dumps_data`` has put definitions of classes in, which only its run knows."""
    return _REFERENCE in blob


#: How a pickle refers to what makes a class of its definition; a text of that name is not followed
#: by these opcodes, MEMOIZE and STACK_GLOBAL.
_REFERENCE = b"_local_class\x94\x93"

_definitions: WeakKeyDictionary[type, bytes] = WeakKeyDictionary()
_local_classes: WeakValueDictionary[bytes, type] = WeakValueDictionary()


def _definition_of(kind: type) -> bytes:
    definition = dumps_code(kind)
    if len(definition) > DEFINITION_BYTES_MAX:
        raise pickle.PicklingError(
            f"the class {kind.__qualname__}, which is local to a function, has {len(definition)} "
            f"bytes with all that it refers to, and goes along with every batch of records: at "
            f"most {DEFINITION_BYTES_MAX} are allowed; put it at the top level of a module"
        )
    _definitions[kind] = definition
    _local_classes[definition] = kind
    return definition


def _is_importable(kind: type) -> bool:
    found: Any = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is kind


def _local_class(definition: bytes) -> type:
    found = _local_classes.get(definition)
    if found is None:
        found = _local_classes[definition] = loads_code(definition)
    return found


def loads_data(blob: bytes | memoryview) -> Any:
    """The inverse of ``dumps_data``; only for bytes that a task of the same job has written."""
    return pickle.loads(blob)


class _StatePickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        return reduce_dataclass(value)


class _StateUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError) as error:
            raise SchemaMismatch(
                f"{name} of module {module} is not there any more ({error}); bring it back under "
                "that name, or give the state another name to start it empty"
            ) from error


def dumps_state(value: Any) -> bytes:
    """As ``dumps_data``, with dataclass instances by the names of their fields.

    Classes must be such that they are found again: raises PicklingError for those of a function.
    """
    with io.BytesIO() as file:
        _dump_state(_StatePickler(file, protocol=PROTOCOL), value)
        return file.getvalue()


def _dump_state(pickler: pickle.Pickler, value: Any) -> None:
    try:
        pickler.dump(value)
    except (AttributeError, pickle.PicklingError) as error:
        if not str(error).startswith("Can't "):  # pickle or get; others are the user's own
            raise
        raise pickle.PicklingError(
            f"{error}; state is read back by other processes, perhaps of a changed program: its "
            "classes and functions must be at the top level of a module, or of the script"
        ) from error


def dumps_state_alike(value: Any) -> bytes:
    """As ``dumps_state``, but the same for equal values: what occurs twice is written twice.

    Not for values that refer to themselves.
    """
    with io.BytesIO() as file:
        pickler = _StatePickler(file, protocol=PROTOCOL)
        pickler.fast = True
        _dump_state(pickler, value)
        return file.getvalue()


def loads_state(blob: bytes | memoryview) -> Any:
    """The inverse of ``dumps_state``, and of ``dumps_data``.

    Raises SchemaMismatch when a class is not what the state needs.
    """
    with io.BytesIO(blob) as file:
        return _StateUnpickler(file).load()

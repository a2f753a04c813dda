"""Shipping the user's functions: pickled on the client, with faults that name the culprit.

Functions and classes of the script itself travel by value, those of importable modules by
reference. Classes of the script also travel on their own (``dump_main_classes``), because their
instances are records: TaskManagers put the classes into their own ``__main__``, after which plain
pickle carries the instances at full speed.
"""

from __future__ import annotations

import builtins
import functools
import io
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

from dataflow.common.codec import dumps_code, loads_code
from dataflow.errors import FunctionPicklingError
from dataflow.graph.specs import OperatorSpec

BLOB_BYTES_MAX = 10 * 1024 * 1024
_DEPTH_MAX = 12
_LOOKS_MAX = 2_000  # objects the search for the culprit tries to pickle
_ITEMS_MAX = 100  # of any one container


def dump_function(value: Any, owner: str, part: str = "function") -> bytes:
    """Pickle what ``owner`` (such as "operator 'Map'") runs. Raises FunctionPicklingError.

    ``part`` is what ``value`` is called in the message ("function", "key selector").
    """
    try:
        blob = dumps_code(value)
    except Exception as error:
        reason = str(error).strip().splitlines()
        detail = f": {reason[0]}" if reason else ""
        raise FunctionPicklingError(
            f"{owner}: {_explain(value, part)} cannot be pickled{detail}"
        ) from error
    if len(blob) > BLOB_BYTES_MAX:
        raise FunctionPicklingError(
            f"{owner}: its {part} is {len(blob) / 2**20:.1f} MiB when pickled, and at "
            f"most {BLOB_BYTES_MAX >> 20} MiB is allowed; load large data in open(), or read it "
            "with a file source"
        )
    return blob


def dump_spec(spec: OperatorSpec, owner: str) -> bytes:
    """Pickle the description of an operator. Raises FunctionPicklingError."""
    return dump_function(spec, owner)


def load_spec(blob: bytes) -> OperatorSpec:
    """The inverse of ``dump_spec``; TaskManagers only."""
    spec = loads_code(blob)
    assert isinstance(spec, OperatorSpec)
    return spec


def dump_main_classes() -> bytes:
    """The classes of the script, by name. Those that cannot be pickled are left out.

    Leaving one out costs nothing unless it is used, and then its user's fault is reported.
    """
    main = sys.modules.get("__main__")
    classes: dict[str, type] = {}
    for name, value in sorted(vars(main).items() if main else ()):
        ours = isinstance(value, type) and value.__module__ == "__main__"
        if ours and value.__qualname__ == name and _pickles(value):
            classes[name] = value
    return dump_function(classes, "the script's __main__", "set of classes") if classes else b""


def install_main_classes(blob: bytes) -> None:
    """Make the script's classes importable from this process's ``__main__``."""
    if blob:
        main = sys.modules["__main__"]
        for name, value in loads_code(blob).items():
            setattr(main, name, value)


def _pickles(value: Any) -> bool:
    try:
        dumps_code(value)
    except Exception:
        return False
    return True


# -------------------------------------------------------------------------- finding the culprit


def _explain(value: Any, part: str) -> str:
    """A phrase that leads from ``value`` to the innermost object that does not pickle."""
    steps: list[str] = []
    looks = 0
    seen: set[int] = set()
    for _ in range(_DEPTH_MAX):
        seen.add(id(value))
        for step, child in _children(value):
            looks += 1
            if looks > _LOOKS_MAX:
                break
            if id(child) not in seen and not _pickles(child):
                if step:
                    steps.append(step)
                value = child
                break
        else:
            break
    kind = type(value)
    where = "'s ".join([f"the {part}", *steps[:1]])
    where = " -> ".join([where, *steps[1:]])
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"{where} ({module}{kind.__qualname__})"


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """What pickling ``value`` would pickle too, each with the words that lead there.

    The words are empty for our own wrappers around user functions, of which users know nothing.
    """
    if isinstance(value, types.FunctionType):
        yield from _function_children(value)
    elif isinstance(value, types.MethodType):
        yield "", value.__func__
        yield "bound object", value.__self__
    elif isinstance(value, functools.partial):
        yield "", value.func
        yield from _items("argument", dict(enumerate(value.args)))
        yield from _items("argument", value.keywords)
    elif isinstance(value, Mapping):
        yield from _items("item", value)
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from _items("item", dict(enumerate(value)))
    elif isinstance(value, type):
        yield from _items("class attribute", vars(value), names=True)
        yield from (("base class", base) for base in value.__bases__)
    elif not isinstance(value, (types.ModuleType, io.IOBase)):
        yield from _object_children(value)


def _function_children(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f"closure variable '{name}'", cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    for name in sorted(_names_used(code)):
        if name in function.__globals__ and not hasattr(builtins, name):
            yield f"global variable '{name}'", function.__globals__[name]
    yield from _items("default value", dict(enumerate(function.__defaults__ or ())))
    yield from _items("default value", function.__kwdefaults__ or {})
    yield from _items("attribute", function.__dict__, names=True)


def _names_used(code: types.CodeType) -> set[str]:
    """Global names of a function and of the functions inside it."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_used(constant)
    return names


def _object_children(value: Any) -> Iterator[tuple[str, Any]]:
    attributes = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                attributes[name] = getattr(value, name)
    module = type(value).__module__
    if module.partition(".")[0] == "dataflow":
        yield from (("", child) for child in attributes.values())
    else:
        yield from _items("attribute", attributes, names=True)
    if module == "__main__":
        yield f"class {type(value).__qualname__}", type(value)


def _items(what: str, mapping: Mapping[Any, Any], names: bool = False) -> Iterator[tuple[str, Any]]:
    for count, (key, child) in enumerate(mapping.items()):
        if count >= _ITEMS_MAX:
            return
        yield f"{what} '{key}'" if names else f"{what} {key!r:.60}", child

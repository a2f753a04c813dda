"""Dataclass instances in state, by the names of their fields: their class may change meanwhile.

Pickle alone would bring back whatever attributes an instance had, and of a frozen class with slots
even by position. Here an instance is written as names and values, and read into the fields that
its class has *then*: a field that was added gets its default, one that was removed is dropped.
``__init__`` and ``__post_init__`` are not run. Classes that say themselves how they are pickled
are left to themselves.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary

#: Of a class: the names of its fields, of slots that are none, and what reads all fields of an
#: instance. None: not for us.
_Layout = tuple[tuple[str, ...], tuple[str, ...], Callable[[Any], tuple[Any, ...]]]
_layouts: WeakKeyDictionary[type, _Layout | None] = WeakKeyDictionary()
_names: WeakKeyDictionary[type, tuple[str, ...]] = WeakKeyDictionary()


class SchemaMismatch(Exception):
    """An instance in a checkpoint does not fit its class; the text says what to do."""


def reduce_dataclass(value: Any) -> Any:
    """As ``Pickler.reducer_override``: how to write ``value``, or NotImplemented."""
    kind = type(value)
    try:
        layout = _layouts[kind]
    except KeyError:
        layout = _layouts[kind] = _layout_of(kind)
    if layout is None:
        return NotImplemented
    names, slots, read = layout
    unset: tuple[str, ...] = ()
    try:
        values = read(value)
    except AttributeError:  # a field that nobody has set yet
        unset = tuple(name for name in names if not hasattr(value, name))
        names = tuple(name for name in names if name not in unset)
        values = tuple([getattr(value, name) for name in names])
    more = {name: getattr(value, name) for name in slots if hasattr(value, name)} if slots else {}
    attributes = getattr(value, "__dict__", None)
    if attributes is not None and len(attributes) > len(names):
        known = {*names, *unset}
        more |= {name: given for name, given in attributes.items() if name not in known}
    state = (names, values, unset, more) if unset or more else (names, values)
    return blank, (kind,), state, None, None, fill


def _layout_of(kind: type) -> _Layout | None:
    if not is_dataclass(kind) or kind.__new__ is not object.__new__:
        return None
    own_ways = (
        kind.__reduce_ex__ is not object.__reduce_ex__,
        kind.__reduce__ is not object.__reduce__,
        _is_own(kind, "__getstate__"),
        _is_own(kind, "__setstate__"),
        hasattr(kind, "__getnewargs_ex__") or hasattr(kind, "__getnewargs__"),
    )
    if any(own_ways):
        return None
    names = _names_of(kind)
    slots: Callable[[type], list[str]] = copyreg._slotnames  # type: ignore[attr-defined]
    others = tuple(name for name in slots(kind) if name not in names)
    if len(names) > 1:
        return names, others, attrgetter(*names)
    return names, others, lambda value: tuple([getattr(value, name) for name in names])


def _names_of(kind: type) -> tuple[str, ...]:
    """Of a dataclass's fields, by no means of its class variables."""
    try:
        return _names[kind]
    except KeyError:
        names = _names[kind] = tuple(field.name for field in fields(kind))
        return names


def _is_own(kind: type, name: str) -> bool:
    """Whether a method is neither object's nor made by the dataclass decorator."""
    method = getattr(kind, name, None)
    if method is None or method is getattr(object, name, None):
        return False
    return getattr(method, "__module__", None) != "dataclasses"


def blank(kind: Any) -> Any:
    """An instance without anything in it. Called by what ``reduce_dataclass`` has written."""
    if not isinstance(kind, type) or not is_dataclass(kind):
        what = kind.__qualname__ if isinstance(kind, type) else repr(kind)
        raise SchemaMismatch(
            f"{what} was a dataclass and is none any more; make it one again, or give the "
            "state another name to start it empty"
        )
    return object.__new__(kind)


def fill(instance: Any, state: Any) -> None:
    """Give a blank instance its fields. Called by what ``reduce_dataclass`` has written."""
    names, values, unset, more = state if len(state) > 2 else (*state, (), {})
    kind = type(instance)
    put = object.__setattr__  # frozen or not
    if names == _names_of(kind):  # the usual case
        for name, value in zip(names, values, strict=True):
            put(instance, name, value)
        _fill_others(instance, more)
        return
    found = dict(zip(names, values, strict=True))
    for field in fields(kind):
        name = field.name
        if name in found:
            put(instance, name, found[name])
        elif name in unset:
            continue
        elif name in more:  # was an attribute, and has become a field
            put(instance, name, more[name])
        elif field.default is not MISSING:
            put(instance, name, field.default)
        elif field.default_factory is not MISSING:
            put(instance, name, field.default_factory())
        else:
            raise SchemaMismatch(
                f"field {name!r} was added to {kind.__qualname__} and has no default, so it is "
                "not known what it is in instances from before; give it one"
            )
    _fill_others(instance, more)


def _fill_others(instance: Any, more: dict[str, Any]) -> None:
    for name, value in more.items():
        try:
            object.__setattr__(instance, name, value)
        except AttributeError:  # the class has slots, and this is none of them any more
            continue

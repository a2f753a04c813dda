"""The dicts in which the heap backend keeps state, and how they tell what becomes of them.

Operators work on these dicts directly, so most of the time they are dicts and nothing else. While
a snapshot is taken bit by bit they are *watched*: a value that is about to be changed is first put
aside as it was, so that the snapshot is of one moment. With a changelog they are watched always,
and note which keys were touched. A dict is watched by giving it another class, and stays the same
object.

A value that can be changed in place counts as changed when it is handed out by key (see
``state.backend`` for what operators promise).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from dataflow.common.codec import dumps_state, loads_state
from state.aliasing import ATOMIC, all_immutable, is_immutable

#: Put aside for a key that had no value.
ABSENT: Final = object()

_get = dict.get
_set = dict.__setitem__
_MISSING: Final = object()


class Watch:
    """What is noted of one table. ``aside`` and ``changed`` are None while nobody asks for them."""

    __slots__ = ("aside", "changed", "dropped")

    def __init__(self) -> None:
        #: Namespace to key to the value it had when the snapshot began, or ABSENT.
        self.aside: dict[Any, dict[Any, Any]] | None = None
        #: Namespace to the keys touched since the changes were last taken.
        self.changed: dict[Any, set[Any]] | None = None
        #: The namespaces dropped since then.
        self.dropped: set[Any] = set()

    def touch(self, values: StateMap, key: Any) -> None:
        """The value of ``key`` may change."""
        namespace = values.namespace
        if self.changed is not None:
            keys = self.changed.get(namespace)
            if keys is None:
                keys = self.changed[namespace] = set()
            values.noted = keys
            keys.add(key)
        if self.aside is not None:
            kept = self.aside.get(namespace)
            if kept is None:
                kept = self.aside[namespace] = {}
            if key not in kept:
                value = _get(values, key, ABSENT)
                kept[key] = value if value is ABSENT else apart(value)

    def take(self, namespaces: Namespaces) -> tuple[dict[Any, set[Any]], set[Any]]:
        """Changed and dropped so far; from now on they are noted anew."""
        changed, dropped = self.changed or {}, self.dropped
        self.changed, self.dropped = {}, set()
        for namespace in changed:
            values = _get(namespaces, namespace)
            if values is not None:
                values.noted = None
        return changed, dropped

    def hand_out(self, values: StateMap) -> None:
        """Whoever gets the values may change them, which is not to be seen in the snapshot."""
        if self.aside is not None:
            kept = self.aside.setdefault(values.namespace, {})
            for key, value in dict.items(values):
                if key not in kept:
                    kept[key] = apart(value)

    def drop(self, namespace: Any, values: StateMap) -> None:
        """The namespace goes, and its values are somebody else's from now on."""
        self.hand_out(values)
        if self.changed is not None:
            self.changed.pop(namespace, None)
            self.dropped.add(namespace)


def apart(value: Any) -> Any:
    """The value as it is now, whatever becomes of the object; for the snapshot alone."""
    if is_immutable(value):
        return value
    try:
        return Pickled(dumps_state(value))
    except Exception:  # the snapshot fails when its turn comes, and says whose it is
        return value


class Pickled:
    """A value that is pickled already, and becomes the value itself where it is unpickled.

    To unpickle it here would not do: a class may pickle otherwise what it has just unpickled.
    """

    __slots__ = ("blob",)

    def __init__(self, blob: bytes) -> None:
        self.blob = blob

    def __reduce__(self) -> tuple[Any, ...]:
        return loads_state, (self.blob,)


class StateMap(dict[Any, Any]):
    """The values of a namespace by key."""

    __slots__ = ("namespace", "noted", "watch")

    def __init__(self, namespace: Any, watch: Watch) -> None:
        super().__init__()
        self.namespace = namespace
        self.watch = watch
        #: Of ``watch.changed``, once there is one for this namespace.
        self.noted: set[Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class WatchedMap(StateMap):
    """A StateMap while it is watched.

    Operators iterate for reading only, so that is no change. But they hand what they read to the
    user's functions, and those may do with it what they like.
    """

    __slots__ = ()

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        if type(value) not in ATOMIC:
            self.watch.touch(self, key)
        return value

    def get(self, key: Any, default: Any = None) -> Any:
        value = _get(self, key, _MISSING)
        if value is _MISSING:
            return default
        if type(value) not in ATOMIC:
            self.watch.touch(self, key)
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        noted = self.noted
        if noted is None or self.watch.aside is not None:
            self.watch.touch(self, key)
        else:  # with a changelog, most of the time
            noted.add(key)
        _set(self, key, value)

    def __delitem__(self, key: Any) -> None:
        self.watch.touch(self, key)
        super().__delitem__(key)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        self.watch.touch(self, key)
        return super().setdefault(key, default)

    def pop(self, key: Any, *default: Any) -> Any:
        self.watch.touch(self, key)
        return super().pop(key, *default)

    def popitem(self) -> tuple[Any, Any]:
        if self:
            self.watch.touch(self, next(reversed(self)))
        return super().popitem()

    def update(self, *others: Any, **named: Any) -> None:
        for key, value in dict(*others, **named).items():
            self[key] = value

    def __ior__(self, other: Any) -> WatchedMap:  # type: ignore[misc]
        self.update(other)
        return self

    def clear(self) -> None:
        for key in self:
            self.watch.touch(self, key)
        super().clear()

    def values(self) -> Any:
        self._hand_out()
        return super().values()

    def items(self) -> Any:
        self._hand_out()
        return super().items()

    def _hand_out(self) -> None:
        if self.watch.aside is not None and not all_immutable(super().values()):
            self.watch.hand_out(self)


class Namespaces(dict[Any, StateMap]):
    """The namespaces of a table. What is put into it is copied into a StateMap."""

    __slots__ = ("watch",)

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)

    def __setitem__(self, namespace: Any, values: Mapping[Any, Any]) -> None:
        made = StateMap(namespace, self.watch)
        made.update(values)
        super().__setitem__(namespace, made)


class WatchedNamespaces(Namespaces):
    """Namespaces while they are watched."""

    __slots__ = ()

    def __setitem__(self, namespace: Any, values: Mapping[Any, Any]) -> None:
        self._going(namespace)
        made = WatchedMap(namespace, self.watch)
        made.update(values)
        dict.__setitem__(self, namespace, made)

    def __delitem__(self, namespace: Any) -> None:
        self._going(namespace)
        super().__delitem__(namespace)

    def pop(self, namespace: Any, *default: Any) -> Any:
        self._going(namespace)
        return super().pop(namespace, *default)

    def popitem(self) -> tuple[Any, StateMap]:
        if self:
            self._going(next(reversed(self)))
        return super().popitem()

    def clear(self) -> None:
        for namespace in self:
            self._going(namespace)
        super().clear()

    def _going(self, namespace: Any) -> None:
        values = _get(self, namespace)
        if values is not None:
            self.watch.drop(namespace, values)


def watch(namespaces: Namespaces) -> None:
    """From now on everything is noted."""
    namespaces.__class__ = WatchedNamespaces
    _set_class(namespaces.values(), WatchedMap)


def unwatch(namespaces: Namespaces) -> None:
    """They are plain dicts again."""
    namespaces.__class__ = Namespaces
    _set_class(namespaces.values(), StateMap)


def _set_class(maps: Iterable[StateMap], kind: type[StateMap]) -> None:
    for values in maps:
        values.__class__ = kind

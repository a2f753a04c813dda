"""The dicts in which the heap backend keeps state, and how they tell what becomes of them.

Operators work on these dicts directly, so most of the time they are dicts and nothing else. While
a snapshot is taken bit by bit they are *watched*: a value that is about to be changed is first put
aside as it was, so that the snapshot is of one moment. With a changelog they are watched always,
and note which keys were touched. A dict is watched by giving it another class, and stays the same
object.

A value that can be changed in place counts as changed when it is handed out by key (see
``state.backend`` for what operators promise). Noting that for each access costs as much again as
the access. So for a block that says beforehand which keys it will touch they are noted together,
and the dict is a plain one meanwhile (``touching``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice, repeat
from types import TracebackType
from typing import Any, Final

from dataflow.common.codec import dumps_state, loads_state
from state.aliasing import ATOMIC, all_immutable, is_immutable
from state.backend import UNTOLD


class Absent:
    """Of ``ABSENT`` alone."""


#: Put aside for a key that had no value.
ABSENT: Final = Absent()

_get = dict.get
_has = dict.__contains__
_set = dict.__setitem__
_MISSING: Final = object()


class Walk:
    """Goes through keys bit by bit.

    Those of a dict of millions take a good part of a second to copy. So they are not, until one
    comes or goes: then the ``rest`` is.
    """

    __slots__ = ("_left", "_of")

    def __init__(self, keys: Iterable[Any]) -> None:
        self._left = iter(keys)
        self._of: Iterable[Any] | None = keys

    def take(self, count: int) -> list[Any]:
        """The next ones; none at the end."""
        return list(islice(self._left, count))

    def secure(self, keys: Iterable[Any]) -> None:
        """If it is these: they are about to become other ones."""
        if self._of is keys:
            self._of = None
            self._left = iter(list(self._left))


class Watch:
    """What is noted of one table. ``aside`` and ``changed`` are None while nobody asks for them."""

    __slots__ = ("aside", "changed", "dropped", "walk", "wanted")

    def __init__(self) -> None:
        #: Namespace to the keys that the snapshot has; None is all of them.
        self.wanted: Mapping[Any, set[Any]] | None = None
        #: Of the snapshot, through the namespace that it is at.
        self.walk: Walk | None = None
        #: Namespace to key to the value it had when the snapshot began, or ABSENT.
        self.aside: dict[Any, dict[Any, Any]] | None = None
        #: Namespace to the keys touched since the changes were last taken.
        self.changed: dict[Any, set[Any]] | None = None
        #: The namespaces dropped since then.
        self.dropped: set[Any] = set()

    def touch(self, values: StateMap, key: Any) -> None:
        """The value of ``key`` may change."""
        if self.changed is not None:
            self._noted(values).add(key)
        if self.aside is not None:
            if self.walk is not None and key not in values:
                self.walk.secure(values)
            if self.wanted is not None and key not in self.wanted.get(values.namespace, ()):
                return
            kept = self.aside.setdefault(values.namespace, {})
            if key not in kept:
                value = _get(values, key, ABSENT)
                kept[key] = value if value is ABSENT else apart(value)

    def touch_all(self, values: StateMap, keys: Sequence[Any]) -> None:
        """As ``touch`` for each of them. Raises TypeError if one is none."""
        if self.changed is not None:
            self._noted(values).update(keys)
        if self.aside is not None:
            if self.walk is not None and not all(map(partial(_has, values), keys)):
                self.walk.secure(values)
            kept = self.aside.setdefault(values.namespace, {})
            if self.wanted is not None:
                keys = list(self.wanted.get(values.namespace, set()).intersection(keys))
            new = [key for key in keys if key not in kept]
            found = dict(zip(new, map(partial(_get, values), new, repeat(ABSENT)), strict=True))
            if not all_immutable(found.values()):
                for key, value in found.items():
                    found[key] = value if value is ABSENT else apart(value)
            kept.update(found)

    def _noted(self, values: StateMap) -> set[Any]:
        assert self.changed is not None
        if values.noted is None:
            values.noted = self.changed.setdefault(values.namespace, set())
        return values.noted

    def restructure(self, values: StateMap) -> None:
        """Keys are about to go."""
        if self.walk is not None:
            self.walk.secure(values)

    def begin_walk(self, values: StateMap) -> Walk:
        """Through keys that may come and go meanwhile."""
        self.walk = Walk(values)
        return self.walk

    def take(self, namespaces: Namespaces) -> tuple[dict[Any, set[Any]], set[Any]]:
        """Changed and dropped so far; from now on they are noted anew."""
        changed, dropped = self.changed or {}, self.dropped
        self.changed, self.dropped = {}, set()
        for namespace in changed:
            values = _get(namespaces, namespace)
            if values is not None:
                values.noted = None
        return changed, dropped

    def note_no_more(self, namespaces: Namespaces) -> None:
        """Nobody will ask what has changed."""
        self.take(namespaces)
        self.changed = None

    def hand_out(self, values: StateMap) -> None:
        """Whoever gets the values may change them, which is not to be seen in the snapshot."""
        if self.aside is not None:
            kept = self.aside.setdefault(values.namespace, {})
            wanted: Iterable[Any] = values
            if self.wanted is not None:
                wanted = self.wanted.get(values.namespace, ())
            for key in wanted:
                if key in values and key not in kept:
                    kept[key] = apart(_get(values, key))

    def drop(self, namespace: Any, values: StateMap) -> None:
        """The namespace goes, and its values are somebody else's from now on."""
        self.restructure(values)
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

    def touching(self, keys: Sequence[Any]) -> AbstractContextManager[None]:
        """See ``KeyedStateBackend.touching``."""
        return UNTOLD

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class WatchedMap(StateMap):
    """A StateMap while it is watched.

    Operators iterate for reading only, so that is no change. But they hand what they read to the
    user's functions, and those may do with it what they like.
    """

    __slots__ = ()

    def touching(self, keys: Sequence[Any]) -> AbstractContextManager[None]:
        try:
            self.watch.touch_all(self, keys)
        except TypeError:  # a key that is none; who uses it will say so
            return UNTOLD
        return _Unwatched(self)

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        if type(value) not in ATOMIC:
            self._touch(key)
        return value

    def get(self, key: Any, default: Any = None) -> Any:
        value = _get(self, key, _MISSING)
        if value is _MISSING:
            return default
        if type(value) not in ATOMIC:
            self._touch(key)
        return value

    def _touch(self, key: Any) -> None:
        noted = self.noted
        if noted is None or self.watch.aside is not None:
            self.watch.touch(self, key)
        else:  # with a changelog, most of the time
            noted.add(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        noted = self.noted
        if noted is None or self.watch.aside is not None:
            self.watch.touch(self, key)
        else:
            noted.add(key)
        _set(self, key, value)

    def __delitem__(self, key: Any) -> None:
        self._going(key)
        super().__delitem__(key)

    def _going(self, key: Any) -> None:
        self.watch.touch(self, key)
        self.watch.restructure(self)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        self.watch.touch(self, key)
        return super().setdefault(key, default)

    def pop(self, key: Any, *default: Any) -> Any:
        self._going(key)
        return super().pop(key, *default)

    def popitem(self) -> tuple[Any, Any]:
        if self:
            self._going(next(reversed(self)))
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
        self.watch.restructure(self)
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


class _Unwatched:
    """A plain dict meanwhile: what becomes of it is noted already."""

    __slots__ = ("_values",)

    def __init__(self, values: WatchedMap) -> None:
        self._values: StateMap = values

    def __enter__(self) -> None:
        self._values.__class__ = StateMap

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._values.__class__ = WatchedMap


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
    if type(namespaces) is WatchedNamespaces:
        return
    namespaces.__class__ = WatchedNamespaces
    _set_class(namespaces.values(), WatchedMap)


def unwatch(namespaces: Namespaces) -> None:
    """They are plain dicts again."""
    namespaces.__class__ = Namespaces
    _set_class(namespaces.values(), StateMap)


def _set_class(maps: Iterable[StateMap], kind: type[StateMap]) -> None:
    for values in maps:
        values.__class__ = kind

"""Places in a job where a process kills itself or another one, once, on cue.

State lives in files of a folder, which every process of this machine sees.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Failpoint:
    """Does nothing until it is armed; then the first ``times`` to pass it strike."""

    folder: str
    times: int = 1
    delay_s: float = 0.0  # instead of killing anybody
    sends: signal.Signals = signal.SIGKILL

    def arm(self, victims: Iterable[int] = ()) -> Failpoint:
        """From now on it kills these processes, or without any the one that passes."""
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        draft = Path(self.folder, "armed.new")
        draft.write_text(" ".join(map(str, victims)))
        draft.rename(Path(self.folder, "armed"))
        return self

    @property
    def hits(self) -> int:
        """How often it has struck."""
        return sum(1 for _ in Path(self.folder).glob("hit-*"))

    @property
    def notes(self) -> list[str]:
        """What was going on each time."""
        return [hit.read_text() for hit in sorted(Path(self.folder).glob("hit-*"))]

    def hit(self, note: str = "") -> None:
        armed = Path(self.folder, "armed")
        if not armed.exists():
            return
        for number in range(self.times):
            try:
                with Path(self.folder, f"hit-{number}").open("x") as hit:
                    hit.write(note)
            except FileExistsError:
                continue
            if self.delay_s:
                time.sleep(self.delay_s)
                return
            for victim in map(int, armed.read_text().split() or [os.getpid()]):
                kill(victim, self.sends)
            return

    def hit_after(
        self, owner: type, name: str, when: Callable[..., bool] = lambda *_: True
    ) -> None:
        """From now on, in this process, each call of a method passes here.

        ``when`` of its object and arguments. For moments at which no code of a user runs.
        """
        original = getattr(owner, name)

        def method(instance: Any, *arguments: Any) -> Any:
            result = original(instance, *arguments)
            if when(instance, *arguments):
                self.hit(str(result))
            return result

        setattr(owner, name, method)


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> bool:
    """False when the process is gone already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True

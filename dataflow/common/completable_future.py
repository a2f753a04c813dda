"""CompletableFuture: PyFlink's name for the futures that a JobClient returns."""

from __future__ import annotations

from concurrent.futures import Future as CompletableFuture

__all__ = ["CompletableFuture"]

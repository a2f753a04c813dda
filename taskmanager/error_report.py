"""What people are told of an error that failed a task."""

from __future__ import annotations

import traceback

from dataflow.errors import DataflowError
from taskmanager.operators.function_operator import is_of_user_code, user_traceback

ERROR_CHARS_MAX = 8_000


def shorten(text: str) -> str:
    """At most ERROR_CHARS_MAX characters: where it happened and, at the end, what happened."""
    if len(text) <= ERROR_CHARS_MAX:
        return text
    half = ERROR_CHARS_MAX // 2 - 20
    return f"{text[:half]}\n  ... {len(text) - 2 * half} characters ...\n{text[-half:]}"


def describe_error(error: BaseException) -> str:
    """What a user needs to see: their own traceback for their errors, ours only for ours."""
    if isinstance(error, DataflowError):  # raised on purpose: the message says it all
        return str(error)
    if is_of_user_code(error):  # called by a source, a partitioner, a watermark generator, ...
        return f"failed\n{user_traceback(error)}"
    return "".join(traceback.format_exception(error)).rstrip()

"""Bulk work: a folder, a list, Parquet files or tar files of photos become a Parquet table of faces and embeddings.

``facenet bulk SOURCE OUT`` is its command. It stands on the server's serving code (``--engine local``, ``ray``) or on
the SDK (``--engine server``); nothing imports it. ``shard`` is the work, ``engines`` are those who do it, ``run`` says
what is left to do.
"""

from typing import Any

from facenet_bulk.errors import BulkError, OtherRun

__all__ = ["BulkError", "OtherRun", "schema", "vectors"]


def __getattr__(name: str) -> Any:
    """``schema`` and ``vectors``, which need pyarrow: ``facenet --help`` does without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from facenet_bulk import table

    return getattr(table, name)

"""Bulk work: a folder, a list, Parquet files or tar files of photos become a Parquet table of faces and embeddings.

``facenet bulk SOURCE OUT`` is its command. It stands on the server's serving code (``--engine local``, ``ray``) or on
the SDK (``--engine server``); nothing imports it. ``shard`` is the work, ``engines`` are those who do it, ``run`` says
what is left to do.
"""

from facenet_bulk.errors import BulkError, OtherRun
from facenet_bulk.table import schema, vectors

__all__ = ["BulkError", "OtherRun", "schema", "vectors"]

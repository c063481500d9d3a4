"""What goes wrong inside, told to callers by nothing but a number."""

import logging
import uuid

_log = logging.getLogger(__name__)


def log_error(what: str, error: BaseException | None = None) -> str:
    """Log an exception, that which is being handled where none is given, under an id that may be told to callers, who
    see nothing else of it."""
    error_id = uuid.uuid4().hex[:12]
    _log.error("%s, error id %s", what, error_id, exc_info=error or True)
    return error_id

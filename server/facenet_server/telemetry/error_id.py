"""What goes wrong inside, told to callers by nothing but a number."""

import logging
import uuid

_log = logging.getLogger(__name__)


def log_error(what: str) -> str:
    """Log the exception being handled under an id that may be told to callers, who see nothing else of it."""
    error_id = uuid.uuid4().hex[:12]
    _log.exception("%s, error id %s", what, error_id)
    return error_id

"""What can go wrong with a bulk run as a whole; what is wrong with an image is a row of its own."""


class BulkError(Exception):
    """The run cannot begin, or cannot go on; the message says why and what to do."""


class OtherRun(BulkError):
    """OUT belongs to a run with another source, other options or another model."""

"""What keeps the benchmark from measuring."""


class BenchmarkError(Exception):
    """Something that must be there is not; the message says what."""

"""What came of a load: counts, rates, percentiles. Pure."""

import random
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isnan
from typing import Any, Self

import numpy as np

from facenet_client.stats import ServerStats, StageStats

_MAX_SAMPLES = 1 << 20


class Reservoir:
    """Numbers, bounded: all of them up to a million, then a fair sample of as many."""

    def __init__(self) -> None:
        self.values = array("d")
        self._seen = 0
        self._random = random.Random(0)

    def add(self, value: float) -> None:
        """Count one more."""
        self._seen += 1
        if self._seen <= _MAX_SAMPLES:
            self.values.append(value)
        elif (place := self._random.randrange(self._seen)) < _MAX_SAMPLES:
            self.values[place] = value


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles over messages, seconds; NaN without any."""

    p50_s: float
    p95_s: float
    p99_s: float
    max_s: float
    mean_s: float

    @classmethod
    def of(cls, values_s: Sequence[float]) -> Self:
        """The percentiles of these."""
        if not values_s:
            return cls(*[float("nan")] * 5)
        p50_s, p95_s, p99_s, max_s = (float(value) for value in np.percentile(values_s, (50, 95, 99, 100)))
        return cls(p50_s, p95_s, p99_s, max_s, float(np.mean(values_s)))


@dataclass(frozen=True, slots=True)
class Report:
    """A load from its first message to its last answer.

    ``items`` of ``messages`` were answered, without those in ``errors`` (by reason). ``failures`` are messages without
    an answer, by the name of the error; ``first_failure`` says more. ``latency`` is from sending, in an open loop from
    the time at which the message was due; ``late`` is how much of that it waited for a free caller. ``client_cpu_s``
    is what this process used. ``server`` is the servers' work meanwhile; None where they do not tell.
    """

    elapsed_s: float
    messages: int
    items: int
    errors: dict[str, int]
    failures: dict[str, int]
    first_failure: str
    latency: Latency
    late: Latency
    client_cpu_s: float
    server: ServerStats | None

    @property
    def items_per_s(self) -> float:
        """Answered items, without those in error."""
        return self.items / self.elapsed_s

    @property
    def messages_per_s(self) -> float:
        """Answered messages."""
        return self.messages / self.elapsed_s

    @property
    def is_clean(self) -> bool:
        """Whether all that was sent was answered without an error."""
        return not self.errors and not self.failures

    def record(self) -> dict[str, Any]:
        """Everything, for JSON: what is NaN here is None there."""
        record = asdict(self) | {"items_per_s": self.items_per_s, "messages_per_s": self.messages_per_s}
        if self.server is not None:
            record["server"]["stages"] = [_stage_record(stage) for stage in self.server.stages]
        without_nan: dict[str, Any] = _without_nan(record)
        return without_nan


class Tally:
    """The counts behind a report, while its load runs."""

    def __init__(self) -> None:
        self.messages = 0
        self.items = 0
        self.errors: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.first_failure = ""
        self.latency_s, self.late_s = Reservoir(), Reservoir()

    def answered(self, results: Sequence[Any], latency_s: float) -> None:
        """Count a message's results."""
        self.messages += 1
        self.latency_s.add(latency_s)
        reasons = [result.error.reason for result in results if result.HasField("error")]
        self.errors.update(reasons)
        self.items += len(results) - len(reasons)

    def failed(self, error: Exception, messages: int) -> None:
        """Count messages that will have no answer."""
        self.failures[type(error).__name__] += messages
        self.first_failure = self.first_failure or str(error)

    def report(self, elapsed_s: float, client_cpu_s: float, server: ServerStats | None) -> Report:
        """The counts as they are now."""
        return Report(
            elapsed_s=elapsed_s,
            messages=self.messages,
            items=self.items,
            errors=dict(self.errors),
            failures=dict(self.failures),
            first_failure=self.first_failure,
            latency=Latency.of(self.latency_s.values),
            late=Latency.of(self.late_s.values),
            client_cpu_s=client_cpu_s,
            server=server,
        )


def _stage_record(stage: StageStats) -> dict[str, Any]:
    means = {name: getattr(stage, name) for name in ("mean_rows", "mean_queue_s", "mean_compute_s")}
    return asdict(stage) | means


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and isnan(value) else value

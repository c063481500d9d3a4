"""What a run of the benchmark is to do."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.racing import Pace


@dataclass(frozen=True, slots=True)
class Plan:
    """The models' folder, the device of our networks, how long to measure, where plots go, and who is told how far
    it is."""

    models: Path
    device: str
    pace: Pace
    out: Path
    say: Callable[[str], None]

    @property
    def on_cpu(self) -> bool:
        """The peers are measured on the CPU only."""
        return self.device == "cpu"

"""Clocks that tests turn by hand."""

import asyncio


class Clock:
    """Seconds, as a server's parts take them."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """The time now."""
        return self.now_s


class TurnedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time stands still until ``turn`` moves it."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()

    def time(self) -> float:
        """The turned time."""
        return self.clock.now_s

    def settle(self) -> None:
        """Run what is ready, and what follows from it at once."""
        for _ in range(12):
            self.call_soon(self.stop)
            self.run_forever()

    def turn(self, seconds: float) -> None:
        """Let time pass, in small steps, so that timers come one after the other."""
        for _ in range(4):
            self.clock.now_s += seconds / 4
            self.settle()

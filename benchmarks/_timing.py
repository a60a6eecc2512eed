"""Time variants against one another: in turns in one process, so that the machine's moods cancel.

Absolute times on a shared machine are noise; the ratio of two variants that took turns is not.
"""

import platform
import statistics
from collections.abc import Callable
from pathlib import Path

from mnlib.cost import time_in_turns


def processor() -> str:
    """Return the processor's name: which of two ways is faster may depend on its maker."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class Times(dict):
    """Median seconds of each variant by name; ``rounds`` holds the seconds of every round."""

    def __init__(self, rounds: dict[str, list[float]]):
        super().__init__({name: statistics.median(s) for name, s in rounds.items()})
        self.rounds = rounds


def compare(variants: dict[str, Callable[[], object]], repeats: int = 7) -> Times:
    """Run ``repeats`` rounds of each variant in turn, after one to warm up."""
    return Times(time_in_turns(variants, repeats))


def report(times: Times, reference: str | None = None, title: str = "") -> None:
    """Print medians, and the ratio of each variant to ``reference`` (by default the first).

    The ratio is taken round by round: its median, and in brackets its smallest and largest.
    """
    reference = reference or next(iter(times))
    width = max(map(len, times))
    if title:
        print(title)
    print(f"{'':{width}}  {'median':>10}  time / {reference}")
    for name, median in times.items():
        pairs = zip(times.rounds[name], times.rounds[reference], strict=True)
        ratios = sorted(ours / theirs for ours, theirs in pairs)
        spread = f"{statistics.median(ratios):8.3g}  [{ratios[0]:.3g}, {ratios[-1]:.3g}]"
        print(f"{name:{width}}  {1e3 * median:7.4g} ms  {spread}")
    print()

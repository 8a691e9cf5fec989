"""How much of the benchmark to run, and where."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """What all parts share.

    Args:
        scratch: A temporary folder.
        peers: The Python that has PyTorch and JAX.
        rounds: How often short contenders run.
        quick: Whether this is only to see that all runs: few epochs, few images, no figure means
            anything.
    """

    scratch: Path
    peers: Path
    rounds: int
    quick: bool

    @property
    def fit_rounds(self) -> int:
        """How often long contenders run."""
        return min(self.rounds, 3)

    @property
    def epochs(self) -> int:
        """The tutorial's number of epochs."""
        return 2 if self.quick else 10

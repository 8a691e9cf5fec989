"""Settings of the benchmark."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Settings that all parts share.

    Attributes:
        scratch: A temporary folder.
        peers: The Python executable with PyTorch and JAX.
        rounds: Number of rounds of most parts.
        quick: Whether to only check that everything runs, with few epochs and images.
    """

    scratch: Path
    peers: Path
    rounds: int
    quick: bool

    @property
    def long_rounds(self) -> int:
        """Number of rounds of parts in which a round takes minutes."""
        return min(self.rounds, 5)

    @property
    def epochs(self) -> int:
        """Number of epochs of the tutorial."""
        return 2 if self.quick else 10

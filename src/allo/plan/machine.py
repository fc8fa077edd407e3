"""The GPUs that a plan is for, and their assumed speed."""

from dataclasses import dataclass

from allo.errors import UserError


@dataclass(frozen=True)
class Machine:
    """GPUs on `nodes` of equal size. `flops` a second are what a GPU reaches; bytes a second are what it sends."""

    gpus: int
    nodes: int = 1
    flops: float = 4e14
    link: float = 300e9
    network: float = 50e9

    def __post_init__(self) -> None:
        if self.gpus % self.nodes:
            raise UserError(
                f"--gpus {self.gpus} --nodes {self.nodes}: --gpus counts the GPUs of all nodes, so it must be a multiple of "
                "the nodes."
            )

    @property
    def bandwidth(self) -> float:
        """Return the bytes a second of the slowest connection in a ring through all GPUs."""
        return self.link if self.nodes == 1 else self.network

"""Units of selection: single weights, or rows, columns or blocks of a matrix."""

import re
from dataclasses import dataclass

from allo.errors import UserError

WEIGHT = "weight"
PATTERN = r"weight|row|column|block\((?:[2-9]|[1-9]\d+)\)"


@dataclass(frozen=True)
class Granularity:
    """A unit of selection: `kind` is "weight", "row", "column" or "block"; `side` is the block's."""

    kind: str
    side: int = 1

    @classmethod
    def parse(cls, text: str) -> "Granularity":
        """Parse `weight`, `row`, `column` or `block(n)` with n of at least 2. Raises `UserError` for anything else."""
        if not re.fullmatch(PATTERN, text, re.ASCII):
            raise UserError(
                f"granularity {text!r} is none of weight, row, column and block(n), where n is 2 or more: "
                "block(32) selects tiles of 32 x 32 weights"
            )
        kind, _, side = text.rstrip(")").partition("(")
        return cls(kind, int(side or 1))

    def tile(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of a group in a matrix; groups at its edges may be smaller."""
        whole = {"row": (1, width), "column": (height, 1)}
        return whole.get(self.kind, (self.side, self.side))


def granularity_name(text: str) -> str:
    """Return `text` unchanged; raise `ValueError`, for pydantic, if `Granularity.parse` refuses it."""
    try:
        Granularity.parse(text)
    except UserError as error:
        raise ValueError(str(error)) from error
    return text

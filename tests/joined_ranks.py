"""Run in each of several processes: shared work that succeeds, fails in one way or another, and goes on after it."""

import sys
from typing import Any

from allo.errors import DivergedError, UserError
from allo.ranks import alone, barrier, dealt, from_first, group, num_ranks, rank
from allo.ranks.joining import joined

FAILS = ("nobody", "all", "last", "first decides", "nobody", "first", "nobody")


def work(kind: str, seen: list[Any]) -> list[int]:
    """Fail as `kind` says; otherwise return the numbers that were dealt to this rank."""
    if kind == "all":
        raise DivergedError(f"{kind} fail")
    if (kind == "first" and rank() == 0) or (kind == "last" and rank() == num_ranks() - 1):
        raise UserError(f"{kind} fails")
    seen.append(from_first(lambda: refuse(kind) or {"rank": rank(), "place": None}))
    if kind == "nobody":
        with alone():
            seen.append(num_ranks())
        barrier()
    return list(dealt(5))


def refuse(kind: str) -> None:
    if kind == "first decides":
        raise UserError("rank 0 refuses: é\n{}")


def main() -> None:
    group.GRACE = 2.0
    with joined() as joint:
        assert joint is not None
        seen: list[Any] = []
        if joint.rank:
            sys.exit(joint.follow(lambda kind: work(kind, seen)))
        assert num_ranks() == 1, "outside of shared work, rank 0 is alone"
        for kind in FAILS:
            seen.clear()
            try:
                own = joint.share(kind, lambda kind=kind: work(kind, seen))
                print(kind, "->", set(own) <= set(range(5)), seen, flush=True)
            except UserError as error:
                print(kind, "->", type(error).__name__, str(error), flush=True)
        sys.exit(3)


if __name__ == "__main__":
    main()

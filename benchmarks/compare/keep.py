"""Every finished trial of a comparison in one small file, so that its tables and tests need no new training.

    python -m benchmarks.compare.keep FOLDER                # -> benchmarks/results/trials/FOLDER.jsonl.xz
    python -m benchmarks.compare.keep FOLDER.jsonl.xz --unpack FOLDER

`record.py` takes such a file in place of a folder. Unpacked, `allo compare` goes on from it.
"""

import argparse
import json
import lzma
import sys
from pathlib import Path

from allo.files.artifacts import write_atomic

TRIALS = Path(__file__).resolve().parents[1] / "results" / "trials"
SUFFIX = ".jsonl.xz"


def pack(folder: Path, kept: Path) -> int:
    """Write the trials of a comparison's folder, a line each: their path and their text. Return their number."""
    paths = sorted((folder / "trials").glob("*/*.json"))
    lines = [
        json.dumps([path.relative_to(folder).as_posix(), path.read_text(encoding="utf-8")]) for path in paths
    ]
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(kept, lzma.compress("\n".join(lines).encode(), preset=9))
    return len(paths)


def unpack(kept: Path, folder: Path) -> None:
    """Write the trials back below `folder`."""
    for line in lzma.decompress(kept.read_bytes()).decode().splitlines():
        name, text = json.loads(line)
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{kept}: {name} lies outside of the folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("source", type=Path, metavar="FOLDER", help="of a comparison; with --unpack a file")
    parser.add_argument("--unpack", type=Path, metavar="FOLDER")
    parser.add_argument("--output", type=Path, help="other than benchmarks/results/trials/FOLDER.jsonl.xz")
    options = parser.parse_args(arguments)
    if options.unpack is not None:
        unpack(options.source, options.unpack)
        return 0
    kept = options.output or TRIALS / f"{options.source.name}{SUFFIX}"
    number = pack(options.source, kept)
    print(f"kept: {kept.name}, {number} trials, {kept.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())

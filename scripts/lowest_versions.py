"""Write constraints-lowest.txt: the lowest version of each dependency that pyproject.toml allows.

python scripts/lowest_versions.py            # write the file
python scripts/lowest_versions.py --check    # exit with 1 if the file is out of date
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "constraints-lowest.txt"
HEAD = """# The lowest versions that pyproject.toml allows, for `make lowest`; written by scripts/lowest_versions.py.
# torch stays at the version of constraints.txt: its older builds on PyPI bring gigabytes of CUDA.
"""


def lowest(extra: str = "dev") -> Iterator[str]:
    """Yield the constraint of each dependency that names a version, those of `extra` included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    (inner,) = (found[1] for each in extras[extra] if (found := re.fullmatch(r"allo-align\[(.*)\]", each)))
    required = sum((extras[name] for name in inner.split(",")), project["dependencies"] + extras[extra])
    torch = re.search(r"^torch==.*$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert torch is not None
    for requirement in sorted(required, key=str.lower):
        if found := re.fullmatch(r"([\w-]+)(?:\[[\w,-]+\])?[>=]=([\w.*]+)", requirement):
            yield f"{torch[0] if found[1] == 'torch' else f'{found[1]}=={found[2]}'}\n"


def main() -> int:
    content = HEAD + "".join(lowest())
    if "--check" not in sys.argv[1:]:
        FILE.write_text(content, encoding="utf-8")
        return 0
    if FILE.is_file() and FILE.read_text(encoding="utf-8") == content:
        return 0
    print(f"{FILE.name} is out of date: run python scripts/lowest_versions.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

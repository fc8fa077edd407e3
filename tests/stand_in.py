"""A stand-in for `vllm serve`, run as a script: the tests' model server on a port. Its other arguments say how it fails.

`never`: it ends before it answers. A line with its process number goes into the file that the last argument names.
"""

import os
import sys
import time
from pathlib import Path

from model_server import ModelHandler, ModelServer
from server import serving


def main() -> None:
    _, name, port, how, file = sys.argv[1:]  # the model's folder first
    if how == "never":
        sys.exit("no such GPU")
    with Path(file).open("a") as pids:
        pids.write(f"{os.getpid()}\n")
    made = ModelServer(lambda content: content, model=name)
    with serving(made.answer, chat=made, kind=ModelHandler, port=int(port)):
        time.sleep(120)


if __name__ == "__main__":
    main()

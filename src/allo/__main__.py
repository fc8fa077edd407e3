"""`python -m allo` is the `allo` command."""

from allo.cli import main

if __name__ == "__main__":
    main()

"""``python -m ppinfer.cli``: the same as the command ``ppinfer``."""

from ppinfer.cli import main

if __name__ == "__main__":
    main()

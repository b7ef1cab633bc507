"""``python -m worker`` is ``lastcall``."""

from worker.cli import main

if __name__ == "__main__":
    main(prog_name="lastcall")

"""`python -m worker.cli`: the same as `deepsdf`."""

from worker.cli import main

if __name__ == "__main__":
    main()

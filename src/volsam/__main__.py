"""`python -m volsam`, where the command itself is not on the path."""

from volsam.cli import main

if __name__ == "__main__":
    main()

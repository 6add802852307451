"""The entry point: runs the command line and turns errors into exit codes."""

from plait.cli import main

if __name__ == "__main__":
    main()

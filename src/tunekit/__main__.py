"""`python -m tunekit` is the same program as `tunekit`."""

from tunekit.cli.app import main

if __name__ == "__main__":
    main()

"""``python -m ddlflow``: the command line where no ``ddlflow`` script is on the path."""

from ddlflow.cli.app import main

if __name__ == "__main__":
    main()

"""``python -m ddlflow``: the command line where no ``ddlflow`` script is on the path."""

from ddlflow.cli.app import command

if __name__ == "__main__":
    command()

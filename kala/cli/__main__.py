"""`python -m kala.cli` is `kala`."""

from kala.cli import app

if __name__ == "__main__":
    app()

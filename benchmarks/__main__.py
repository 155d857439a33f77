"""``python -m benchmarks``: one command that measures, prints, stores and draws."""

from benchmarks.app import app
from benchmarks.errors import one_line_errors

if __name__ == "__main__":
    with one_line_errors():
        app()

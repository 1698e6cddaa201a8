"""The `brokerkit` program."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the program. Without the packages it needs, says which extra brings them."""
    try:
        import filelock  # noqa: F401
        import platformdirs  # noqa: F401
        import psutil  # noqa: F401
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError as error:
        print(
            f"brokerkit: the command needs {error.name}, which is not installed. "
            "Install it with: pip install 'brokerkit-mq[local]'",
            file=sys.stderr,
        )
        raise SystemExit(3) from None
    from brokerkit.cli.app import app

    app()


if __name__ == "__main__":
    main()

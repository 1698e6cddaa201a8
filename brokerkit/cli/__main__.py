"""`python -m brokerkit.cli`: the program, by the interpreter that runs this."""

from brokerkit.cli import main

main()

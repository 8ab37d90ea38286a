"""``python -m dvisor``: the command line where the script is not on PATH."""

from dvisor.cli import main

main()

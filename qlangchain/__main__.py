"""`python -m qlangchain` is the command `qlangchain`."""

from qlangchain.cli import main

main()

"""``python -m pdssm_compiler``: the command line."""

from pdssm_compiler.cli import main

main()

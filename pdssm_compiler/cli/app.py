"""The application and its commands."""

import typer

from pdssm_compiler.cli.cache import app as cache
from pdssm_compiler.cli.compile import compile_command
from pdssm_compiler.cli.doctor import doctor
from pdssm_compiler.cli.log import app as log
from pdssm_compiler.cli.lower import lower
from pdssm_compiler.cli.run import run
from pdssm_compiler.cli.targets import describe, targets
from pdssm_compiler.cli.tune import tune
from pdssm_compiler.cli.verify import verify

app = typer.Typer(
    name="pdssm-compiler",
    help="Kernels for PD-SSM scans: look inside, compile, verify, tune, run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("doctor")(doctor)
app.command("targets")(targets)
app.command("describe")(describe)
app.command("lower")(lower)
app.command("compile")(compile_command)
app.command("verify")(verify)
app.command("tune")(tune)
app.command("run")(run)
app.add_typer(cache, name="cache")
app.add_typer(log, name="log")

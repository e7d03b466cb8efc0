"""The commands, put together; each group has a module of its own."""

from importlib.metadata import version
from typing import Annotated

import typer

from ringfence.proxy.cli import audit, bench, check, engine, policy, serve, train

app = typer.Typer(
    name="ringfence",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"ringfence {version('ringfence')}")
        raise typer.Exit


@app.callback()
def ringfence(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A safety layer for language models that you run yourself."""


app.command("serve")(serve.serve)
app.command("check")(check.check)
app.add_typer(policy.app, name="policy")
app.add_typer(audit.app, name="audit")
app.add_typer(engine.app, name="engine")
app.add_typer(train.app, name="train")
app.add_typer(bench.app, name="bench")

"""Entry point: finds the verb, imports only its file, and turns errors into one line and an exit code."""

from __future__ import annotations

import importlib
import io
import os
import sys

import click

from zoo import __version__
from zoo.cli.options import printable
from zoo.errors import UsageError, ZooError
from zoo.settings import Settings

VERBS = {
    "run": "Answer a prompt, or chat.",
    "serve": "Answer OpenAI clients over HTTP.",
    "pull": "Fetch a model by name.",
    "models": "List the models that were pulled.",
    "plugins": "List the installed plugins.",
    "inspect": "Say what a model is and whether it fits.",
    "doctor": "Say what this machine offers and what is in use.",
    "bench": "Measure prefill and decode speed.",
}


class _Verbs(click.Group):
    """Commands by name; the file of one is imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = getattr(importlib.import_module(f"zoo.cli.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="zoo")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Run local language models from safetensors and GGUF; every architecture is a pip package."""


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 usage, 1 an error of zoo, 130 interrupted."""
    args = list(sys.argv[1:] if args is None else args)
    # --debug is welcome anywhere among the options; behind `--` stands text.
    options = args[: args.index("--")] if "--" in args else args
    debug = "--debug" in options
    args = [*(arg for arg in options if arg != "--debug"), *args[len(options) :]]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a narrow locale must not end an answer
    sys.exit(_run(args, debug))


def _run(args: list[str], debug: bool) -> int:
    try:
        debug = debug or Settings.from_env().debug
        with cli.make_context("zoo", args) as context:
            cli.invoke(context)
        sys.stdout.flush()
        return 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo(err=True)
        return 130
    except BrokenPipeError:
        # The reader of our output is gone: nothing is wrong, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ZooError, OSError) as error:
        if debug:
            raise
        click.echo(f"zoo: {printable(str(error))}", err=True)
        return 2 if isinstance(error, UsageError) else 1


if __name__ == "__main__":
    main()

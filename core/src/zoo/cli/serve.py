"""`zoo serve`: one model behind an OpenAI-compatible API."""

from __future__ import annotations

import ipaddress
import logging
import sys
from typing import Any

import click

from zoo.cli.options import load, load_options
from zoo.cli.run import demo_model
from zoo.errors import UsageError
from zoo.settings import Settings


@click.command("serve")
@load_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=7833, show_default=True, help="0: any free port.")
@click.option("--api-key", metavar="KEY", help="Ask clients for this key.  [default: ZOO_API_KEY, else none]")
@click.option("--served-model-name", metavar="NAME", help="Id of the model in answers.  [default: its file's name]")
@click.option("--strict-model", is_flag=True, help="Refuse requests for a model of another name.")
@click.option("--cors", multiple=True, metavar="ORIGIN", help="Let pages of this origin ask; * for all.")
@click.option("--allowed-host", multiple=True, metavar="NAME", help="Further name in the Host header; * for all.")
@click.option("--max-queue", type=click.IntRange(0), default=256, show_default=True, help="Sequences that may wait.")
@click.option("--max-requests", type=click.IntRange(1), default=256, show_default=True, help="Requests at one time.")
@click.option("--max-body", type=click.IntRange(1), default=8, show_default=True, help="MiB of a request's body.")
@click.option("--request-timeout", type=click.FloatRange(0.1), default=600, show_default=True, help="Seconds.")
@click.option("--grace", type=click.FloatRange(0), default=10, show_default=True, help="Seconds to end on SIGTERM.")
def serve(model_path: str | None, host: str, port: int, api_key: str | None, **options: Any) -> None:
    """Serve a model to OpenAI clients: /v1/chat/completions, /v1/completions, /v1/models; a page at /; docs at /docs.

    Only this machine can connect unless --host says otherwise.
    """
    from zoo.server.app import ServerOptions, Service
    from zoo.server.guard import Access, Limits
    from zoo.server.run import bind
    from zoo.server.run import serve as run

    names = {name: options.pop(name) for name in ("served_model_name", "strict_model", "cors", "allowed_host")}
    limits = {name: options.pop(name) for name in ("max_queue", "max_requests", "max_body", "request_timeout")}
    grace = options.pop("grace")
    api_key = api_key or Settings.from_env().api_key
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
        raise UsageError("the API key has characters that a header cannot carry", remedy="use printable ASCII")
    model = model_path or demo_model()
    service = Service(
        lambda: load(model, options),
        model,
        ServerOptions(
            served_name=names["served_model_name"],
            strict_model=names["strict_model"],
            max_queue=limits["max_queue"],
            access=Access(api_key, names["allowed_host"], "*" in names["allowed_host"], names["cors"]),
            limits=Limits(
                body_bytes=limits["max_body"] << 20,
                request_s=limits["request_timeout"],
                requests=limits["max_requests"],
            ),
        ),
    )
    listening = bind(host, port)
    _log_to_stderr()
    if api_key is None and not _loopback(host):
        click.echo("zoo: anybody who reaches this address can use the model; --api-key asks for a key", err=True)
    name, bound = listening.getsockname()[:2]
    address = f"http://{f'[{name}]' if ':' in name else name}:{bound}"

    def ready() -> None:
        for note in service.worker.llm.notes:
            click.echo(f"zoo: {note}", err=True)
        click.echo(f"zoo: {service.model_id} is ready at {address}/v1, a page at {address}", err=True)

    click.echo(f"zoo: listening at {address}, loading {model}", err=True)
    run(service, listening, grace=grace, ready=ready)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _log_to_stderr() -> None:
    logger = logging.getLogger("zoo.server")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False

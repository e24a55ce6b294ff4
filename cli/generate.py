"""`fedglm generate`: continue a text with a language model."""

import json
import sys
from typing import Annotated

import typer

from fedglm.cli import options
from fedglm.cli.models import Keys, ModelPath, open_model_for
from fedglm.inference.errors import InferenceError

_MAX_CHARACTERS = 2**24  # of standard input: more than any model reads


def generate(
    model: ModelPath,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Text to continue; - reads standard input.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to add.")] = 50,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 takes the likeliest token; above, tokens are drawn (1: as the model says).")
    ] = 0.0,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the fewest tokens that together have this probability.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw from so many likeliest tokens.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed draws the same tokens.")] = None,
    key: Keys = None,
    as_json: options.Json = False,
) -> None:
    """Continue a text; what is added is printed as it comes.

    [bold]fedglm generate runs/text-20270101-120000 "The assert statement"[/bold]
    [bold]fedglm generate MODEL - --temperature 0.8 --seed 7 < prompt.txt[/bold]
    """
    prompt = _read_prompt(text)
    used = open_model_for("generate", model, key)
    pieces = used.stream(prompt, max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    while True:
        try:
            piece = next(pieces)
        except StopIteration as done:
            answer = done.value
            break
        if not as_json:
            typer.echo(piece, nl=False)
    if as_json:
        typer.echo(json.dumps({"text": answer.text, "tokens": list(answer.tokens), "stop": answer.stop}))
        return
    typer.echo()
    if answer.stop == "max-length":
        typer.echo(f"stopped: the model takes {used.info()['max_length']} tokens, the text included", err=True)


def _read_prompt(text: str) -> str:
    if text != "-":
        return text
    try:
        prompt = sys.stdin.read(_MAX_CHARACTERS + 1)
    except UnicodeDecodeError as exc:
        raise InferenceError(f"standard input is not UTF-8 (byte {exc.start + 1}); save it so") from exc
    if len(prompt) > _MAX_CHARACTERS:
        raise InferenceError(f"standard input is longer than {_MAX_CHARACTERS} characters, which no model reads")
    return prompt.removesuffix("\n")

"""`hetrun tokenize`: text to tokens."""

from __future__ import annotations

import json

import click

from hetrun.cli import options


@click.command(
    "tokenize",
    short_help="Show the tokens of a text.",
    epilog=options.example(
        'hetrun tokenize --model smollm2-135m --text "Hello world"',
        "hetrun tokenize --model vocab.gguf --json < text.txt",
    ),
)
@options.model
@click.option(
    "--text", "--prompt", "-p", "text", default="-", metavar="TEXT|-",
    help="The text; - (the default) reads stdin, less a final line break.",
)  # fmt: skip
@click.option("--no-special", is_flag=True, help="Leave out BOS and EOS that the model puts around a text.")
@click.option(
    "--special", "--parse-special", "parse_special", is_flag=True,
    help='Read "<|im_start|>" and the like in the text as the tokens they name.',
)  # fmt: skip
@options.common
def command(model: str, text: str, no_special: bool, parse_special: bool) -> None:
    """Prints each token of a text: its id and what it stands for. Files that hold only a vocabulary will do."""
    from hetrun.cli.loading import show_log
    from hetrun.model.catalog import resolve_model
    from hetrun.model.gguf_file import ModelFile
    from hetrun.model.tokenizer import Tokenizer

    show_log()
    with ModelFile.open(resolve_model(model)) as file:
        tokenizer = Tokenizer.from_metadata(file.metadata)
        wanted = options.text_or_stdin(text, "--text")
        ids = tokenizer.encode(wanted, add_special=not no_special, parse_special=parse_special)
        tokens = [tokenizer.token_text(i) for i in ids]
    if options.flags().json:
        print(json.dumps({"ids": ids, "tokens": tokens}))
        return
    for token_id, token in zip(ids, tokens, strict=True):
        print(f"{token_id:>7}  {token!r}")

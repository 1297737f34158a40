"""`logitcask cask convert`: caches of other tools into casks."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from logitcask_schemas.cli.output import JsonOption, byte_progress, number, print_json, print_table
from logitcask_schemas.cli.tokenizers import load_tokenizer
from logitcask_schemas.cli.transfer import ARRANGE

if TYPE_CHECKING:
    from logitcask_schemas.cask.exchange.top_k_rows import TopKSource
_TOOLS = ("distillkit", "megatron")


def register(app: typer.Typer) -> None:
    """Add the command to `logitcask cask`."""
    app.command("convert", rich_help_panel=ARRANGE)(convert_command)


def convert_command(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The other tool's folder.", show_default=False)],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="New folder, or an unfinished conversion.", show_default=False)
    ],
    tool: Annotated[str, typer.Option("--from", help="Who wrote it: distillkit or megatron.", show_default=False)],
    tokenizer: Annotated[Path, typer.Option(help="Folder of the teacher's tokenizer.", show_default=False)],
    model: Annotated[str, typer.Option(help="Name of the teacher; the cache does not say.", show_default=False)],
    tokens: Annotated[
        Path | None,
        typer.Option(help="megatron: .npy of token ids, one row of sequence + 1 for each sample.", show_default=False),
    ] = None,
    compression_config: Annotated[
        Path | None, typer.Option(help="distillkit: the YAML that says how rows are compressed; by default in SRC.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="The teacher's revision.", show_default=False)] = None,
    dtype: Annotated[str, typer.Option(help="What the teacher computed in.")] = "unknown",
    vocab_size: Annotated[
        int | None, typer.Option(help="Width of the teacher's logits; by default the tokenizer's.", min=1, max=1 << 24)
    ] = None,
    k: Annotated[int | None, typer.Option(help="Keep the K largest entries; by default all.", min=1)] = None,
    codec: Annotated[str, typer.Option(help="Storage of log-probabilities: f16, f32 or u8.")] = "f16",
    excess_mass: Annotated[
        float, typer.Option(help="How far the probabilities of a position may exceed 1, by rounding.", min=0, max=0.5)
    ] = 0.01,
    as_json: JsonOption = False,
) -> None:
    """Make a cask of DistillKit's or Megatron-LM's cache of top-k log-probabilities; run again, it goes on.

    What such a cache does not hold is left open and told at the end; losses that would need it refuse the cask.
    """
    from logitcask_schemas.cask.exchange.conversion import LOST, NamedTeacher, convert, imported_spec
    from logitcask_schemas.cask.storage.object_store import is_url
    from logitcask_schemas.errors import OptionError
    from logitcask_schemas.record.identity import tokenizer_fingerprint

    if is_url(destination):
        raise OptionError(f"{destination}: name a local folder, then `logitcask cask export` it to the object store")
    if is_url(source):
        raise OptionError(f"expected a local folder of {tool}'s files, got {source}; download it first")
    loaded = load_tokenizer(tokenizer, command="logitcask cask convert")
    tokenizer_size = max(loaded.get_vocab().values()) + 1
    teacher = NamedTeacher(
        model=model,
        revision=revision,
        dtype=dtype,
        vocab_size=vocab_size or tokenizer_size,
        tokenizer_size=tokenizer_size,
        tokenizer_fingerprint=tokenizer_fingerprint(loaded),
    )
    cache = _source(tool, Path(source), tokens, compression_config, loaded)
    spec = imported_spec(cache, k=k, codec=codec)
    with byte_progress() as progress:
        task = progress.add_task(f"from {tool}", total=cache.num_bytes)
        report = convert(
            cache,
            Path(destination),
            teacher=teacher,
            spec=spec,
            excess_mass=excess_mass,
            progress=lambda size: progress.advance(task, size),
        )
    alignment = report.alignment
    positions = max(alignment.positions, 1)
    figures: dict[str, Any] = {
        "source": source,
        "destination": destination,
        "from": tool,
        "k": spec.k,
        "shards": report.shards,
        "documents": report.documents,
        "present": report.present,
        "differing": report.differing,
        "positions": alignment.positions,
        **{f"skipped_{reason}": count for reason, count in report.skipped.items()},
        "next_token_in_head": alignment.in_head / positions,
        "next_token_most_probable": alignment.agreeing / positions,
        "mean_tail_mass": report.tail_mass / positions,
    }
    notes = report.notes()
    if as_json:
        return print_json({**figures, "notes": notes, "lost": list(LOST)})
    print_table(("figure", "value"), [[name, number(value)] for name, value in figures.items()])
    for note in notes:
        print(f"Look at this: {note}", file=sys.stderr)
    print("What the cache does not hold, this cask does not either:")
    for sentence in LOST:
        print(f"- {sentence}")
    return None


def _source(tool: str, place: Path, tokens: Path | None, config: Path | None, tokenizer: Any) -> "TopKSource":
    """The cache of a tool. Raises typer.BadParameter for options that do not go with it."""
    if tool == "distillkit":
        from logitcask_schemas.cask.exchange.distillkit import DistillKitSource

        if tokens is not None:
            raise typer.BadParameter("DistillKit's rows hold their tokens; leave it out", param_hint="--tokens")
        padding, end = tokenizer.pad_token_id, tokenizer.eos_token_id
        return DistillKitSource(place, config=config, pad_id=None if padding == end else padding)
    if tool == "megatron":
        from logitcask_schemas.cask.exchange.megatron import MegatronSource

        if config is not None:
            raise typer.BadParameter("only DistillKit has one; leave it out", param_hint="--compression-config")
        if tokens is None:
            raise typer.BadParameter(
                "Megatron-LM's archives hold no tokens; name a .npy with those of all samples, in the run's order",
                param_hint="--tokens",
            )
        return MegatronSource(place, tokens=tokens)
    raise typer.BadParameter(f"{tool!r} is none of {' and '.join(_TOOLS)}", param_hint="--from")

"""Showing why an answer looks as it does: a table per token."""

from collections.abc import Iterable, Sequence

from tokenwire.cli.output import Output
from tokenwire.client import GeneratedSequence, Generation, TokenExplanation, TokenStanding

_HEADINGS = ("processor", "removed", "left", "probability", "rank", "entropy")


def show_explanations(answer: Generation, out: Output) -> None:
    """Write a table for each explained token: the model's distribution, then what it was behind each processor."""
    count = len(answer.sequences)
    for number, sequence in enumerate(answer.sequences, start=1):
        out.line()
        if count > 1:
            out.line(f"--- {number} of {count}, explained ---")
        for line in _lines(sequence):
            out.line(line)


def _lines(sequence: GeneratedSequence) -> Iterable[str]:
    tables = [_table(explanation) for explanation in sequence.explanations]
    # One width for all tables, so that they can be read down a column.
    rows = [_HEADINGS, *(row for table in tables for row in table)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    for number, (explanation, table) in enumerate(zip(sequence.explanations, tables, strict=True), start=1):
        yield f"{number}. {explanation.text!r} ({explanation.token_id})"
        for row in (_HEADINGS, *table):
            name, *figures = (
                cell.ljust(width) if place == 0 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            yield f"   {name}  {'  '.join(figures)}"
    if left := len(sequence.token_ids) - len(tables):
        yield f"({left} more token{'s' * (left > 1)}: only the first {len(tables)} are explained)"


def _table(explanation: TokenExplanation) -> Sequence[tuple[str, ...]]:
    return [
        ("model", "", *_figures(explanation.model)),
        *((effect.name, str(effect.removed_token_count), *_figures(effect.after)) for effect in explanation.effects),
    ]


def _figures(standing: TokenStanding | None) -> tuple[str, str, str, str]:
    """Tokens left, probability, rank and entropy; dashes where there is no distribution."""
    if standing is None:
        return "-", "-", "-", "-"
    return str(standing.token_count), f"{standing.probability:.4g}", str(standing.rank), f"{standing.entropy:.3f}"

"""The console of the commands, on a terminal and in a log, and tables that fit it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions
from rich.text import Text

LOG_WIDTH = 170
GAP = 2  # between columns
MIN_NAME_WIDTH, MIN_TEXT_WIDTH = 8, 16  # of the first column, and of other text: narrower, they cannot be read

Cell = str | Text
Part = dict[int, int]  # columns that stand beside each other, with their widths


def make_console(stderr: bool = False, log_width: int = LOG_WIDTH) -> Console:
    """Return a console without markup, since paths and errors contain brackets; a log or a pipe gets a wide one."""
    columns = os.environ.get("COLUMNS", "")
    if columns and not (columns.isdecimal() and int(columns)):
        del os.environ["COLUMNS"]  # 0, of terminals that do not know; rich would show nothing
    console = Console(stderr=stderr, markup=False, highlight=False)
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console.width = log_width
    return console


def format_count(number: int, noun: str, plural: str = "") -> str:
    """Format `1 run`, `2 runs`, and with a plural of its own `2 galaxies`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def format_duration(seconds: float) -> str:
    """Format `0:04:10`, hours first."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


@dataclass(frozen=True, eq=False)
class ConsoleTable:
    """A table that fits the console: no number is cut or folded, and no text is cut.

    Where the columns do not fit beside each other, those in `optional` are left out, the first of them first. Others
    that do not fit follow below, beside the first column again. rich's own tables cut what does not fit.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    texts: Sequence[str] = ()  # heads of columns of text: left-aligned, and folded; the first column is one, too
    optional: Sequence[str] = ()  # heads
    totals: Sequence[Cell] = ()  # a last row, below a line
    notes: Cell = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Yield the lines for the width of the console."""
        full_widths = [max(map(_measure, cells)) for cells in zip(*self._all_rows, strict=True)]
        left_out, parts = self._fit(full_widths, options.max_width)
        rule = "-" if options.ascii_only else "─"
        if self.title:
            yield _make_text(self.title)
        for part in parts:
            line = [Text(rule * (sum(part.values()) + GAP * (len(part) - 1)))]
            heads, *groups = [self._format_row(console, row, part) for row in self._all_rows]
            for text in heads:
                text.stylize("bold")
            if self.totals:
                groups.insert(-1, line)
            for group in ([Text()], heads, line, *groups):
                yield from group
        if left_out:
            yield Text(f"left out for lack of room: {', '.join(left_out)}")
        if self.notes:
            yield Text()
            yield _make_text(self.notes)

    @property
    def _all_rows(self) -> list[Sequence[Cell]]:
        return [self.heads, *self.rows, *([self.totals] if self.totals else [])]

    def _is_text(self, column: int) -> bool:
        return column == 0 or self.heads[column] in self.texts

    def _fit(self, full_widths: Sequence[int], width: int) -> tuple[Sequence[str], list[Part]]:
        """Return the heads of the columns to leave out, and the others in parts that fit the width."""
        for number in range(len(self.optional) + 1):
            left_out = self.optional[:number]
            columns = [n for n, head in enumerate(self.heads) if n and head not in left_out]
            parts = self._split_columns(columns, full_widths, width)
            if len(parts) == 1:
                break
        return left_out, [self._widen(part, full_widths, width) for part in parts]

    def _split_columns(self, columns: Sequence[int], full_widths: Sequence[int], width: int) -> list[Part]:
        """Return parts of the first column and as many others as fit, each as narrow as it may be."""
        parts: list[Part] = []
        for column in columns:
            needed = min(full_widths[column], MIN_TEXT_WIDTH) if self._is_text(column) else full_widths[column]
            if not parts or sum(parts[-1].values()) + GAP * len(parts[-1]) + needed > width:
                name_width = min(
                    full_widths[0], max(width // 2, MIN_NAME_WIDTH), max(width - GAP - needed, MIN_NAME_WIDTH)
                )
                parts.append({0: name_width})
            parts[-1][column] = min(needed, max(width - GAP - parts[-1][0], 1))
        return parts or [{0: min(full_widths[0], width)}]

    def _widen(self, part: Part, full_widths: Sequence[int], width: int) -> Part:
        """Give the first column, then the other texts in proportion, what is left of the width."""
        part, room = dict(part), width - sum(part.values()) - GAP * (len(part) - 1)
        for columns in ([0], [column for column in part if column and self._is_text(column)]):
            missing = {column: full_widths[column] - part[column] for column in columns}
            fraction = min(1.0, room / max(sum(missing.values()), 1))
            for column in columns:
                part[column] += int(fraction * missing[column])
            room = width - sum(part.values()) - GAP * (len(part) - 1)
        return part

    def _format_row(self, console: Console, row: Sequence[Cell], part: Part) -> list[Text]:
        """Return the lines of a row: several where a text is folded."""
        cells = {column: _make_text(row[column]).wrap(console, width) for column, width in part.items()}
        lines = []
        for number in range(max(map(len, cells.values()))):
            texts = []
            for column, folded in cells.items():
                text = folded[number] if number < len(folded) else Text()
                text.align("left" if self._is_text(column) else "right", part[column])
                texts.append(text)
            lines.append(Text(" " * GAP).join(texts))
            lines[-1].rstrip()
        return lines


def _make_text(cell: Cell) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)


def _measure(cell: Cell) -> int:
    return max((line.cell_len for line in _make_text(cell).split("\n")), default=0)

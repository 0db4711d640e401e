"""HTML of the page. Everything from a model, a run or a user goes through `escaped` before it is shown."""

from collections.abc import Iterable, Sequence
from html import escape

QUOTED = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;", "\\": "&#92;"})
"""Characters with a meaning in browser templates."""


def escaped(text: str) -> str:
    """Text as inert HTML: it cannot form a tag, attribute or template."""
    return escape(text).translate(QUOTED)


def token(text: str) -> str:
    """A token, isolated from the surrounding text's writing direction."""
    return f"<bdi class='token'>{escaped(text)}</bdi>"


def message(text: str, kind: str = "note") -> str:
    """A message to the user; `kind` is note or problem."""
    return f"<p class='{kind}' role='status'>{escaped(text)}</p>" if text else ""


def shade(strength: float) -> str:
    """The style of a cell with `strength` from 0 to 1: stronger is bluer, readable on light and dark."""
    return f"--s:{min(max(strength, 0.0), 1.0):.3f}"


def bars(items: Iterable[tuple[str, float]], share: bool = True, most: float = 1.0) -> str:
    """Tokens with a bar each. Values are shares of 1, or numbers with `most` as the full bar."""
    rows = [
        f"<li><span class='bar' style='width:{min(abs(value) / most, 1) * 100:.1f}%'></span>{token(text)}"
        f"<span class='value'>{percent(value) if share else f'{value:+.3f}'}</span></li>"
        for text, value in items
    ]
    return f"<ol class='bars'>{''.join(rows)}</ol>"


def percent(value: float) -> str:
    """A share in per cent: `12.3%`; positive values below 0.1% become `<0.1%`."""
    return "&lt;0.1%" if 0 < value < 0.001 else f"{value:.1%}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, kind: str = "") -> str:
    """A table of cells that are already HTML: `<td>` and `<th>` elements. `caption` is HTML too."""
    titles = "".join(f"<th scope='col'>{title}</th>" for title in head)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return (
        f"<figure class='grid {kind}'><figcaption>{caption}</figcaption><div class='scroll' tabindex='0'><table>"
        f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div></figure>"
    )


def choice(cell: str, inside: str, title: str, style: str = "", kind: str = "") -> str:
    """A clickable cell; a click sends `cell` to the page. `inside` is HTML, `title` and `cell` are text."""
    return (
        f"<td class='cell {kind}' style='{style}'><button type='button' data-cell='{escaped(cell)}' "
        f"title='{escaped(title)}'>{inside}</button></td>"
    )


def columns(parts: Iterable[str]) -> str:
    """HTML parts side by side, where there is room."""
    return f"<div class='columns'>{''.join(f'<section>{part}</section>' for part in parts)}</div>"

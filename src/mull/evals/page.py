"""What the pages of mull share: one HTML file each, with its data, its styles and its scripts inside. No network.

Thoughts and answers are a model's output, so they are hostile until escaped. They enter a page twice over guarded:
as JSON in which no `<` survives, which the page's scripts show as text nodes only; and under a content security
policy that runs the page's scripts by their hashes and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from mull.files import write_whole

_SLOT = re.compile(r"\{\{(\w+)\}\}")
_JSON_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def write_page(page: str, path: str | os.PathLike[str]) -> Path:
    """Writes the file `path` in one piece."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page.encode())
    return path


def fill(template: str, scripts: Sequence[str], data: Any, slots: Mapping[str, str]) -> str:
    """The asset `template` with its slots filled: d3 and Plot, `js` from the assets `scripts` one after the other,
    `data` that they read (without NaN: see `finite`), and `slots` of ready-made markup."""
    sources = {"d3": asset("d3.min.js"), "plot": asset("plot.umd.min.js"), "js": "\n".join(map(asset, scripts))}
    known = {
        **slots,
        **sources,
        "script_hashes": " ".join(map(_csp_hash, sources.values())),
        "data": json.dumps(data, ensure_ascii=False, allow_nan=False).translate(_JSON_ESCAPES),
    }
    # one pass, so that nothing inside a slot is taken for a slot
    return _SLOT.sub(lambda found: known[found[1]], asset(template))


@cache
def asset(name: str) -> str:
    return files("mull.evals").joinpath("assets", name).read_text(encoding="utf-8")


def _csp_hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def finite(value: Any) -> Any:
    """`value` with NaN and infinities as None, which JSON and the page know; lone surrogates cannot be encoded."""
    if isinstance(value, dict):
        return {finite(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return value


def text(value: object) -> str:
    return html.escape(str(value), quote=True)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, foot: bool = False) -> str:
    """A table of ready-made cells: names, then numbers. A row of one cell is a heading; `foot`: the last is a sum."""

    def row(cells: Sequence[str], tag: str = "td", scope: str = "") -> str:
        if len(cells) == 1:
            return f'<tr class="heading"><th scope="rowgroup" colspan="{len(head)}">{cells[0]}</th></tr>'
        rest = "".join(f'<{tag}{scope} class="num">{cell}</{tag}>' for cell in cells[1:])
        first = scope or ' scope="row"'
        return f"<tr><th{first}>{cells[0]}</th>{rest}</tr>"

    body = [row(cells) for cells in rows]
    tail = f"<tfoot>{body.pop()}</tfoot>" if foot and body else ""
    columns = row(head, "th", ' scope="col"')
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{text(caption)}"><table>'
        f'<caption class="sr-only">{text(caption)}</caption><thead>{columns}</thead>'
        f"<tbody>{''.join(body)}</tbody>{tail}</table></div>"
    )

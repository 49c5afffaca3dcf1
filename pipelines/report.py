"""Reports: one self-contained HTML page and its Markdown twin, from the same pieces.

The page loads nothing from anywhere: figures are embedded, the style is page.html's. The Markdown names the figures as
files beside it.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

PAGE = Path(__file__).with_name("page.html")


@dataclass(eq=False)
class Report:
    """A page in the making; pieces appear in the order in which they are added."""

    title: str
    subtitle: str
    _html: list[str] = field(default_factory=list)
    _markdown: list[str] = field(default_factory=list)
    _figures: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin with the title."""
        self._html.append(f'<h1>{html.escape(self.title)}</h1>\n<p class="soft">{_inline(self.subtitle)}</p>')
        self._markdown.append(f"# {self.title}\n\n{self.subtitle}")

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._html.append(f"<h2>{html.escape(text)}</h2>")
        self._markdown.append(f"## {text}")

    def paragraph(self, text: str) -> None:
        """Plain text; `code` and **bold** are understood."""
        self._html.append(f"<p>{_inline(text)}</p>")
        self._markdown.append(text)

    def table(
        self, columns: Sequence[str], rows: Sequence[Mapping[str, str]], *, ours: Sequence[str] = (), note: str = ""
    ) -> None:
        """A table; rows whose first cell is in `ours` stand out."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
        lines = []
        for row in rows:
            cells = "".join(f"<td>{html.escape(row[name])}</td>" for name in columns)
            lines.append(f'<tr class="ours">{cells}</tr>' if row[columns[0]] in ours else f"<tr>{cells}</tr>")
        foot = f'<p class="soft">{_inline(note)}</p>' if note else ""
        self._html.append(
            f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{chr(10).join(lines)}</tbody></table>'
            f"</div>{foot}"
        )
        text = ["| " + " | ".join(_cell(name) for name in columns) + " |"]
        text.append("|" + "|".join("---" if not number else "---:" for number in range(len(columns))) + "|")
        text += ["| " + " | ".join(_cell(row[name]) for name in columns) + " |" for row in rows]
        self._markdown.append("\n".join(text) + (f"\n\n{note}" if note else ""))

    def figure(self, name: str, png: bytes, caption: str) -> None:
        """A figure, kept as figures/<name>.png too."""
        self._figures[name] = png
        data = base64.b64encode(png).decode()
        self._html.append(
            f'<figure><img alt="{html.escape(caption, quote=True)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{_inline(caption)}</figcaption></figure>"
        )
        self._markdown.append(f"![{caption}](figures/{name}.png)\n\n{caption}")

    def figure_files(self, folder: Path) -> list[Path]:
        """Where `write` puts the figures of this page."""
        return [folder / "figures" / f"{name}.png" for name in self._figures]

    def write(self, folder: Path, name: str = "report") -> Path:
        """Write <name>.html, <name>.md and figures/ into a folder; gives the page's path."""
        for path, png in zip(self.figure_files(folder), self._figures.values(), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png)
        template = Template(PAGE.read_text(encoding="utf-8"))
        page = folder / f"{name}.html"
        page.write_text(
            template.substitute(title=html.escape(self.title), body="\n".join(self._html)), encoding="utf-8"
        )
        page.with_suffix(".md").write_text("\n\n".join(self._markdown) + "\n", encoding="utf-8")
        return page


def _inline(text: str) -> str:
    safe = html.escape(text)
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", safe)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")

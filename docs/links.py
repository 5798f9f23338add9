"""Links from page to page, looked up offline."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """The links and the places of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a link or a place."""
        for name, value in attrs:
            if value and name in ("id", "name"):
                self.places.add(value)
            if value and name in ("href", "src"):
                self.links.append(value)


@cache
def _page(path: Path) -> _Page:
    return _Page(path.read_text(encoding="utf-8", errors="replace"))


def broken(folder: Path) -> list[str]:
    """Return ``page: link`` for every link of the pages of a folder whose file or place is not there.

    Scripts and style sheets of other sites count as broken, too: a page has to be whole without a network.
    """
    return list(_broken(folder.resolve()))


def _broken(folder: Path) -> Iterator[str]:
    _page.cache_clear()
    for path in sorted(p for p in folder.rglob("*.html") if "_static" not in p.parts):
        for link in dict.fromkeys(_page(path).links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link.startswith("data:"):
                if link.endswith((".js", ".css")):
                    yield f"{path.relative_to(folder)}: {link} (of another site)"
                continue
            there = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            there = there / "index.html" if there.is_dir() else there
            place = unquote(parts.fragment)
            lacks = not there.exists() or (
                place and there.suffix == ".html" and place not in _page(there).places and place != "top"
            )
            if lacks:
                yield f"{path.relative_to(folder)}: {link}"

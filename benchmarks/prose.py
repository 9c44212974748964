"""Text of generated pages."""

from __future__ import annotations

import textwrap

WIDTH = 118


def paragraph(*sentences: str) -> list[str]:
    """The lines of a paragraph; spans such as `a b` may be broken, words never are."""
    return textwrap.wrap(" ".join(sentences), WIDTH, break_long_words=False, break_on_hyphens=False)

"""The works that a board rests on, as BibTeX: its data, attacks, defenses, statistics and reported rows."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from robustbench_vit.boards.reported import ReportedRow, reported_rows
from robustbench_vit.cards import BoardCard, Loaded, Policy, Workspace
from robustbench_vit.errors import InputError

OURS = "robustbench_vit"
ROBUSTBENCH = "croce2021robustbench"
DATA = {
    "digits": ("alpaydin1998optical", "pedregosa2011scikit"),
    "mnist": ("lecun1998gradient",),
    "fashion_mnist": ("xiao2017fashion",),
    "cifar10": ("krizhevsky2009learning",),
    "cifar100": ("krizhevsky2009learning",),
    "imagenet": ("russakovsky2015imagenet",),
}
"""The works that describe a data set."""
INTERVALS = {"wilson": "wilson1927probable", "clopper-pearson": "clopper1934use"}
RANKS = ("mcnemar1947note", "holm1979simple")

_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
_ARXIV_LINK = re.compile(r"arxiv\.org/(?:abs|pdf)/(\d{4}\.\d{4,5})")
_ENTRY = re.compile(r"^@(?P<kind>\w+)\{(?P<key>[^,\s]+),\n(?P<fields>.*?)\n\}$", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^  (\w+) = \{(.*)\},?$", re.MULTILINE)
_URL = re.compile(r"https?://[^\s{}\\]+")
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "{": r"\textbraceleft{}",  # BibTeX counts braces, escaped or not
    "}": r"\textbraceright{}",
}


@dataclass(frozen=True)
class Work:
    """A BibTeX entry."""

    key: str
    text: str  # as it stands in a .bib file
    fields: Mapping[str, str]

    @property
    def cited(self) -> str:
        """The authors' surnames and the year, as in running text: 'Croce and Hein, 2020'."""
        names = [author.split(",")[0].strip("{} ") for author in self.fields["author"].split(" and ")]
        who = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
        return f"{who}, {self.fields['year']}" if "year" in self.fields else who


@cache
def works() -> Mapping[str, Work]:
    """Every entry of references.bib by its key."""
    return parse_works(files("robustbench_vit.boards").joinpath("references.bib").read_text(encoding="utf-8"))


def parse_works(text: str) -> dict[str, Work]:
    """The entries of a .bib text with one field a line, by key; raises InputError for a key that stands twice."""
    found: dict[str, Work] = {}
    for match in _ENTRY.finditer(text):
        if match["key"] in found:
            raise InputError(f"references.bib: key '{match['key']}' stands twice")
        found[match["key"]] = Work(match["key"], match[0], dict(_FIELD.findall(match["fields"])))
    return found


def arxiv_ids(reference: str) -> list[str]:
    """The arXiv ids that a card's reference names, in order."""
    return list(dict.fromkeys(_ARXIV.findall(reference)))


def by_arxiv(arxiv: str) -> Work | None:
    """The work with this arXiv id, if references.bib has it."""
    return next((work for work in works().values() if work.fields.get("eprint") == arxiv), None)


def attack_works(reference: str, norm: str) -> list[Work]:
    """The works that an attack card's reference names, but those it names for another norm ('; in l1 …')."""
    parts = [part for part in reference.split(";") if _concerns(part, norm)]
    found = [by_arxiv(arxiv) for arxiv in dict.fromkeys(arxiv for part in parts for arxiv in arxiv_ids(part))]
    return [work for work in found if work is not None]


def _concerns(part: str, norm: str) -> bool:
    named = re.match(r"\s*in (linf|l2|l1)\b", part)
    return named is None or named[1] == norm


def references_text(board: Loaded[BoardCard], workspace: Workspace, policies: Collection[Policy] = ("A",)) -> str:
    """BibTeX of what the board rests on, ours first; what has no entry is listed in comments.

    `policies` are those of the board's records: under B and C other attacks run in place of the board's.
    """
    rows = reported_rows(board)
    keys = [OURS, *DATA.get(board.card.data.name, ())]
    unknown: list[str] = []
    for name, reference in _references(board, workspace, policies):
        keys += [work.key for work in attack_works(reference, board.card.norm)]
        unknown += [f"{missing}, cited by {name}" for missing in _missing(reference)]
    if board.card.entries:
        keys += [INTERVALS[board.card.interval], *RANKS]
    if rows:
        keys.append(ROBUSTBENCH)
    entries = [works()[key].text for key in dict.fromkeys(keys)]
    comments = [f"% no entry is known for {what}" for what in dict.fromkeys(unknown)]
    return "\n\n".join([*entries, *_papers(rows, keys), *(["\n".join(comments)] if comments else [])]) + "\n"


def _references(
    board: Loaded[BoardCard], workspace: Workspace, policies: Iterable[Policy]
) -> Iterator[tuple[str, str]]:
    """What cites something, and its card's reference: the board, its attacks and their lanes, its defenses."""
    card, where = board.card, board.shown
    yield f"board {board.name}", card.reference
    for attack in (*card.attacks, *card.adaptive):
        for name in dict.fromkeys([attack, *(workspace.stand_in(attack, policy, where) for policy in policies)]):
            yield f"attack {name}", workspace.attack(name, where).card.reference
            for lane in workspace.lanes(name, card.norm, where):
                yield f"attack {lane.name}", lane.card.reference
    for defense in dict.fromkeys(entry.defense for entry in card.entries):
        yield f"defense {defense}", workspace.defense(defense, where).card.reference


def _missing(reference: str) -> list[str]:
    """What a card cites and references.bib doesn't have."""
    named = arxiv_ids(reference)
    if not named and not reference.lower().startswith("none"):
        return [f'"{" ".join(reference.split())}"']
    return [f"arXiv:{arxiv}" for arxiv in named if by_arxiv(arxiv) is None]


def _papers(rows: Iterable[ReportedRow], taken: Collection[str]) -> list[str]:
    """An entry for each paper with reported rows, from what the rows say; none for a work that stands there anyway."""
    found: dict[str, str] = {}
    papers: set[str] = set()
    for row in sorted(rows, key=lambda row: row.name):
        paper = row.info.link or row.info.name
        arxiv = arxiv_of(row)
        known = by_arxiv(arxiv) if arxiv else None
        if paper in papers or (known is not None and known.key in taken):
            continue
        papers.add(paper)
        short, full = (re.sub(r"[^\w:-]", "", name) for name in (row.name.split("_")[0], row.name))
        key = full if short in found else short
        found[key] = _paper(key, row, arxiv)
    return list(found.values())


def arxiv_of(row: ReportedRow) -> str | None:
    """The arXiv id that the row links to."""
    match = _ARXIV_LINK.search(row.info.link or "")
    return match[1] if match else None


def _paper(key: str, row: ReportedRow, arxiv: str | None) -> str:
    info = row.info
    link = _URL.fullmatch(info.link or "")
    year = re.search(r"\b(?:19|20)\d\d\b", info.venue or "")
    fields = {
        "author": tex(" and ".join(info.author_list)),
        "title": f"{{{tex(info.name)}}}",  # keeps capitals
        "year": year[0] if year else "",
        "note": tex(info.venue or ""),
        "eprint": arxiv or "",
        "archiveprefix": "arXiv" if arxiv else "",
        "howpublished": f"\\url{{{link[0]}}}" if link and not arxiv else "",
    }
    lines = [f"  {name} = {{{value}}}" for name, value in fields.items() if value]
    return f"@misc{{{key},\n" + ",\n".join(lines) + "\n}"


def tex(text: str) -> str:
    """`text` as LaTeX shows it verbatim."""
    return re.sub(r"[\\~^&%$#_{}]", lambda found: _SPECIAL.get(found[0], f"\\{found[0]}"), text)

"""docs/bibliography.md: every paper that a docstring or a page cites has an entry; paths exist; addresses are plain."""

from __future__ import annotations

import ast
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "bibliography.md"
ENTRY = re.compile(
    r"^- \*\*(?P<authors>.+?) \((?P<year>(?:19|20)\d\d[a-c]?)\)\.\*\* \*(?P<title>.+?)\*\. (?P<venue>[^\n]+)\.\n"
    r"  Contributes: (?P<contributes>[^\n]+)\n  (?P<where>In the code: [^\n]+|Not in the code)\.$",
    re.M,
)
NAME = r"(?:Van )?[A-Z][\w-]+"
# "Jia & Zhou 2022a", "Jia and Zhou (JMLR 2022b", "Karras et al. (2022)", "Hopf 1950", "Huang, Jia & Zhou 2025, ..."
CITATION = re.compile(
    rf"(?<![\w-])(?P<names>{NAME}(?:(?:, and|,| and| &) {NAME})*)(?:'s)?(?P<more>,? et al\.?)?"
    r"\*?,? ?\(?(?:[A-Z]{3,} )?(?P<year>(?:19|20)\d\d)(?P<letter>[a-c]?)(?![\w-])"
)
# words of prose that stand before a year like a surname; a citation is none of them alone
NO_NAMES = {"In", "The", "Since", "Until", "Inception", "Licence", "January", "May", "Theory"}
# the numbers that the project's sources give, in order
ARXIV = {
    "2405.12535", "2411.01302", "2412.16175", "2503.09981", "2504.21793", "2507.00358", "2509.23280", "2601.18681",
    "2605.13010", "2607.02137",
}  # fmt: skip


class Citation(NamedTuple):
    """Surnames in order; ``more``: "et al." follows."""

    names: tuple[str, ...]
    year: str
    more: bool


def plain(text: str) -> str:
    """Without accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def citations(text: str) -> list[Citation]:
    found = []
    for match in CITATION.finditer(re.sub(r"\s+", " ", plain(text))):
        names = tuple(re.split(r", and | and | & |, ", match["names"]))
        names = tuple(n for n in names if not re.fullmatch("[A-Z]{3,}", n))  # journals and methods
        if match["more"]:
            names = names[-1:]  # "DDNM, Wang et al. 2023"
        if names and names[-1] not in NO_NAMES:
            found.append(Citation(names, match["year"] + match["letter"], bool(match["more"])))
    return found


def entries() -> list[re.Match[str]]:
    return list(ENTRY.finditer(PAGE.read_text()))


def known() -> dict[tuple[str, str], list[tuple[str, ...]]]:
    """(first surname, year) -> author lists."""
    out: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for entry in entries():
        authors = tuple(plain(entry["authors"]).split(", "))
        out.setdefault((authors[0], entry["year"]), []).append(authors)
    return out


def fits(citation: Citation, authors: tuple[str, ...]) -> bool:
    if citation.more:
        return len(authors) > 2 and authors[0] == citation.names[0]
    return authors == citation.names


def missing(text: str) -> list[Citation]:
    table = known()
    return [c for c in citations(text) if not any(fits(c, a) for a in table.get((c.names[0], c.year), []))]


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def prose(path: Path) -> str:
    return re.sub(r"^( *)(```+).*?^\1\2\s*$", "", path.read_text(), flags=re.M | re.S)


def test_every_citation_of_a_docstring_has_an_entry():
    files = [*(ROOT / "aid_control").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    found = {str(p.relative_to(ROOT)): missing("\n\n".join(docstrings(p))) for p in sorted(files)}
    assert not {p: c for p, c in found.items() if c}
    assert sum(len(citations("\n\n".join(docstrings(p)))) for p in files) > 60  # the expression still sees them


def test_every_citation_of_a_page_has_an_entry():
    pages = [p for p in (ROOT / "docs").rglob("*.md") if p != PAGE]
    found = {str(p.relative_to(ROOT)): missing(prose(p)) for p in sorted(pages)}
    assert not {p: c for p, c in found.items() if c}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("(Jia & Zhou 2022a, section 4.2)", [(("Jia", "Zhou"), "2022a", False)]),
        ("Wang, Zariphopoulou & Zhou (JMLR 2020, section 4)", [(("Wang", "Zariphopoulou", "Zhou"), "2020", False)]),
        ("Karras et al. (2024), its", [(("Karras",), "2024", True)]),
        ("DDNM, Wang et al. 2023)", [(("Wang",), "2023", True)]),
        ("Cole 1951; Kappen 2005", [(("Cole",), "1951", False), (("Kappen",), "2005", False)]),
        ("Corneanu, Gadde and Martinez, WACV 2024", [(("Corneanu", "Gadde", "Martinez"), "2024", False)]),
        ("Van Loan's (1978) block", [(("Van Loan",), "1978", False)]),
        ("*Wilcoxon* (1945): signed", [(("Wilcoxon",), "1945", False)]),
        ("Chung, Kim, Mccann, Klasky,\nYe (2023)", [(("Chung", "Kim", "Mccann", "Klasky", "Ye"), "2023", False)]),
        ("Inception 2015-12-05, 2048 features, seed 2000", []),
    ],
)  # fmt: skip
def test_what_counts_as_a_citation(text, wanted):
    assert [tuple(c) for c in citations(text)] == wanted


def test_an_invented_citation_is_missed():
    assert missing("after Nobody and Noone (2021)") and missing("Jia & Zhou 2019") and missing("Jia & Zhang 2022a")
    assert not missing("Jia & Zhou 2022a; Karras et al. 2022; Zhou & Li 2000")


def test_every_entry_has_its_form():
    text = PAGE.read_text()
    assert len(entries()) == len(re.findall(r"^- ", text, re.M)) >= 100
    heads = [(e["authors"], e["year"], e["title"]) for e in entries()]
    assert len(set(heads)) == len(heads)


@pytest.mark.parametrize(
    "entry", entries(), ids=lambda e: f"{e['authors'].split(',')[0]}-{e['year']}-{e['title'][:12]}"
)
def test_the_code_that_an_entry_names_exists(entry):
    paths = re.findall(r"`([^`]+)`", entry["where"])
    assert paths or entry["where"] == "Not in the code"
    assert all((ROOT / p).is_file() for p in paths)


def test_addresses():
    text = PAGE.read_text()
    urls = re.findall(r"https?://[^\s)>\]]+", text)
    assert all(re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}|https://doi\.org/10\.\S+", u) for u in urls)
    numbers = re.findall(r"\[arXiv (\d{4}\.\d{5})\]\(https://arxiv\.org/abs/(\d{4}\.\d{5})\)", text)
    assert all(shown == linked for shown, linked in numbers) and len(numbers) == len(urls)
    assert {shown for shown, _ in numbers} <= ARXIV

r"""Repairs of a ticket's text. Each is a function from text to text that leaves good text alone.

Repairing the result again changes nothing, but for text that shows HTML or entities (`&lt;br&gt;`,
`&amp;lt;`) or hides them in others (`<<b></b>br>`): it reads as HTML then.
"""

import html
import re
from html.entities import html5

from bs4 import BeautifulSoup

_LINE_BREAK = re.compile("\r\n|[\r\v\f\x85]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
# What str.strip takes off, and spaces without width.
_SPACES = "".join(char for char in map(chr, range(0x3001)) if char.isspace()) + "\u200b\u2060\ufeff"

# A literal \n between words may be a newline (`one\ntwo`) or a path (`share\new`). Never touched:
# drive and network paths, and words with a backslash before another letter (`\d+\n`).
_LITERAL = re.compile(
    r"(?P<keep>(?:(?<![^\W\d_])|(?<=\\n))[A-Za-z]:\\(?:(?!\\n\\n)\S)*"
    r"|\\\\(?:(?!\\n\\n)\S)*|(?<!\S)(?=\S*(?<!\\n)\\[a-mo-qs-zA-Z\d])\S+)|(?:\\r)?\\n"
)
# The same, faster, in a text without any of those.
_NEWLINE = re.compile(r"(?P<keep>(?!))|(?:\\r)?\\n")
_MAY_KEEP = re.compile(r"\\[^nr]|[A-Za-z]:\\")
# Surely newlines: two in a row, after punctuation or a tag, or before a space, capital, bullet,
# tag or the end.
_SURE = re.compile(r"\\n(?:\\r)?\\n|[\s.,;:!?)>](?:\\r)?\\n|\\n(?:$|[\s*•<\d-]|[^\W\d_a-zß-ÿ])")

_BLOCKS = (
    "address article aside blockquote caption center dd div dl dt fieldset figure footer form "
    "h1 h2 h3 h4 h5 h6 header li main nav ol p pre section table tbody tfoot thead tr ul"
).split()
_HIDDEN = "head iframe script style svg template title".split()
# Tags that mean something without an end tag or an attribute. Others, such as `<address>`, may as
# well stand for what someone has to fill in.
_ALONE = "p br hr wbr div li tr td th html head body".split()
_INLINE = (
    "a abbr b big button cite code col colgroup del dfn em font i img input ins kbd label legend "
    "link mark meta nobr noscript option q s samp select small span strike strong sub sup time tt "
    "u var"
).split()
_NAMES = "|".join(sorted({*_BLOCKS, *_HIDDEN, *_ALONE, *_INLINE}, key=len, reverse=True))
_NAMES += r"|(?:o|v|w|st1):\w+"  # Microsoft Office's own.
_VALUE = r"""\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'<>]*)"""
_TAG = re.compile(
    rf"""<(?P<end>/?)(?P<name>{_NAMES})
    (?P<attributes>\s+(?:[a-z_:@][\w:.-]*{_VALUE}|(?:nowrap|noshade|compact|checked|disabled)\b)
        (?:(?:\s+|(?<=["']))[a-z_:@][\w:.-]*(?:{_VALUE})?)*)?\s*/?>
    |<!doctype\b[^<>]*>|<!\[(?:if|endif)[^<>]*>|<\?xml\b[^<>]*>
    |(?P<comment><!--(?:-?>)?|-->)""",
    re.IGNORECASE | re.VERBOSE,
)
# A text with these is HTML; in another, an end tag that HTML does not know means that it is XML.
_TELLING = {*"p br div span html body td font a img".split()}
_FOREIGN = re.compile(rf"</(?!(?:{_NAMES})\s*>)[a-z][\w:.-]*\s*>", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][\da-fA-F]{1,6}|[a-zA-Z][a-zA-Z\d]{1,30});")
# What stands around an element: \0 begins a new line, \1 also leaves one empty, once. \2 is a
# bullet, \3 a line break that stays.
_GAPS = dict.fromkeys(_BLOCKS, "\0") | dict.fromkeys(["p", "pre", "table", "blockquote"], "\1")
_GAPS |= {"br": "\3", "hr": "\3", "td": " ", "th": " "}
_GAP = re.compile("(?:\3 *)?[\0\1][ \0\1]*")
# Elements in which mail programs quote, and those that begin a quote that has no element.
_QUOTES = "blockquote, .gmail_quote, .yahoo_quoted, .moz-cite-prefix, .protonmail_quote"
_QUOTE_STARTS = "#divRplyFwdMsg, #appendonsend"


def normalize_line_breaks(text: str) -> str:
    r"""The text with `\n` at each line's end, whatever stood there."""
    return _LINE_BREAK.sub("\n", text)


def remove_controls(text: str) -> str:
    """The text without control characters other than line breaks and tabs."""
    return _CONTROL.sub("", text)


def strip_space(text: str) -> str:
    """The text without the space around it, that without width included."""
    return text.strip(_SPACES)


def join_lines(text: str) -> str:
    """The text on one line, as a queue's name has to be."""
    return re.sub(r"\s*\n\s*", " ", text)


def unescape_newlines(text: str) -> str:
    r"""The text with the two characters `\n` as line breaks, where they stand for these.

    They do in a text without real line breaks in which at least one `\n` is doubled, follows
    punctuation, a tag or a space, or comes before a space, capital, digit, bullet, tag or the end.
    Paths such as `C:\new` and patterns such as `\d+\n` stay.

    Args:
        text: Text of a ticket.
    """
    inner = strip_space(text)
    if r"\n" not in inner or "\n" in inner:
        return text
    literal = _LITERAL if _MAY_KEEP.search(inner) else _NEWLINE
    without_paths = literal.sub(lambda match: "path" if match["keep"] else match[0], inner)
    if not _SURE.search(without_paths):
        return text
    return strip_space(literal.sub(lambda match: match["keep"] or "\n", inner))


def remove_html(text: str, *, drop_quotes: bool = False) -> str:
    """HTML as a reader would see it; text that is not HTML as it is.

    Tags count where they are surely tags: an element that HTML knows, with an attribute, with its
    end tag in the text, or one of those that need neither (`<p>`, `<br>`). So `<name>`,
    `<tel_num>`, `<sam@example.com>` and `a < b` stay, and so does XML. Line breaks stay where the
    text has no element that makes lines. Entities (`&nbsp;`) are read in other text too.

    Args:
        text: Text of a ticket.
        drop_quotes: Leave out what mail programs mark as quoted, unless it is all there is.
    """
    if "<" not in text and "&" not in text:
        return text
    tags = list(_TAG.finditer(text))
    # Where the last end of each element, and of a comment (""), is.
    ends = {_name_of(tag): tag.start() for tag in tags if tag["end"] or tag[0].endswith("-->")}
    if not -1 < text.find("<!--") < ends.get("", -1):
        tags = [tag for tag in tags if not tag["comment"]]
    surely = {*_ALONE, *ends}
    tags = [
        tag
        for tag in tags
        if not tag["name"] or tag["attributes"] or ":" in tag["name"] or _name_of(tag) in surely
    ]
    names = {_name_of(tag) for tag in tags}
    if names.isdisjoint(_TELLING) and _FOREIGN.search(text):
        return text
    if not tags:
        return _read_entities(text)
    # BeautifulSoup would take text without any tag for a path.
    soup = BeautifulSoup("<html>" + _mark_up(text, tags, ends, drop_quotes), "html.parser")
    quotes = soup.select(_QUOTES) if drop_quotes else []
    for start in soup.select(_QUOTE_STARTS) if drop_quotes else []:
        quotes += start.find_all_next(string=True)
    for element in soup(_HIDDEN) + quotes:
        element.extract()
    for string in soup.find_all(string=True) if soup.pre else []:
        if string.find_parent("pre"):
            string.replace_with(string.expandtabs(4).replace(" ", "\xa0").replace("\n", "\3"))
    seen = soup.get_text()
    if not names.isdisjoint(_GAPS):
        seen = re.sub("\2[ \0\1]*", "\0- ", re.sub(r"[^\S\xa0]+", " ", seen))
        seen = _GAP.sub(lambda gap: "\3\3" if "\1" in gap[0] else "\3", seen)
        seen = re.sub("\n{3,}", "\n\n", re.sub(" ?\3 ?", "\n", seen))
    seen = strip_space(seen.replace("\xa0", " "))
    return seen or (remove_html(text) if drop_quotes else "")


def remove_quotes(text: str) -> str:
    """The newest message of a mail, without the mails that it quotes below.

    Text that is nothing but a quote stays. Finds what mail-parser-reply knows of the headers that
    mail programs write in English, German, French, Italian and Dutch.

    Args:
        text: Plain text of a ticket.
    """
    from mailparser_reply import EmailReplyParser

    # The parser's time grows with the square of a line's length and of line breaks in a row.
    lines = re.sub("[^\n]{500}", "\\g<0>\n", re.sub("\n{3,}", "\n\n", text))
    replies = EmailReplyParser(languages=["en", "de", "fr", "it", "nl"]).read(lines).replies
    newest = "".join(replies[0].content.split())  # It strips lines, so that spaces do not count.
    is_alone = len(replies) < 2 or replies[0].headers
    if is_alone or not "".join(text.split()).startswith(newest):
        return text
    ends = [match.end() for match in re.finditer(r"\S", text)]
    return text[: ends[len(newest) - 1]]


def _name_of(tag: re.Match) -> str:
    """Name of an element; "" for other markup."""
    return (tag["name"] or "").casefold()


def _mark_up(text: str, tags: list[re.Match], ends: dict[str, int], keep_all: bool) -> str:
    """HTML in which all but the tags is escaped, without comments, with the gaps of `_GAPS`.

    Unless all are kept, tags that leave no text out and keep no space are gone: parsing takes long.
    """
    parts, at, in_comment = [], 0, False
    for tag in [*tags, None]:
        if not in_comment:
            piece = _read_entities(text[at : tag.start() if tag else len(text)])
            parts.append(html.escape(remove_controls(piece).replace("\xa0", " "), quote=False))
        if tag is None:
            break
        at, name = tag.end(), _name_of(tag)
        if in_comment:
            in_comment = not tag[0].endswith("-->")
        elif tag[0] == "<!--" and ends[""] >= at:
            in_comment = True
        elif tag[0] in ("<!--", "-->"):  # Half a comment is text.
            parts.append(html.escape(tag[0]))
        elif name in _HIDDEN and not tag["end"] and ends.get(name, -1) < at:
            pass  # Its end is missing; all text would be hidden.
        elif name:
            kept = tag[0] if keep_all or name in (*_HIDDEN, "pre") else ""
            gap = _GAPS.get(name, "")
            bullet = "\2" if name == "li" and not tag["end"] else ""
            parts.append(f"{kept}{gap}" if tag["end"] else f"{gap}{kept}{bullet}")
    return "".join(parts)


def _read_entities(text: str) -> str:
    """The text with the characters that entities stand for; unknown ones stay."""

    def read(match: re.Match) -> str:
        if match[0][1] != "#" and match[0][1:] not in html5:
            return match[0]
        return remove_controls(normalize_line_breaks(html.unescape(match[0]))).replace("\xa0", " ")

    return _ENTITY.sub(read, text)

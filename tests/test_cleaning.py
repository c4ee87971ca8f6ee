r"""Repairs change what is broken, once, and leave all else alone; no text makes them fail."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ticketlib.cleaning import (
    join_lines,
    normalize_line_breaks,
    remove_controls,
    remove_html,
    remove_quotes,
    strip_space,
    unescape_newlines,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
# What mails are made of. Left out is what shows HTML or entities, and what hides them in others:
# `&amp;`, `&lt;`, `<` before a tag.
PIECES = [
    *["Hello", "Grüße,", "one two", "7", "A", "n", "-", "*", ".", ":", "\n", "\n\n", " ", "\t"],
    *["<p>", "</p>", "<br>", "<BR/>", "<div dir='ltr'>", "</div>", "<b>", "</b>", "<i>", "<li>"],
    *["<ul>", "</ul>", "<td nowrap>", "</td>", "<pre>", "</pre>", "<style>", "</style>", "<head>"],
    *["<a href='https://x.example/?a=1&b=2'>", "</a>", "<o:p>", "<img src=x alt='a > b'>", "<hr>"],
    *["<!--", "-->", "<![if !mso]>", "<blockquote>", "</blockquote>", "<script src=x>", "</x>"],
    *["<name>", "<sam@example.com>", "a < b", "<3", "List<String>", "<<EOF", "<address>", "<x>"],
    *["&nbsp;", "&uuml;", "&unknown;", "&", "&#8364;", "\xa0", "\u200b", "&#13;", "&#1;"],
    *[
        r"\n",
        r"\n\n",
        r"\r\n",
        r"C:\new",
        r"\\nas\new",
        r"share\new",
        r"\d+\n",
        r"\t",
        "\r\n",
        "\x00",
    ],
]
MESSY = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
REPAIRS = [
    *[normalize_line_breaks, remove_controls, unescape_newlines, remove_html, unescape_newlines],
    strip_space,
]


def clean(text):
    """The text after all repairs, in the order of `load_tickets`."""
    for repair in REPAIRS:
        text = repair(text)
    return text


@settings(max_examples=400)
@given(MESSY)
def test_cleaning_clean_text_changes_nothing(text):
    once = clean(text)
    for repair in REPAIRS:
        assert repair(once) == once


@pytest.mark.filterwarnings("error")
@settings(max_examples=200)
@given(st.one_of(st.text(st.characters()), st.text("<>/!-=&#;\"' \nabpdiv:"), MESSY), st.booleans())
def test_no_text_makes_a_repair_fail(text, drop_quotes):
    for repair in [*REPAIRS, join_lines, remove_quotes]:
        assert isinstance(repair(text), str)
    assert isinstance(remove_html(text, drop_quotes=drop_quotes), str)


@settings(max_examples=200)
@given(TEXT.filter(lambda text: not set(text) & {*"<&\\"}))
def test_text_without_markup_loses_controls_and_space_only(text):
    expected = text.replace("\r\n", "\n")
    for char in "\r\v\f\x85":
        expected = expected.replace(char, "\n")
    controls = {chr(i) for i in (*range(32), *range(127, 160))} - {"\n", "\t"}
    expected = "".join(char for char in expected if char not in controls)
    assert clean(text) == strip_space(expected)


@pytest.mark.parametrize(
    "text",
    [
        "Dear <name>, call <tel_num>, write to <address> or <sam@example.com>",
        "see <https://x.example/a?b=c&d=e> at <date>, <time>",
        *["a < b", "I <3 you", "1 << 2 >> 1", "x<y && y>z", "a<>b", "<-- look", "a --> b <!-- c"],
        *[
            "List<String> x = new ArrayList<>();",
            "Map<String, List<Integer>>",
            "set<b> y; vector<a>",
        ],
        *[
            "for(i=0;i<a.length;i++) b>c",
            "if (a<p && q>r)",
            "<a or b=c>d",
            "<b and c>",
            "<i.e. this>",
        ],
        *[
            "cat <<EOF\nx\nEOF",
            "<%= x %>",
            "<?php echo 1 ?>",
            "<T extends A>",
            "<body_text>",
            "<u>",
        ],
        "<config><timeout>5</timeout><title>App</title></config>",
        '<log4j><level value="debug"/><code>3</code></log4j>',
        "<soap:Envelope><soap:Body>x</soap:Body></soap:Envelope>",
        *["AT&T; Q&notes; R&regards;", "&nbsp", "a & b", "100%&more;", "{{name}} ${x} %s {0}"],
        *[r"C:\new", r"\\nas\new", r"share\new", r"\d+\n."],
    ],
)
def test_text_that_looks_like_markup_stays(text):
    assert clean(text) == text


OUTLOOK = """<html xmlns:o="urn:schemas-microsoft-com:office:office"><head>
<meta name=Generator content="Microsoft Word 15 (filtered medium)"><!--[if !mso]><style>v\\:*
{behavior:url(#default#VML);}</style><![endif]--><style><!-- p.MsoNormal {margin:0cm} --></style>
<!--[if gte mso 9]><xml><o:shapedefaults v:ext="edit" /></xml><![endif]--></head>
<body lang=EN-GB link="#0563C1" style='word-wrap:break-word'><div class=WordSection1>
<p class=MsoNormal>Hello team,<o:p></o:p></p><p class=MsoNormal><o:p>&nbsp;</o:p></p>
<p class=MsoNormal>the scanner <b>beeps</b>
twice.<o:p></o:p></p><p class=MsoListParagraph style='text-indent:-18.0pt'><![if !supportLists]>
<span style='font:7.0pt "Times New Roman"'>-&nbsp;&nbsp;</span><![endif]>once a day<o:p></o:p></p>
<p class=MsoNormal><img width=120 id="Picture_x0020_1" src="cid:image001.png@01DB" alt="logo > x">
<?xml:namespace prefix = o ns = "urn:schemas-microsoft-com" /></p></div></body></html>"""
GMAIL = """<div dir="ltr">Hi,<div><br></div><div>I can&#39;t log in &amp; reset.</div><div><ul>
<li>Chrome</li><li><p>Firefox</p></li></ul></div><div>Thanks<br clear="all"></div></div><br>
<div class="gmail_quote"><div dir="ltr" class="gmail_attr">On Mon, 3 Feb 2025 at 10:00, Help &lt;<a
href="mailto:help@x.example">help@x.example</a>&gt; wrote:<br></div><blockquote
class="gmail_quote" style="margin:0px">Older</blockquote></div>"""
APPLE = """<html><head><meta http-equiv="content-type" content="text/html; charset=us-ascii"></head>
<body style="overflow-wrap: break-word;">Printer is dead.<br id="lineBreak"><div><br><blockquote
type="cite"><div>On 3 Feb 2025, at 10:00, Help &lt;help@x.example&gt; wrote:</div><br
class="Apple-interchange-newline"><div>Old</div></blockquote></div><br></body></html>"""
OUTLOOK_WEB = """<div class="elementToProof" style="font-family: Aptos">Still broken</div>
<div id="appendonsend"></div><hr style="width:98%" tabindex="-1"><div id="divRplyFwdMsg" dir="ltr">
<b>From:</b> Help<br><b>Sent:</b> Monday<br><div>&nbsp;</div></div><div>Old</div>"""
ZENDESK = """<div class="zd-comment" dir="auto"><p dir="auto">Order <a
href="https://x.example/1?a=1&amp;b=2" rel="noopener noreferrer">#1</a> is late.</p>
<pre><code class="language-text">if (a &lt; b) {
    run();
}</code></pre></div>"""


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("text", "seen", "without_quotes"),
    [
        (OUTLOOK, "Hello team,\n\nthe scanner beeps twice.\n\n- once a day", None),
        (
            GMAIL,
            "Hi,\n\nI can't log in & reset.\n- Chrome\n- Firefox\n\nThanks\n\n"
            "On Mon, 3 Feb 2025 at 10:00, Help <help@x.example> wrote:\n\nOlder",
            "Hi,\n\nI can't log in & reset.\n- Chrome\n- Firefox\n\nThanks",
        ),
        (
            APPLE,
            "Printer is dead.\n\nOn 3 Feb 2025, at 10:00, Help <help@x.example> wrote:\n\nOld",
            "Printer is dead.",
        ),
        (OUTLOOK_WEB, "Still broken\n\nFrom: Help\nSent: Monday\nOld", "Still broken"),
        (ZENDESK, "Order #1 is late.\n\nif (a < b) {\n    run();\n}", None),
        ('<div class="gmail_quote">Forwarded: help</div>', "Forwarded: help", None),
        ("<p>Neu</p><blockquote type=cite>Alt</blockquote>", "Neu\n\nAlt", "Neu"),
        (
            "<table border=0><tr><td nowrap>Name<td>Sam</tr><tr><td><table><tr><td>City</td>"
            "<td>Oslo</td></tr></table></td></tr></table>after",
            "Name Sam\n\nCity Oslo\n\nafter",
            None,
        ),
        ("<p>one</p><script>if (a<b) '<p>no</p>'</script><p>two</p>", "one\n\ntwo", None),
        ("<html><head><body>never closed<p>two", "never closed\n\ntwo", None),
        ("<style type='x'>cut here <br>two", "cut here\ntwo", None),
        ("<!--[if !mso]><!-->seen<!--<![endif]--><br>", "seen", None),
        ("see --> <!-- hidden --> x<br>y", "see --> x\ny", None),
        ("<ol><li>one</li><li>two<ul><li>in</li></ul></li></ol>", "- one\n- two\n- in", None),
        ("<P>ONE<BR>TWO</P>", "ONE\nTWO", None),
        ("/srv/<b>x</b>.html", "/srv/x.html", None),
        ("a <b>bold</b>\n<i>line</i> <name>", "a bold\nline <name>", None),
        ('<a href="x"target="_blank">link</a> <address>', "link <address>", None),
        ("<p>&lt;name&gt; &amp;lt;&nbsp;x &what; &copy</p>", "<name> &lt; x &what; &copy", None),
        ("Müller &amp; Sohn &#8364;5 &uuml;&nbsp;&#13;&#x1;!", "Müller & Sohn €5 ü \n!", None),
    ],
)  # fmt: skip
def test_html_becomes_what_a_reader_sees(text, seen, without_quotes):
    assert remove_html(text) == seen
    assert remove_html(text, drop_quotes=True) == (without_quotes or seen)


@pytest.mark.parametrize(
    "piece", ["a<br>", "<div>", "<!--", "&amp;", "<style>", "<a href='", "</i><b>"]
)
def test_long_html_takes_no_long_time(piece):
    assert isinstance(remove_html(piece * 5_000, drop_quotes=True), str)


@pytest.mark.parametrize(
    ("literal", "expected"),
    [
        (r"Hello,\n\nfirst line\nsecond line", "Hello,\n\nfirst line\nsecond line"),
        (r"Hello.\r\nBye", "Hello.\nBye"),
        (r"Hello\n- one\n- two", "Hello\n- one\n- two"),
        (r"Hallo\nÜber uns", "Hallo\nÜber uns"),
        (r"The end.\n", "The end."),
        ("The end.\\n\\nBye\n", "The end.\n\nBye"),
        (r"Hello,\n\n\tItem", "Hello,\n\n\\tItem"),
        (r"<p>Hello</p>\n<p>World</p>\n", "<p>Hello</p>\n<p>World</p>"),
        (r"Hi,\n\nC:\new\r and \\nas\new.\n\nBye", "Hi,\n\nC:\\new\\r and \\\\nas\\new.\n\nBye"),
        ("see:\\nC:\\new\\notes\\n\\nBye", "see:\nC:\\new\\notes\n\nBye"),
        *[(text, text) for text in (r"see C:\new", r"share\new", r"docs\sub\new. Bye", r"c:\n")],
        *[(text, text) for text in (r"the pattern \d+\n.", r"\\srv\new\nx", r"one\ntwo", r"\new")],
        ("real\nline, then print('a.\\n')", "real\nline, then print('a.\\n')"),
    ],
)  # fmt: skip
def test_literal_newlines_become_real_and_paths_stay(literal, expected):
    assert unescape_newlines(literal) == expected


@pytest.mark.parametrize(
    "quote",
    [
        "On Mon, Feb 3, 2025 at 10:00 AM Help <help@x.example> wrote:\n> old\n> text",
        "Am 03.02.2025 um 10:00 schrieb Sam <s@x.example>:\n> alt",
        "Le lun. 3 févr. 2025 à 10:00, Aide <a@x.example> a écrit :\n> vieux",
        "From: Help <h@x.example>\nSent: Monday, February 3, 2025\nTo: Sam\nSubject: Re: x\n\nOld",
        "Von: Hilfe <h@x.example>\nGesendet: Montag\nAn: Sam\nBetreff: AW: x\n\nAlt",
        "-----Original Message-----\nFrom: Help\nSent: Monday\nSubject: x\n\nOld",
    ],
)
def test_quoted_mails_are_cut_and_nothing_else(quote):
    newest = "New:\n    indented\n\n\n- item\n-- \nSam"
    assert remove_quotes(f"{newest}\n\n{quote}") == newest
    assert remove_quotes(newest) == newest
    assert remove_quotes(quote) == quote


def test_quotes_are_looked_for_in_long_text_without_long_time():
    # Minutes, if time grew with the square.
    for text in ("On Monday we saw this. " * 4_000, "a" + "\n" * 50_000 + "b"):
        assert remove_quotes(text) == text


def test_spaces_without_width_and_line_breaks_in_labels():
    assert strip_space("\ufeff\u200b\xa0 a\u200bb \u2003\n") == "a\u200bb"
    assert join_lines("Billing \n and\n\nPayments") == "Billing and Payments"

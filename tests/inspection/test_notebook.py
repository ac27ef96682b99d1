"""The table for notebooks."""

from html.parser import HTMLParser

from generated import graph_of

from pccompile.passes import run
from pccompile.rules import ZIL, literal_program


class Tags(HTMLParser):
    """Collects the tags and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


def page_of(layers: int, suffix: str = "") -> Tags:
    return Tags(run(literal_program(ZIL(), graph_of([[]] * layers, suffix)), ZIL.passes)._repr_html_())


def test_every_vertex_has_a_row_and_html_in_names_and_sources_is_text():
    page = page_of(3, "<img src=x>&")
    assert page.tags.count("tr") == 1 + 8
    assert "img" not in page.tags and "b" in page.tags
    assert "layer0<img src=x>&" in page.texts
    assert "net.py:1 in forward: <b>x</b>" in page.texts


def test_repeated_blocks_are_in_an_element_that_opens():
    page = page_of(40)
    assert page.tags.count("details") == 1
    assert "12 more of 6 like these: layer3.weight to layer38" in page.texts
    assert page.tags.count("tr") == page.tags.count("thead") + 40 * 2 + 2

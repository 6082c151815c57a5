"""A page as a tree of elements, made by the standard library's parser alone."""

import html.parser

_VOID = ("meta", "br", "hr", "img", "link", "input", "base")


class Node:
  """An element: name, attributes, and children, which are nodes or strings."""

  def __init__(self, name, attributes=()):
    self.name, self.attributes, self.children = name, dict(attributes), []

  def walk(self):
    yield self
    for child in self.children:
      if isinstance(child, Node):
        yield from child.walk()

  def all(self, name=None, css=None):
    return [node for node in self.walk() if (name is None or node.name == name)
            and (css is None or css in (node.attributes.get("class") or "").split())]

  def one(self, name=None, css=None):
    found = self.all(name, css)
    assert found, f"no {name} {css}"
    return found[0]

  def by_id(self, key):
    return next(node for node in self.walk() if node.attributes.get("id") == key)

  @property
  def text(self):
    return "".join(child if isinstance(child, str) else child.text for child in self.children)


class _Builder(html.parser.HTMLParser):
  def __init__(self):
    super().__init__(convert_charrefs=True)
    self.root = Node("document")
    self._open = [self.root]

  def handle_starttag(self, tag, attrs):
    node = Node(tag, attrs)
    self._open[-1].children.append(node)
    if tag not in _VOID:
      self._open.append(node)

  def handle_endtag(self, tag):
    assert self._open[-1].name == tag, f"</{tag}> closes <{self._open[-1].name}>"
    self._open.pop()

  def handle_data(self, data):
    self._open[-1].children.append(data)


def parse(path) -> Node:
  builder = _Builder()
  builder.feed(path.read_text(encoding="utf-8"))
  builder.close()
  assert builder._open == [builder.root], "an element is not closed"
  return builder.root


def round_table(page) -> dict[str, list[str]]:
  """{name of the quantity: its cell for each round}."""
  rows = page.by_id("numbers").one("tbody").all("tr")
  return {"".join(part for part in row.one("th").children if isinstance(part, str)):
          [cell.text for cell in row.all("td")] for row in rows}

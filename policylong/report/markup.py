"""HTML that cannot be injected into: every plain string is escaped, only `element` makes tags.

`Markup` is text that is already HTML. Anything else that reaches the page (a token, a chunk, a file
name, a config value) is a plain `str` and is escaped where it enters an element or an attribute.
"""

import html

_VOID = frozenset(("meta", "br", "hr"))
# Control characters and half characters are not allowed in HTML: they are shown as their pictures.
_VISIBLE = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"} | {0x7F: "\u2421"}
_VISIBLE |= dict.fromkeys(range(0xD800, 0xE000), "\ufffd")


class Markup(str):
  """A string that is HTML already."""

  __slots__ = ()


def escape(value) -> Markup:
  """Any value as HTML text, also safe inside a quoted attribute; Markup passes as it is."""
  if isinstance(value, Markup):
    return value
  return Markup(html.escape(str(value).translate(_VISIBLE), quote=True))


def join(parts, separator: str = "") -> Markup:
  """The parts one after another, each escaped unless it is Markup."""
  return Markup(escape(separator).join(escape(part) for part in parts))


def element(name: str, *children, **attributes) -> Markup:
  """`<name attributes>children</name>`; children are escaped unless they are Markup.

  An attribute's trailing underscore goes (`class_`), other underscores become hyphens; None leaves it out.
  """
  written = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
                    for key, value in attributes.items() if value is not None)
  if name in _VOID:
    return Markup(f"<{name}{written}>")
  return Markup(f"<{name}{written}>{join(children)}</{name}>")


def table(head, rows, **attributes) -> Markup:
  """A table whose first column names the row; it scrolls sideways where the screen is narrow."""
  header = element("tr", *(element("th", cell, scope="col") for cell in head))
  body = [element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:]))
          for row in rows]
  return element("div", element("table", element("thead", header), element("tbody", *body), **attributes),
                 class_="wide")


def disclosure(summary, *children, **attributes) -> Markup:
  """A part that opens on a click."""
  return element("details", element("summary", summary), *children, **attributes)

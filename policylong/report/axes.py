"""A plot frame as inline SVG: scales, grid, ticks and marks; colours come from the page's style sheet."""

import math
from collections.abc import Sequence

from policylong.report.markup import Markup, element, join

WIDTH, HEIGHT = 460, 290
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 46


class Axes:
  """Collects marks in data coordinates and draws them into one frame.

  x and y are (low, high) ranges; `log_y` needs a low above 0. Labels carry their unit.
  """

  def __init__(self, x: tuple[float, float], y: tuple[float, float], x_label: str, y_label: str, *,
               log_y: bool = False):
    self._x, self._y, self._log_y = _widened(x), _widened(y), log_y
    self._labels = (x_label, y_label)
    self._marks: list[Markup] = []
    self._ticks: list[Markup] = []

  def px(self, x: float) -> float:
    """Data x in drawing units."""
    low, high = self._x
    return LEFT + (x - low) / (high - low) * (WIDTH - LEFT - RIGHT)

  def py(self, y: float) -> float:
    """Data y in drawing units; what lies outside stays at the frame's edge."""
    low, high = self._y
    if self._log_y:
      low, high, y = math.log(low), math.log(high), math.log(max(y, low))
    part = min(max((y - low) / (high - low), 0.0), 1.0)
    return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)

  def x_ticks(self, values: Sequence[float], names: Sequence[str]) -> None:
    """Names below the frame."""
    for value, name in zip(values, names):
      self._ticks.append(element("text", name, x=_n(self.px(value)), y=HEIGHT - BOTTOM + 17, class_="tick",
                                 text_anchor="middle"))

  def y_ticks(self, values: Sequence[float], names: Sequence[str]) -> None:
    """Names left of the frame, each with a grid line."""
    for value, name in zip(values, names):
      y = _n(self.py(value))
      self._ticks.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
      self._ticks.append(element("text", name, x=LEFT - 7, y=_n(self.py(value) + 4), class_="tick",
                                 text_anchor="end"))

  def line(self, xs, ys, color: str, title: str = "", css: str = "line") -> None:
    """A polyline; a gap where y is not finite."""
    points, pen = [], "M"
    for x, y in zip(xs, ys):
      if math.isfinite(y):
        points.append(f"{pen}{_n(self.px(x))} {_n(self.py(y))}")
        pen = "L"
      else:
        pen = "M"
    if points:
      self._marks.append(element("path", _title(title), d="".join(points), class_=css, style=f"stroke:{color}"))

  def steps(self, edges, heights, color: str, title: str = "") -> None:
    """A histogram's outline: heights[i] between edges[i] and edges[i + 1]."""
    xs = [edge for edge in edges for _ in range(2)][1:-1]
    self.line(xs, [height for height in heights for _ in range(2)], color, title)

  def bar(self, x: float, width: float, y: float, color: str, title: str = "") -> None:
    """A bar from the lower edge to y, centred on x; width in drawing units."""
    top, base = self.py(y), HEIGHT - BOTTOM
    self._marks.append(element("rect", _title(title), x=_n(self.px(x) - width / 2), y=_n(top), width=_n(width),
                               height=_n(max(base - top, 0.75)), style=f"fill:{color}", class_="bar"))

  def interval(self, x: float, low: float, high: float, css: str = "interval", shift: float = 0.0,
               color: str | None = None) -> None:
    """A vertical line from low to high, `shift` drawing units right of x."""
    at = _n(self.px(x) + shift)
    self._marks.append(element("line", x1=at, x2=at, y1=_n(self.py(low)), y2=_n(self.py(high)), class_=css,
                               style=color and f"stroke:{color}"))

  def dot(self, x: float, y: float, color: str, title: str = "", radius: float = 4.0, css: str = "dot") -> None:
    """One point."""
    self._marks.append(element("circle", _title(title), cx=_n(self.px(x)), cy=_n(self.py(y)), r=radius,
                               style=f"fill:{color}", class_=css))

  def note(self, x: float, y: float, text: str, *, dx: float = 0, dy: float = 0, anchor: str = "middle",
           css: str = "note") -> None:
    """A few words at a point, moved by (dx, dy) drawing units."""
    self._marks.append(element("text", text, x=_n(self.px(x) + dx), y=_n(self.py(y) + dy), class_=css,
                               text_anchor=anchor))

  def rule(self, *, x: float | None = None, y: float | None = None, css: str = "rule") -> None:
    """A line across the whole frame at x or at y."""
    x1, x2 = (LEFT, WIDTH - RIGHT) if x is None else (self.px(x),) * 2
    y1, y2 = (TOP, HEIGHT - BOTTOM) if y is None else (self.py(y),) * 2
    self._marks.append(element("line", x1=_n(x1), x2=_n(x2), y1=_n(y1), y2=_n(y2), class_=css))

  def band(self, low: float, high: float, color: str) -> None:
    """Shades the frame between two x, below everything else."""
    self._ticks.append(element("rect", x=_n(self.px(low)), y=TOP, width=_n(self.px(high) - self.px(low)),
                               height=HEIGHT - TOP - BOTTOM, style=f"fill:{color}", class_="band"))

  def svg(self, description: str) -> Markup:
    """The finished drawing."""
    x_label, y_label = self._labels
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return element(
        "svg", *self._ticks,
        element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM, class_="axis"),
        *self._marks,
        element("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 8, class_="label", text_anchor="middle"),
        element("text", y_label, x=14, y=middle, class_="label", text_anchor="middle",
                transform=f"rotate(-90 14 {middle})"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=description, class_="plot")


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
  """Round numbers within [low, high], 1, 2 or 5 times a power of ten apart, at most `most` + 1 of them."""
  if not high > low:
    return [low]
  step = 10.0 ** math.floor(math.log10((high - low) / most))
  step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
  first = math.ceil(low / step - 1e-9)
  return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def legend(entries: Sequence[tuple[str, str]]) -> Markup:
  """Colour swatches with their meaning, as text that wraps on a narrow screen."""
  return element("p", *(element("span", element("i", style=f"background:{color}"), name) for color, name in entries),
                 class_="legend")


def _title(text):
  return element("title", text) if text else join(())


def _widened(range_):
  low, high = range_
  return (low, high) if high > low else (low, low + 1.0)


def _n(value: float) -> str:
  return f"{value:.1f}"

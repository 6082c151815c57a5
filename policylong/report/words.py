"""Numbers as the page writes them: one format per kind of quantity; "–" where there is none."""

import math
import numbers

NONE = "–"


def _absent(value) -> bool:
  return not isinstance(value, numbers.Real) or not math.isfinite(value)


def count(value) -> str:
  """A whole number: 12,345."""
  return NONE if _absent(value) else f"{value:,.0f}"


def decimal(value, digits: int = 2) -> str:
  """A number with a fixed number of decimals, a true minus sign and no negative zero."""
  return NONE if _absent(value) else f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "\u2212")


def share(value) -> str:
  """A fraction as a percentage: 5.1%; below 1% with two decimals."""
  if _absent(value):
    return NONE
  return f"{100 * value:.{2 if 0 < value < 0.01 else 1}f}%"


def of(part, whole) -> str:
  """"12 of 240"."""
  return f"{count(part)} of {count(whole)}"


def duration(seconds) -> str:
  """A time as people say it: "45 seconds", "12 minutes", "2 h 05 min", "3.2 days"."""
  if _absent(seconds):
    return NONE
  seconds = max(0.0, seconds)
  if seconds < 89.5:
    return plural(round(seconds), "second")
  minutes = round(seconds / 60)
  if minutes < 90:
    return f"{minutes} minutes"
  if minutes < 36 * 60:
    return f"{minutes // 60} h {minutes % 60:02d} min"
  return f"{seconds / 86400:.1f} days"


def setting(value) -> str:
  """A config value as a person would write it."""
  return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def threshold(value) -> str:
  """A threshold with three significant digits: 0.2, 0.213."""
  return NONE if _absent(value) else f"{value:.3g}"


def plural(number, singular: str, several: str | None = None) -> str:
  """"1 root", "2 roots"."""
  return f"{count(number)} {singular if number == 1 else several or singular + 's'}"

"""Long sequences drawn as their spans: one bar, coloured by role, in tokens."""

import numpy as np

from policylong.report.axes import legend, nice_ticks
from policylong.report.markup import Markup, disclosure, element, table
from policylong.report.tables import RoundData, Run
from policylong.report.words import NONE, count, decimal, plural, share

ROLES = {"positive": "#009e73", "negative": "#e69f00", "filler": "#c9cdd4", "root": "#0072b2"}
_COLUMNS = ("sequence", "start", "end", "role", "doc_id", "chunk_id", "position", "gain", "rank")
_SHOWN = 2
_LABELLED = 0.09  # of the sequence: a narrower positive has its gain in the tooltip alone


def key() -> Markup:
  """The legend of the roles."""
  return legend([(color, role + ", with its gain" * (role == "positive")) for role, color in ROLES.items()])


def drawings(run: Run) -> list[Markup]:
  """One sequence of the first and one of the last round, or two of a single round."""
  rounds = [round_ for round_ in run.rounds if round_.rows("sequences")]
  chosen = [(rounds[0], 1), (rounds[-1], 1)] if len(rounds) > 1 else [(round_, _SHOWN) for round_ in rounds]
  return [_drawing(run, round_, number, spans) for round_, most in chosen for number, spans in _richest(round_, most)]


def _richest(round_: RoundData, most: int) -> list[tuple[int, list[dict]]]:
  """The sequences with most positive tokens, each with its spans in order."""
  columns = round_.columns("sequences", _COLUMNS)
  if columns is None:
    return []
  numbers, index = np.unique(columns["sequence"], return_inverse=True)
  lengths = np.where(columns["role"] == "positive", columns["end"] - columns["start"], 0)
  best = np.argsort(-np.bincount(index, lengths), kind="stable")[:most]
  found = []
  for place in best:
    rows = np.flatnonzero(index == place)
    rows = rows[np.argsort(columns["start"][rows], kind="stable")]
    found.append((int(numbers[place]), [{name: columns[name][row] for name in _COLUMNS} for row in rows]))
  return found


def _drawing(run, round_, number, spans):
  length = max(int(span["end"]) for span in spans)
  rects = [element("rect", element("title", _told(span)), x=int(span["start"]), y=0,
                   width=int(span["end"] - span["start"]), height=1, class_="span",
                   style=f"fill:{ROLES.get(span['role'], '#ffffff')}") for span in spans]
  bar = element("svg", *rects, viewBox=f"0 0 {length} 1", preserveAspectRatio="none", role="img",
                aria_label=f"sequence {number} of round {round_.index}", class_="spans")
  ticks = nice_ticks(0, length, 8)
  scale = element("div", *(element("span", count(tick), style=_place(tick / length)) for tick in ticks), class_="scale")
  gains = [element("span", decimal(float(span["gain"])), style=_place((span["start"] + span["end"]) / 2 / length))
           for span in spans if span["role"] == "positive" and span["end"] - span["start"] >= _LABELLED * length]
  tokens = {role: sum(int(span["end"] - span["start"]) for span in spans if span["role"] == role) for role in ROLES}
  parts = [f"{plural(sum(span['role'] == role for span in spans), role, role if role == 'filler' else None)} "
           f"{share(size / length)}" for role, size in tokens.items() if size]
  notes = [f"{plural(length, 'token')}: " + ", ".join(parts) + "."]
  wanted = run.setting("synthesis.sequence_length")
  if wanted is not None and wanted != length:
    notes.append(f"The config asks for {count(wanted)} tokens.")
  if gaps := _gaps(spans):
    notes.append(f"The spans leave a gap or overlap at token {', '.join(map(count, gaps[:5]))}.")
  rows = [(f"{count(span['start'])}–{count(span['end'])}", span["role"], span["chunk_id"] or span["doc_id"],
           decimal(float(span["gain"])), count(span["rank"]) if span["role"] in ("positive", "negative") else NONE,
           span["doc_id"]) for span in spans]
  return element("figure", element("figcaption", element("b", f"Round {round_.index}, sequence {number}"),
                                   element("span", " ".join(notes))),
                 element("div", bar, *gains, class_="bar-of-spans"), scale, element("p", "token", class_="unit"),
                 disclosure("Spans as a table", table(("tokens", "role", "chunk, or root", "gain", "rank", "for root"),
                                                      rows)), class_="sequence")


def _told(span) -> str:
  words = [span["role"], f"tokens {count(span['start'])}–{count(span['end'])}"]
  if span["chunk_id"]:
    words.append(f"chunk {span['chunk_id']}")
  if span["role"] == "positive":
    words += [f"gain {decimal(float(span['gain']))}", f"explains token {count(span['position'])}"]
  if span["role"] in ("positive", "negative"):
    words.append(f"rank {count(span['rank'])}")
  return " · ".join([*words, f"root {span['doc_id']}"])


def _place(part: float) -> str:
  """Centres a label over a part of the width; at the ends it stays inside."""
  shift = 0 if part < 0.03 else 100 if part > 0.96 else 50
  return f"left:{100 * part:.2f}%;transform:translateX(-{shift}%)"


def _gaps(spans) -> list[int]:
  ends = [0, *(int(span["end"]) for span in spans)]
  return [end for end, span in zip(ends, spans) if end != int(span["start"])]

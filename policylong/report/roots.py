"""A few roots in full: the text shaded by entropy, the anchors, and what verification said of them."""

import math

import numpy as np

from policylong.report import evidence
from policylong.report.markup import Markup, disclosure, element, join
from policylong.report.tables import RoundData, Run
from policylong.report.words import count, decimal, of, plural

LEVELS = 16  # shades of entropy; level 0 is white
_CONTEXT = 16  # tokens shown on each side of an anchor
_EXCERPT = 180  # characters of a chunk before it is opened
_ACCEPTED, _REFUSED, _CONTROLS = 4, 2, 1  # candidates shown for an anchor
_VERDICT_COLUMNS = ("doc_id", "position", "chunk_id", "kind", "rank", "similarity", "entropy_before", "entropy_after",
                    "nll_before", "nll_after", "gain", "accepted")


class ChunkTexts:
  """Chunk texts for the page; `available` turns False when the corpus cannot give one."""

  def __init__(self, chunk_text):
    self._chunk_text = chunk_text
    self.available = chunk_text is not None

  def __call__(self, chunk_id: str) -> str | None:
    """The text of a chunk, or None."""
    if self._chunk_text is None:
      return None
    try:
      return self._chunk_text(chunk_id)
    except (KeyError, LookupError, OSError, ValueError):
      self.available = False
      return None


def shade(entropy: float, top: float) -> int | None:
  """The level of an entropy in nats, 0 .. LEVELS - 1, never falling as entropy rises; None where there is none."""
  if not math.isfinite(entropy):
    return None
  return min(LEVELS - 1, max(0, int(LEVELS * entropy / top))) if top > 0 else 0


def entropy_top(run: Run) -> float:
  """The entropy, in nats, that gets the darkest shade: one scale for the whole page, 99.5% of tokens below."""
  counts = sum(round_.entropy_histogram for round_ in run.rounds)
  if not np.any(counts):
    return 0.0
  below = np.cumsum(counts) / np.sum(counts)
  return float((np.searchsorted(below, 0.995) + 1) * 0.25)


def scale_key(top: float) -> Markup:
  """The legend of the shading."""
  boxes = [element("i", class_=f"e{level}") for level in range(LEVELS)]
  return element("p", element("span", "entropy 0"), element("span", *boxes, class_="ramp"),
                 element("span", f"{decimal(top, 1)} nats or more"),
                 element("span", element("span", "anchor", class_="a"), " above the root's threshold"),
                 element("span", element("a", "1", class_="n"), " shown below the text"), class_="legend key")


def chosen(round_: RoundData, most: int) -> list[str]:
  """Ids of the roots to show: those with most positives first, then those with most anchors."""
  roots = round_.columns("roots", ("doc_id",))
  if roots is None:
    return []
  weight = {doc_id: [0, 0] for doc_id in roots["doc_id"]}
  for place, table in enumerate(("positives", "anchors")):
    rows = round_.columns(table, ("doc_id",))
    for doc_id in rows["doc_id"] if rows is not None else ():
      if doc_id in weight:
        weight[doc_id][place] += 1
  return sorted(weight, key=lambda doc_id: [-n for n in weight[doc_id]])[:most]


def round_roots(run: Run, round_: RoundData, texts: ChunkTexts, top: float) -> list[Markup]:
  """The chosen roots of a round, each an <article>."""
  doc_ids = chosen(round_, run.setting("report.roots", 3))
  roots = _by_root(round_.columns("roots", ("doc_id", "source", "start", "end", "pieces", "entropy", "nll", "threshold",
                                            "policy_step"), doc_ids))
  anchors = _by_root(round_.columns("anchors", ("doc_id", "position", "entropy"), doc_ids))
  verdicts = _by_root(round_.columns("verdicts", _VERDICT_COLUMNS, doc_ids))
  positives = _by_root(round_.columns("positives", ("doc_id", "chunk_id"), doc_ids))
  most = run.setting("report.anchors_per_root", 4)
  return [_Root(f"r{round_.index}-{number}", roots[doc_id][0], anchors.get(doc_id, []), verdicts.get(doc_id, []),
                len(positives.get(doc_id, [])), most, top, run.epsilon(round_),
                round_.summary.get("loss_margin")).markup(texts)
          for number, doc_id in enumerate(doc_ids, 1) if doc_id in roots]


def _by_root(columns) -> dict[str, list[dict]]:
  rows: dict[str, list[dict]] = {}
  if columns is not None:
    for values in zip(*columns.values()):
      row = dict(zip(columns, values))
      rows.setdefault(row["doc_id"], []).append(row)
  return rows


class _Root:
  """One root with its anchors and verdicts; `key` is unique on the page."""

  def __init__(self, key, root, anchors, verdicts, positives, most, top, epsilon, loss_margin):
    self.key, self.root, self.top, self.positives = key, root, top, positives
    self.epsilon, self.loss_margin = epsilon, loss_margin
    self.anchors = {int(anchor["position"]): anchor for anchor in anchors}
    self.verdicts: dict[int, list[dict]] = {}
    for row in verdicts:
      self.verdicts.setdefault(int(row["position"]), []).append(row)
    self.shown = sorted(self.anchors, key=self._worth, reverse=True)[:most]

  def _worth(self, position):
    """Best first: an accepted gain before any refused one, then the gain, then the entropy."""
    rows = [row for row in self.verdicts.get(position, []) if row["kind"] != "control"]
    best = max(((bool(row["accepted"]), row["gain"]) for row in rows), default=(False, -math.inf))
    return *best, float(self.anchors[position]["entropy"])

  def markup(self, texts) -> Markup:
    """The root's article."""
    root, tokens = self.root, len(self.root["pieces"])
    facts = [root["source"], f"characters {count(root['start'])}–{count(root['end'])}", plural(tokens, "token"),
             f"threshold {decimal(root['threshold'])} nats", plural(len(self.anchors), "anchor"),
             f"policy at step {count(root['policy_step'])}"]
    if self.anchors and not self.verdicts:
      facts.append("no verdicts")
    hidden = len(self.anchors) - len(self.shown)
    more = element("p", f"{plural(hidden, 'more anchor')} not shown: "
                        f"{'they are' if hidden > 1 else 'it is'} only underlined in the text.", class_="quiet")
    inside = element("div", element("p", " · ".join(facts), class_="quiet"),
                     element("div", *map(self._token, range(tokens)), class_="text shaded", lang=""),
                     *(self._anchor(number, position, texts) for number, position in enumerate(self.shown, 1)),
                     more if hidden > 0 else "", class_="inside")
    head = join((element("h4", root["doc_id"]),
                 element("span", f" · {plural(self.positives, 'positive')}", class_="quiet")))
    return disclosure(head, inside, class_="root", id=self.key, open="" if self.key.endswith("-1") else None)

  def _token(self, position):
    piece, entropy, nll = (self.root[name][position] for name in ("pieces", "entropy", "nll"))
    entropy, nll = (math.nan if value is None else value for value in (entropy, nll))
    level = shade(entropy, self.top)
    told = f"token {position} {piece!r} · " + (
        f"entropy {decimal(entropy)} nats · nll {decimal(nll)} nats" if level is not None else
        "the first token: nothing predicts it")
    css = "e0" if level is None else f"e{level}"
    if position not in self.anchors:
      return element("span", piece, class_=css, title=told)
    token = element("span", piece, class_=f"{css} a", title=told + " · anchor")
    if position not in self.shown:
      return token
    number = self.shown.index(position) + 1
    return join((token, element("a", number, class_="n", href=f"#{self.key}-a{number}")))

  def _anchor(self, number, position, texts):
    pieces = self.root["pieces"]
    around = element("p", "… ", "".join(pieces[max(0, position - _CONTEXT):position]),
                     element("mark", pieces[position]), "".join(pieces[position + 1:position + _CONTEXT]), " …",
                     class_="text around")
    rows = sorted(self.verdicts.get(position, []), key=lambda row: -row["gain"])
    retrieved = [row for row in rows if row["kind"] != "control"]
    accepted = [row for row in retrieved if row["accepted"]]
    refused = [row for row in retrieved if not row["accepted"]]
    control = [row for row in rows if row["kind"] == "control"]
    scale = max((max(row["entropy_before"], row["entropy_after"]) for row in rows), default=1.0) or 1.0
    parts = []
    for name, group, most in (("accepted", accepted, _ACCEPTED), ("refused", refused, _REFUSED),
                              ("control", control, _CONTROLS)):
      parts += [self._pair(name, row, scale, texts) for row in group[:most]]
    passing = sum(bool(row["accepted"]) for row in control)
    told = (f"{of(len(accepted), len(retrieved))} retrieved chunks accepted; {of(passing, len(control))} random ones "
            "would pass. Shown: the best of each.")
    entropy = float(self.anchors[position]["entropy"])
    head = element("h5", element("span", number, class_="n"), " ", element("code", repr(pieces[position])),
                   f" at token {count(position)}: entropy {decimal(entropy)} nats")
    summary = element("p", told if rows else "No verdict for this anchor.", class_="quiet")
    return element("section", head, around, summary, *parts, class_="anchor", id=f"{self.key}-a{number}")

  def _pair(self, name, row, scale, texts):
    before, after, gain = (float(row[key]) for key in ("entropy_before", "entropy_after", "gain"))
    words = {"accepted": "✓ accepted", "refused": "✗ refused", "control": "◦ best control"}[name]
    if name == "control":
      origin = "random chunk, never used"
    elif row["rank"] < 0:
      origin = "found by another anchor"
    else:
      origin = f"rank {count(row['rank'])} · similarity {decimal(float(row['similarity']))}"
    drop = float(row["nll_before"]) - float(row["nll_after"])
    if name == "refused" and self.epsilon is not None and gain > self.epsilon:
      origin += " · above ε, but not " + ("right: its token did not become likelier by the margin"
                                         if self.loss_margin is not None and drop <= self.loss_margin else
                                         "by the margin above the control")
    elif name == "accepted":
      origin += " · surer and right" if drop > (self.loss_margin or 0) else " · surer and wrong"
    widths = [f"width:{100 * max(0.0, value) / scale:.1f}%" for value in (before, after)]
    change = element("div", element("span", element("i", style=widths[0], class_="before"),
                                    element("i", style=widths[1], class_="after"), class_="track"),
                     element("span", f"{decimal(before)} → {decimal(after)} nats"),
                     element("span", f"loss {decimal(float(row['nll_before']))} → {decimal(float(row['nll_after']))}",
                             class_="quiet"), class_="change")
    what = element("div", element("b", words), element("span", origin, class_="quiet"), class_="what")
    return element("div", what, change, element("div", f"gain {decimal(gain)}", class_="gain"),
                   self._chunk(row["chunk_id"], int(row["position"]), texts), class_=f"pair {name}")

  def _chunk(self, chunk_id, position, texts):
    text = texts(chunk_id)
    if text is None:
      return element("div", element("code", chunk_id), class_="chunk")
    run = evidence.shared_run(self.root["pieces"], position, text)
    head = join((element("code", chunk_id), " ", element("span", evidence.excerpt(text, run, _EXCERPT))))
    return disclosure(head, element("div", evidence.marked(text, run), class_="text"), class_="chunk")

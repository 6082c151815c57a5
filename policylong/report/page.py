"""The page: what a person who knows the paper needs in order to say whether each round was sane."""

import json
import time
from collections.abc import Callable

from etils import epath

from policylong.report import evaluation, facts, health, plots, roots, sequences, template
from policylong.report.markup import Markup, disclosure, element, escape, join, table
from policylong.report.round_table import round_table
from policylong.report.standing import Standing, standing
from policylong.report.tables import Run, read_run
from policylong.report.words import NONE, count, decimal, of, plural, setting, share, threshold
from policylong.storage.workdir import Workdir, write_atomically

_CHIPS = {"sane": "good", "look closer": "look", "unfinished": "look", "starved": "bad", "wrong": "bad"}


def write_report(workdir, chunk_text: Callable[[str], str] | None, *, shared: bool = False) -> epath.Path:
  """Writes `report/index.html` of a working directory, whole or not at all.

  Args:
    workdir: the run's folder, any fsspec path.
    chunk_text: the text of a chunk by its id; None where the corpus is not there: the page then shows ids.
    shared: whether a run may write it at the same time.

  Returns:
    The page's path.

  Raises:
    UserError: there is no such folder.
  """
  layout = Workdir(workdir)
  run, now = read_run(layout), time.time()
  page = render(run, chunk_text, standing(run, layout, now), now)
  write_atomically(layout.page, page.encode("utf-8"), shared=shared)
  return layout.page


def render(run: Run, chunk_text: Callable[[str], str] | None, stands: Standing, now: float) -> str:
  """The whole page as HTML; while the run is under way it says what is being done, and reloads itself.

  Args:
    run: what is shown.
    chunk_text: as in `write_report`.
    stands: where the run stands.
    now: the time, in seconds since 1970.
  """
  texts = roots.ChunkTexts(chunk_text)
  named = [("rounds", "Was each round sane?", _rounds(run)),
           ("numbers", "Round by round", round_table(run) or _nothing("No round, no numbers.")),
           ("plots", "What changed", _plots(run)),
           *([("benchmarks", "Benchmarks", evaluation.section(run))] if run.evaluations else []),
           *([("roots", "Roots, anchors and verdicts", _roots(run, texts))] if run.screened else []),
           ("sequences", "Training sequences", _sequences(run)),
           ("corpus", "Corpus", _corpus(run)),
           ("run", "The run", _run(run))]
  sections = [element("section", element("h2", title), body, id=key) for key, title, body in named]
  links = element("nav", *(element("a", title, href=f"#{key}") for key, title, _ in named))
  title = f"PolicyLong · {_name(run.setting('model.path', 'run'))}"
  body = join([_header(run, _standing(run, stands, now), links, texts), element("main", *sections),
               element("footer", "Entropies and losses are in nats. Gain = (entropy before − entropy after) / entropy "
                                 "before, with the chunk put in front of the root. Method: arXiv 2604.07809 "
                                 "(PolicyLong), 2510.02330 (EntropyLong).")])
  return template.fill(escape(title), body, live=stands.state == "under way")


def _standing(run, stands, now):
  """What is being done, as it was when the page was written; nothing where the run is done."""
  if stands.state == "done":
    return ""
  if stands.state != "under way":
    return element("p", f"Not under way when this page was written: {stands.life}.", class_="warn")
  written = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
  cells = [element("div", element("dt", name), element("dd", sentence, class_="now")) for name, sentence in stands.facts
           if name != "now"]  # the page is written between two things that are counted
  note = element("p", "Written ", element("span", written, id="written", data_at=round(now)),
                 ", at the end of a stage, and again at the end of the next one; it reloads itself until the run is "
                 "done. From minute to minute: ",
                 element("code", f"python -m policylong.status --workdir={run.directory}"), class_="quiet")
  return element("div", element("p", element("span", "under way", class_="chip look")), element("dl", *cells,
                 class_="facts"), note, id="standing")


def _who_screened(run):
  stale = run.setting("max_staleness", 0)
  if not run.screened:
    return "none screened: the method asks no policy"
  if not stale:
    return "each screened by the policy of that moment"
  if stale >= run.setting("rounds") - 1:
    return "all screened by the base model"
  return f"each screened by the policy of {plural(stale, 'round')} before"


def _header(run, stands, links, texts):
  done = [round_ for round_ in run.rounds if round_.finished]
  model, rounds = run.setting("model.path"), run.setting("rounds")
  seen = [*map(facts.summary, run.rounds), run.final]
  steps = [summary["policy_step"] for summary in seen if summary.get("policy_step") is not None]
  epsilons = [threshold(run.epsilon(round_)) for round_ in run.rounds if run.epsilon(round_) is not None]
  margins = [decimal(margin) for margin in (facts.summary(round_).get("loss_margin") for round_ in run.rounds)
             if margin is not None]
  entries = [
      ("Model", _name(model) if model else NONE, f"scored in {run.setting('model.scoring_dtype', NONE)}"),
      ("Corpus", plural(run.corpus["documents"], "document") if "documents" in run.corpus else NONE,
       f"{count(run.corpus.get('chunks'))} chunks of {count(run.setting('corpus.chunk_chars'))} characters"),
      ("Method", run.setting("method", "policylong"), "how sequences are made"),
      ("Rounds finished", of(len(done), rounds), _who_screened(run)),
      ("Policy at step", " → ".join(map(count, steps)) or NONE,
       "training steps, round by round"),
      *([("α, anchors", setting(run.setting("screening.alpha", NONE)),
          "standard deviations above a root's mean entropy"),
         ("ε, accepted gain", " → ".join(dict.fromkeys(epsilons)) or NONE, _epsilon_source(run))]
        if run.screened else []),
      *([("Loss margin", f"{' → '.join(margins)} nats", "by which the token that stands there must become likelier")]
        if margins else []),
      ("Sequence", f"{count(run.setting('synthesis.sequence_length'))} tokens",
       (f"roots of at most {count(run.setting('screening.root_tokens'))}" if run.screened else "exactly")
       + _begun(run) + "; masked: no document sees another" * bool(run.setting("training.document_masking"))
       + "; weights by LongCE" * bool(run.setting("training.longce"))
       + "; chosen by LongFilter" * bool(run.setting("training.longfilter_share"))),
  ]
  found = [entry for entry in map(health.to_find, map(facts.summary, run.rounds)) if entry]
  if found:
    entries.append(("There was to find, by round", " → ".join(word for word, _ in found),
                    f"in the last round {found[-1][1]}"))
  cells = [element("div", element("dt", name), element("dd", value, element("small", note)))
           for name, value, note in entries]
  warnings = [*_thresholds(run), *run.notes]
  warnings += [f"Round {round_.index}: {note}" for round_ in run.rounds for note in round_.notes]
  if not texts.available:
    warnings.append("Chunks are shown by their ids only: the corpus that holds their texts could not be opened.")
  return element("header", element("div", element("p", "PolicyLong: what the policy chose", class_="over"),
                                   element("h1", _name(model) if model else run.directory),
                                   element("p", run.directory, class_="quiet"), stands,
                                   element("dl", *cells, class_="facts"),
                                   *(element("p", warning, class_="warn") for warning in warnings), links))


def _begun(run):
  """What the model's texts begin with, where they do."""
  tokens = next((found for round_ in run.rounds if (found := facts.summary(round_).get("begins_with"))), ())
  return f"; every row that is scored or trained on begins with {' '.join(tokens)}" if tokens else ""


def _epsilon_source(run):
  quota = run.setting("screening.epsilon_from_control")
  if quota is not None:
    return f"set each round so that at most {share(quota)} of random chunks pass"
  margin = run.setting("screening.control_margin")
  return "fixed by the config" + (f"; and {decimal(margin)} above the control" if margin is not None else "")


def _thresholds(run):
  if not run.screened:
    return []
  alpha, epsilons = run.setting("screening.alpha"), {run.epsilon(round_) for round_ in run.rounds} - {None}
  if run.setting("screening.epsilon") is not None:
    epsilons.add(run.setting("screening.epsilon"))
  if (alpha is None or alpha == health.PAPER_ALPHA) and epsilons <= {health.PAPER_EPSILON}:
    return []
  here = " and ".join(threshold(epsilon) for epsilon in sorted(epsilons)) or "not yet set"
  return [f"These are small-scale thresholds: alpha = {setting(alpha)} and epsilon = {here} here; the paper's are "
          f"alpha = {health.PAPER_ALPHA} and epsilon = {health.PAPER_EPSILON}, for hundreds of millions of chunks. "
          "Judge acceptance by its distance to the control, not by its height."]


def _rounds(run):
  cards = []
  for round_ in run.rounds:
    checks = health.checks(run, round_)
    word = health.verdict(round_, checks)
    head = element("h3", f"Round {round_.index}", element("span", word, class_=f"chip {_CHIPS[word]}"))
    items = [element("li", check.sentence, class_=check.level) for check in checks]
    cards.append(element("div", head, element("ul", *items, class_="checks"), class_="card"))
  control = " The control is random chunks, verified like candidates: what passes of them passes by chance."
  lead = element("p", "✓ as it should be, ? look closer, ✗ wrong." + control * run.screened, class_="lead")
  return join([lead, element("div", *cards, class_="cards")] if cards else [_nothing("No round has been started.")])


def _plots(run):
  figures = plots.figures(run)
  return element("div", *figures, class_="plots") if figures else _nothing("There is nothing to plot yet.")


def _roots(run, texts):
  top = roots.entropy_top(run)
  lead = element("p", "The roots with most positives: the best of each round, not the average. Shading is the policy's "
                      "entropy about a token; hover or tap for its numbers. In a chunk, bold is the longest run of the "
                      "root's own words around the anchor that the chunk repeats.", class_="lead")
  parts = [lead, roots.scale_key(top)]
  for round_ in run.rounds:
    articles = roots.round_roots(run, round_, texts, top)
    parts += [element("h3", f"Round {round_.index}"), *articles] if articles else []
  return join(parts) if len(parts) > 2 else _nothing("No root can be shown: the tables are missing or empty.")


def _sequences(run):
  drawn = sequences.drawings(run)
  if not drawn:
    return _nothing("No sequence can be drawn: the table is missing or empty.")
  lead = element("p", "Those with most positive tokens. A root comes after its own contexts, which are shuffled."
                 if run.screened else "A root is a document, or a part of one.", class_="lead")
  return join([lead, sequences.key(), *drawn])


def _corpus(run):
  corpus = run.corpus
  if not corpus:
    return _nothing("corpus.json is missing: what was read is unknown.")
  bad, removed = corpus.get("bad_records") or {}, corpus.get("removed") or {}
  cells = [("documents", corpus.get("documents")), ("chunks", corpus.get("chunks")),
           ("characters", corpus.get("characters")),
           ("bad records, skipped", sum(row["count"] for row in bad.values()))]
  if removed:
    cells.append(("removed as copies or as parts of benchmarks", sum(row["count"] for row in removed.values())))
  parts = [element("dl", *(element("div", element("dt", name), element("dd", count(value))) for name, value in cells),
                   class_="facts")]
  if sources := corpus.get("sources"):
    fields = ("documents", "chunks", "characters", "made_up_ids", "bad_records")
    rows = [(name, *(count(numbers.get(field)) for field in fields)) for name, numbers in sources.items()]
    parts += [element("h3", "Sources"),
              table(("source", "documents", "chunks", "characters", "ids made up", "bad records"), rows)]
  for title, what, reasons in (("Bad records by reason", "records", bad),
                               ("Documents that policylong.prepare removed", "documents", removed)):
    if reasons:
      rows = [(reason, count(row["count"]), join((element("code", f"{example['source']}: {example['place']}")
                                                  for example in row["examples"]), Markup("<br>")))
              for reason, row in sorted(reasons.items(), key=lambda item: -item[1]["count"])]
      parts += [element("h3", title), table(("reason", what, "the first of them"), rows, class_="texts")]
  return join(parts)


def _run(run):
  cells = [("seed", setting(run.setting("seed", NONE))), ("working directory", run.directory)]
  parts = [element("dl", *(element("div", element("dt", name), element("dd", value)) for name, value in cells),
                   class_="facts")]
  if run.config:
    parts.append(disclosure("Config", _json(run.config), class_="panel"))
  hashes = [(f"round {round_.index}, {name}", element("code", digest)) for round_ in run.rounds
            for name, digest in (round_.summary.get("files") or {}).items()]
  if hashes:
    parts.append(disclosure("Hashes of the tables", table(("table", "sha256"), hashes, class_="texts"), class_="panel"))
  return join(parts)


def _json(value):
  return element("pre", json.dumps(value, indent=2, ensure_ascii=False))


def _nothing(sentence):
  return element("p", sentence, class_="lead")


def _name(path):
  return str(path).rstrip("/").rsplit("/", 1)[-1]

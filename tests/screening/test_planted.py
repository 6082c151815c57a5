"""A fact that stands in exactly one other document is found, retrieved and verified; look-alikes are not.

With the real policy (SmolLM2) and the real embedder (MiniLM). Names and numbers are invented, so that no
weight can know them; root and fact are worded differently, or they would be near-copies. The two roots,
their facts and their look-alikes lie among 150 encyclopaedia leads.
"""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from policylong import config as config_lib
from policylong.corpus.store import open_corpus
from policylong.corpus.texts import ChunkTokens
from policylong.devices.mesh import make_mesh
from policylong.model import hf
from policylong.model.tokenizer import load_tokenizer
from policylong.retrieval.embedders import make_embedder
from policylong.retrieval.store import open_index
from policylong.screening.promise import FEATURES, Promise
from policylong.screening.retrieve import Retriever
from policylong.screening.scorer import Policy, Scorer
from policylong.screening.screen import Ground, Screener
from policylong.storage import tables
from policylong.storage.workdir import Workdir, read_json

# (root, the fact's words in it, the document that holds the fact, look-alikes that do not)
PLANTED = {
    "observatory": (
        "Visitors who climb the hill behind the old harbour reach a white dome with a copper door. The building has "
        "been closed for years, and few people in the town remember what it was for. On a plaque beside the gate one "
        "can read that the Korvanth Observatory was the work of a woman called Elmira Dovestin, and that it was given "
        "to the town after the war.",
        "Elmira Dovestin",
        "The Korvanth Observatory was founded in 1874 by Elmira Dovestin, who had sold her vineyards to pay for its "
        "first telescope. Dovestin lived beside the dome until her death and kept a diary of every clear "
        "night.",
        ["The Korvanth Observatory is open on the first Sunday of every month. Visitors may look through the smaller "
         "telescope, and there is a shop with postcards and a room with old instruments.",
         "The Meldrath Observatory stands on the cliffs above the harbour. It was built in the last century by a rich "
         "family from the town, and the keeper lived in a small house below the dome."]),
    "canal": (
        "In the spring the water is let back into the old channel and the first boats arrive from the coast. The "
        "towpath is dry and wide, and in the evening people from the villages walk there with their dogs. The "
        "guidebook says that the Bramwick Canal was planned by a man called Osgar Thelwain, and that no lock on it "
        "has ever been rebuilt.",
        "Osgar Thelwain",
        "The Bramwick Canal was designed by Osgar Thelwain, a self-taught engineer from the northern "
        "mines. Thelwain surveyed the whole route on foot and drew all of its nineteen locks himself.",
        ["The Bramwick Canal freezes in most winters, and then the children of the villages skate on it. In summer it "
         "is full of lilies, and the locks have to be cleared by hand.",
         "The Tolland Canal was dug to carry coal from the mines to the coast. It was closed after the war, and its "
         "towpath is now a path for walkers."]),
}


@pytest.fixture(scope="module")
def screen(material, tmp_path_factory):
  """(promise, changes of the screening) -> the tables of a round over the planted corpus, with the names of PLANTED."""
  folder = tmp_path_factory.mktemp("planted")
  context = [{"id": f"{name}/{kind}", "text": text} for name, (_, _, fact, look) in PLANTED.items()
             for kind, text in [("fact", fact), *((f"look{i}", other) for i, other in enumerate(look))]]
  with open(material / "wiki.jsonl", encoding="utf-8") as file:
    context += [json.loads(line) for line in itertools.islice(file, 150)]
  roots = [{"id": name, "text": root} for name, (root, *_) in PLANTED.items()]
  for name, records in (("roots", roots), ("context", context)):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

  sources = tuple(config_lib.Source(name, "jsonl", str(folder / f"{name}.jsonl"), "id", "text", "")
                  for name in ("roots", "context"))
  retrieval = config_lib.Retrieval(
      embedder="minilm", embedder_path=str(material / "minilm"), embedder_sha256="", embedder_max_tokens=128,
      embedder_batch=32, query_instruction="", dim=None, index="exact", leaves=None,
      target_recall=0.95, piece_gib=1.0)
  screening = config_lib.Screening(
      roots_per_round=2, root_tokens=128, min_root_tokens=32, skip_tokens=16, alpha=1.0, max_anchors_per_root=12,
      query_window=16, top_k=3, near_copy_ngram=13, control_chunks=3, epsilon=0.4, epsilon_from_control=None,
      control_margin=None, evidence="entropy", loss_margin=None, loss_margin_from_control=None, budget=None,
      probe_share=0.0, negatives="positives", max_chunk_tokens=256, bucket_multiple=128, tokens_per_batch=512,
      roots_per_shard=1)
  corpus = open_corpus(config_lib.Corpus(sources, ("roots",), 2048, str(folder / "cache"), None))
  embedder = make_embedder(retrieval)
  index = open_index(corpus, embedder, retrieval, str(folder / "cache"), 0)
  path = material / "smollm2.gguf"
  model, tokenizer = hf.read_model_config(path), load_tokenizer(path)
  chunk_tokens = ChunkTokens(corpus, tokenizer, "\n\n", screening.max_chunk_tokens)
  mesh = make_mesh(config_lib.Mesh(data=-1, fsdp=1, context=1, tensor=1))
  scorer = Scorer(hf.load_params(path, model, np.dtype("float32")), model, mesh, dtype="bfloat16",
                  tokens_per_batch=screening.tokens_per_batch, bucket_multiple=screening.bucket_multiple)
  synthesis = config_lib.Synthesis(sequence_length=1024, separator="\n\n", negatives_per_positive=1)

  def screened(begun=None, **changes):
    round_, config = Workdir(folder / str(changes)).round(1), dataclasses.replace(screening, **changes)
    ground = Ground(config, synthesis, 2048, 2048, 0, ("roots",), corpus, tokenizer, chunk_tokens,
                    Retriever(config, 0, corpus, embedder, index, chunk_tokens))
    Screener(ground, Policy(0, scorer)).screen(round_, 2, begun or Promise.first())
    return {name: _named(tables.read(round_.table(name)).to_pylist())
            for name in ("roots", "anchors", "verdicts", "positives", "negatives")} | read_json(round_.judged_path)
  return screened


def _named(rows):
  for row in rows:
    for key in ("chunk_id", "of_chunk"):
      if key in row:
        row[key] = row[key].split("#")[0].removeprefix("context/")
    row["doc_id"] = row["doc_id"].removeprefix("roots/")
  return rows


@pytest.fixture(scope="module")
def screened(screen):
  """Every row, by entropy alone."""
  return screen()


def _fact_positions(screened, name):
  """Token positions of the root that spell the fact."""
  (root,) = [row for row in screened["roots"] if row["doc_id"] == name]
  starts = np.cumsum([0, *map(len, root["pieces"])])
  first = "".join(root["pieces"]).index(PLANTED[name][1])
  return {t for t in range(len(root["pieces"])) if starts[t + 1] > first and starts[t] < first + len(PLANTED[name][1])}


@pytest.mark.parametrize("name", PLANTED)
def test_the_anchors_include_the_fact(screened, name):
  anchors = {row["position"] for row in screened["anchors"] if row["doc_id"] == name}
  assert anchors & _fact_positions(screened, name)


@pytest.mark.parametrize("name", PLANTED)
def test_the_document_with_the_fact_is_retrieved_by_the_fact_and_verified_with_a_high_gain(screened, name):
  at_fact = [row for row in screened["verdicts"] if row["doc_id"] == name and row["kind"] == "retrieved"
             and row["position"] in _fact_positions(screened, name) and row["chunk_id"] == f"{name}/fact"]
  assert any(row["rank"] >= 0 for row in at_fact)
  best = max(at_fact, key=lambda row: row["gain"])
  assert best["accepted"] and best["gain"] > 0.85
  assert best["entropy_before"] > 4.0 and best["entropy_after"] < 1.0
  assert f"{name}/fact" in {row["chunk_id"] for row in screened["positives"] if row["doc_id"] == name}


@pytest.mark.parametrize("name", PLANTED)
def test_nothing_else_explains_the_fact(screened, name):
  others = [row for row in screened["verdicts"] if row["doc_id"] == name and row["chunk_id"] != f"{name}/fact"
            and row["position"] in _fact_positions(screened, name)]
  assert {f"{name}/look0", f"{name}/look1"} & {row["chunk_id"] for row in others}
  assert not [row for row in others if row["accepted"]]
  assert max(row["gain"] for row in others) < 0.25


@pytest.mark.parametrize("name", PLANTED)
def test_look_alikes_become_hard_negatives_of_the_fact(screened, name):
  positives = {row["chunk_id"] for row in screened["positives"] if row["doc_id"] == name}
  negatives = [row for row in screened["negatives"] if row["doc_id"] == name and row["of_chunk"] == f"{name}/fact"]
  assert [row["rank"] for row in negatives] == list(range(len(negatives)))
  # Every look-alike that is not itself a positive (for another anchor) is among the nearest.
  assert {f"{name}/look0", f"{name}/look1"} - positives <= {row["chunk_id"] for row in negatives}
  assert not positives & {row["chunk_id"] for row in negatives}


def test_a_budget_by_entropy_and_loss_finds_the_facts_and_no_look_alike(screen, screened):
  # As after rounds in which the nearest chunk passed in six rows of ten, others seldom.
  learnt = Promise(np.array([{"one": -5.0, "rank": 5.5}.get(name, 0.0) for name in FEATURES]))
  round_ = screen(learnt, budget=0.7, evidence="entropy_and_loss", loss_margin_from_control=0.02)
  assert round_["tokens"]["scored"] < 0.6 * screened["tokens"]["scored"]
  assert round_["rows"]["scored"] < 0.6 * round_["rows"]["proposed"] == 0.6 * screened["rows"]["proposed"]
  for name in PLANTED:
    accepted = [row for row in round_["verdicts"] if row["doc_id"] == name and row["kind"] == "retrieved"
                and row["position"] in _fact_positions(round_, name) and row["accepted"]]
    assert {row["chunk_id"] for row in accepted} == {f"{name}/fact"}
    assert f"{name}/fact" in {row["chunk_id"] for row in round_["positives"] if row["doc_id"] == name}

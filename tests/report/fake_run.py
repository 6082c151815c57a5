"""Writes a working directory like a real one, from a seed: what the loop leaves behind, without a model."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SENTENCES = (
    "The committee met on the fourth of March and agreed to postpone the vote until the harbour had been surveyed.",
    "Governor Halvorsen wrote that the winter had taken more boats than the storm of 1887, and named three of them.",
    "No copper was found above the second waterfall, although the map of Anselm Prior marks a shaft there.",
    "In the spring the price of salt fell by a third; the coopers of Trondvik asked to be paid in rye instead.",
    "A census of the valley counted 412 households, of which ninety kept bees.",
    "The bridge at Lower Maren carries two inscriptions, one of them upside down.",
    "Members of the council, the First Lady of the province, and honoured guests were seated before the choir.",
    "It is not known who designed the lighthouse, but the lamp was bought from the brothers Okonjo in Lagos.",
    "The expedition carried eleven barometers; only the one made by Delacroix survived the crossing.",
    "Every ship that entered the strait paid a toll of one barrel in forty.",
)
ROOT_TOKENS, LENGTH, EPSILON, ALPHA = 120, 1024, 0.2, 1.0


def chunk_text(chunk_id: str) -> str:
  """A text for any chunk id of the fake corpus."""
  start = int(re.sub(r"\D", "", chunk_id) or 0)
  return "\n\n".join(SENTENCES[(start + i) % len(SENTENCES)] for i in range(6))


def config(rounds: int = 2, epsilon: float | None = EPSILON, alpha: float = ALPHA) -> dict:
  """The part of a config that the page reads, and a little more."""
  return {
      "seed": 7, "rounds": rounds,
      "model": {"path": "material/smollm2.gguf", "sha256": "b179", "scoring_dtype": "float32"},
      "corpus": {"chunk_chars": 2048, "sources": [{"name": "sotu", "kind": "text", "path": "material/sotu"}]},
      "screening": {"alpha": alpha, "epsilon": epsilon, "epsilon_from_control": None if epsilon else 0.005,
                    "control_margin": None, "root_tokens": ROOT_TOKENS, "max_anchors_per_root": 24, "top_k": 4},
      "synthesis": {"sequence_length": LENGTH, "separator": "\n\n"},
      "training": {"steps_per_round": 24}, "report": {"roots": 2, "anchors_per_root": 3}}


def write(directory, *, rounds: int = 2, roots: int = 24, seed: int = 0, starved: bool = False,
          epsilon: float = EPSILON, alpha: float = ALPHA) -> None:
  """A finished run of so many rounds; `starved` refuses nearly everything."""
  directory.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(seed)
  epsilon = 0.978 if starved else epsilon
  _json(directory / "config.json", config(rounds, epsilon, alpha))
  _json(directory / "corpus.json", {
      "documents": 1249, "chunks": 10393, "characters": 19_440_112, "version": "0f3a", "made_up_ids": 0,
      "bad_records": {
          "not JSON": {"count": 2, "examples": [{"source": "wiki", "place": "wiki.jsonl:17"},
                                                {"source": "wiki", "place": "wiki.jsonl:90"}]},
          "empty text": {"count": 1, "examples": [{"source": "wiki", "place": "wiki.jsonl:412"}]}},
      "sources": {
          "sotu": {"documents": 249, "chunks": 6200, "characters": 11_900_400, "made_up_ids": 0, "bad_records": 0},
          "wiki": {"documents": 1000, "chunks": 4193, "characters": 7_539_712, "made_up_ids": 0, "bad_records": 3}}})
  previous = None
  for index in range(1, rounds + 1):
    previous = _round(directory / "rounds" / str(index), index, rng, roots, previous, epsilon)
  metrics = [{"round": step // 24 + 1, "step": step + 1, "loss": 3.4 - 0.01 * step + 0.12 * rng.standard_normal(),
              "grad_norm": 1.1, "learning_rate": 4e-5, "tokens": 4096 * (step + 1),
              "tokens_per_second": 900 + 40 * rng.standard_normal(), "peak_share": 0.31} for step in range(24 * rounds)]
  (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
  gap, table = _offpolicy(previous, rng, previous["epsilon"], 24 * rounds)
  pq.write_table(table, directory / "offpolicy.parquet")
  _json(directory / "final.json", {"policy_step": 24 * rounds, "offpolicy": gap})


def _round(folder, index, rng, count, previous, epsilon):
  folder.mkdir(parents=True)
  step = 24 * (index - 1)
  roots, anchors, verdicts = [], [], []
  for number in range(count):
    root, places = _root(rng, f"sotu/r{index}-{number:03d}.txt", step)
    roots.append(root)
    anchors += [{"doc_id": root["doc_id"], "position": t, "token": root["tokens"][t],
                 "query": "".join(root["pieces"][max(0, t - 16):t + 16]), "entropy": root["entropy"][t],
                 "threshold": root["threshold"], "same_document": 1, "near_copy": 0, "policy_step": step}
                for t in places]
    verdicts += _verdicts(rng, root, places, epsilon, step, index)
  best = {}
  for row in verdicts:
    key = row["doc_id"], row["chunk_id"]
    if row["accepted"] and row["kind"] == "retrieved" and row["gain"] > best.get(key, {"gain": -1})["gain"]:
      best[key] = row
  positives = [{name: row[name] for name in ("doc_id", "chunk_id", "position", "gain")} for row in best.values()]
  negatives = [{"doc_id": row["doc_id"], "chunk_id": f"{row['chunk_id']}9", "of_chunk": row["chunk_id"],
                "similarity": 0.5, "rank": 0} for row in positives]
  spans = _sequences(rng, roots, positives, negatives, step)
  tables = {"roots": roots, "anchors": anchors, "verdicts": verdicts, "positives": positives, "negatives": negatives,
            "sequences": spans}
  for name, rows in tables.items():
    pq.write_table(_table(name, rows), folder / f"{name}.parquet")
  summary = _summary(index, step, tables, epsilon)
  if previous:
    chunks = [{row["chunk_id"] for row in table} for table in (positives, previous["positives"])]
    shared = len(chunks[0] & chunks[1])
    summary["overlap"] = {"shared": shared, "before": len(chunks[1]), "share": shared / max(1, len(chunks[0]))}
    summary["offpolicy"], table = _offpolicy(previous, rng, previous["epsilon"], step)
    pq.write_table(table, folder / "offpolicy.parquet")
  _json(folder / "DONE.json", summary)
  return {"epsilon": epsilon, "positives": positives, "verdicts": verdicts}


def _root(rng, doc_id, step):
  text = " ".join(SENTENCES[i] for i in rng.permutation(len(SENTENCES)))
  pieces = re.findall(r"\s?\S+", text)[:ROOT_TOKENS]
  entropy = np.clip(rng.gamma(1.1, 2.4 - 0.01 * step, len(pieces)), 0, 10.5).astype(np.float32)
  entropy[0] = np.nan
  nll = (entropy + rng.standard_normal(len(pieces))).clip(0).astype(np.float32)
  threshold = float(np.nanmean(entropy) + ALPHA * np.nanstd(entropy))
  places = [int(t) for t in np.flatnonzero(entropy > threshold)[:24]]
  return {"doc_id": doc_id, "source": "sotu", "start": 0, "end": len("".join(pieces)),
          "tokens": list(range(len(pieces))), "pieces": pieces, "entropy": entropy.tolist(), "nll": nll.tolist(),
          "threshold": threshold, "policy_step": step}, places


def _verdicts(rng, root, places, epsilon, step, index):
  rows = []
  retrieved = [(f"sotu/c#{rng.integers(4000)}", t, rank) for t in places for rank in range(2)]
  chunks = [(chunk, "retrieved", t, rank) for chunk, t, rank in dict((c[0], c) for c in retrieved).values()]
  chunks += [(f"wiki/random#{rng.integers(9000)}", "control", -1, -1) for _ in range(4)]
  for chunk_id, kind, owner, rank in chunks:
    for t in places:
      own = kind == "retrieved" and owner == t
      lucky = rng.random() < (0.11 if own else 0.03 if kind == "retrieved" else 0.012)
      gain = float(rng.uniform(0.2, 0.98) if lucky else 0.06 * rng.standard_t(4))
      before = float(root["entropy"][t])
      after = max(0.0, before * (1 - gain))
      gain = (before - after) / before
      rows.append({"doc_id": root["doc_id"], "position": t, "chunk_id": chunk_id, "kind": kind,
                   "rank": rank if own else -1, "similarity": 0.7 - 0.05 * rank if own else float("nan"),
                   "entropy_before": before, "entropy_after": after, "nll_before": before + 1.0,
                   "nll_after": before + 1.0 - gain, "gain": gain, "accepted": gain > epsilon,
                   "policy_step": step})
  return rows


def _sequences(rng, roots, positives, negatives, step):
  rows = []
  for number, root in enumerate(roots[:6]):
    parts = [("positive", row["chunk_id"], row["position"], row["gain"]) for row in positives
             if row["doc_id"] == root["doc_id"]][:2]
    parts += [("negative", row["chunk_id"], -1, float("nan")) for row in negatives
              if row["doc_id"] == root["doc_id"]][:4]
    room = LENGTH - len(root["pieces"])
    sizes = [int(rng.integers(90, 160)) for _ in parts]
    while sum(sizes) > room:
      parts.pop()
      sizes.pop()
    if sum(sizes) < room:
      parts.append(("filler", "wiki/filler#1", -1, float("nan")))
      sizes.append(room - sum(sizes))
    order = rng.permutation(len(parts))
    at = 0
    for rank, place in enumerate(order):
      role, chunk_id, position, gain = parts[place]
      rows.append({"sequence": number, "start": at, "end": at + sizes[place], "role": role, "doc_id": root["doc_id"],
                   "chunk_id": chunk_id, "position": position, "gain": gain, "rank": rank, "policy_step": step})
      at += sizes[place]
    rows.append({"sequence": number, "start": at, "end": LENGTH, "role": "root", "doc_id": root["doc_id"],
                 "chunk_id": "", "position": -1, "gain": float("nan"), "rank": -1, "policy_step": step})
  return rows


def _summary(index, step, tables, epsilon):
  entropy = np.concatenate([row["entropy"][1:] for row in tables["roots"]])
  verdicts, count = tables["verdicts"], len(tables["roots"])
  groups = {"own": [row for row in verdicts if row["rank"] >= 0],
            "other": [row for row in verdicts if row["rank"] < 0 and row["kind"] == "retrieved"],
            "retrieved": [row for row in verdicts if row["kind"] == "retrieved"],
            "control": [row for row in verdicts if row["kind"] == "control"]}
  acceptance = {}
  for name, rows in groups.items():
    accepted = sum(row["accepted"] for row in rows)
    right = sum(row["accepted"] and row["nll_after"] < row["nll_before"] for row in rows)
    acceptance[name] = {"pairs": len(rows), "accepted": accepted, "rate": accepted / max(1, len(rows)), "right": right}
  gains = [row["gain"] for row in groups["retrieved"] if row["accepted"]]
  return {"round": index, "policy_step": step, "roots": count, "anchors": len(tables["anchors"]),
          "entropy": {"mean": float(entropy.mean()), "std": float(entropy.std()),
                      "percentiles": {str(p): float(np.percentile(entropy, p)) for p in (5, 25, 50, 75, 95)}},
          "anchors_per_root": len(tables["anchors"]) / count,
          "roots_without_anchors": count - len({row["doc_id"] for row in tables["anchors"]}),
          "epsilon": epsilon, "epsilon_source": "config", "loss_margin": None, "acceptance": acceptance,
          "tokens": {"scored": 90_000, "padded": 100_000, "scan": 9_000}, "rows": {"proposed": 400, "scored": 400},
          "positives": len(tables["positives"]), "negatives": len(tables["negatives"]),
          "roots_with_positives": len({row["doc_id"] for row in tables["positives"]}),
          "mean_gain": float(np.mean(gains)) if gains else None, "overlap": None, "offpolicy": None,
          "excluded": {"same_document": 31, "near_copy": 4},
          "sequences": len({row["sequence"] for row in tables["sequences"]}), "epochs": 1.5,
          "files": {f"{name}.parquet": "0" * 64 for name in tables}}


def _offpolicy(previous, rng, epsilon, step):
  rows = []
  for row in previous["verdicts"]:
    if row["accepted"] and row["kind"] == "retrieved":
      now = row["gain"] + 0.18 * rng.standard_normal() - 0.05
      rows.append({"doc_id": row["doc_id"], "position": row["position"], "chunk_id": row["chunk_id"],
                   "gain_then": row["gain"], "gain_now": now, "rejected": now <= epsilon, "policy_step": step})
  rejected = sum(row["rejected"] for row in rows)
  return ({"verified": len(rows), "rejected": rejected, "share": rejected / max(1, len(rows))},
          _table("offpolicy", rows))


_STRINGS = ("doc_id", "source", "query", "chunk_id", "kind", "of_chunk", "role")
_FLOATS = ("threshold", "similarity", "entropy_before", "entropy_after", "gain", "gain_then", "gain_now",
           "nll_before", "nll_after")
_LISTS = {"tokens": pa.int32(), "pieces": pa.string(), "nll": pa.float32()}
_COLUMNS = {
    "roots": "doc_id source start end tokens pieces entropy nll threshold policy_step",
    "anchors": "doc_id position token query entropy threshold same_document near_copy policy_step",
    "verdicts": "doc_id position chunk_id kind rank similarity entropy_before entropy_after nll_before nll_after gain "
                "accepted policy_step",
    "positives": "doc_id chunk_id position gain", "negatives": "doc_id chunk_id of_chunk similarity rank",
    "sequences": "sequence start end role doc_id chunk_id position gain rank policy_step",
    "offpolicy": "doc_id position chunk_id gain_then gain_now rejected policy_step"}


def _table(name, rows):
  def kind(column):
    if column in _STRINGS:
      return pa.string()
    if column == "entropy":
      return pa.list_(pa.float32()) if name == "roots" else pa.float64()
    if column in _LISTS:
      return pa.list_(_LISTS[column])
    return pa.float64() if column in _FLOATS else pa.bool_() if column in ("accepted", "rejected") else pa.int64()
  schema = pa.schema([(column, kind(column)) for column in _COLUMNS[name].split()])
  return pa.table([[row[column] for row in rows] for column in schema.names], schema=schema)


def write_evaluations(directory, rounds: int = 2) -> None:
  """Benchmarks of the base model and of each round's policy, as the loop leaves them; deterministic numbers."""
  for index in range(rounds + 1):
    folder = directory / "rounds" / str(index) / "evaluation"
    folder.mkdir(parents=True)

    def row(metric, value, protocol, truncated=0):
      return {"metric": metric, "value": value, "samples": 4, "truncated": truncated, "protocol": protocol}
    positions = {"position_loss": 3.0 - 0.125 * index, "position_loss/1-255": 3.5 - 0.0625 * index,
                 "position_loss/256-511": 3.25 - 0.25 * index, "position_loss/512-1023": 3.125 - 0.5 * index}
    results = {name: {"1024": row("nats a token", value, "loss by position, held-out.jsonl")}
               for name, value in positions.items()}
    results["longppl"] = {"1024": row("perplexity of key tokens", 9.5 - index if index < 2 else None, "LongPPL")}
    results["ruler"] = {length: row("mean of 13", 80.5 + index - at, "RULER helmet", truncated=at)
                        for at, length in enumerate(("8192", "16384", "32768", "65536", "131072"))}
    _json(folder / "results.json", results)


def _json(path, value):
  path.write_text(json.dumps(value, indent=2))

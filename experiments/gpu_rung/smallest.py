"""One cell of the rung, so small that two CPU cores carry it: every part runs once, and no number means anything.

  python -m experiments.grid --grid=experiments/gpu_rung/smallest.py --workdir=runs/gpu_rung/smallest
"""

from experiments.gpu_rung.corpora import DIRECTORY, write_corpus
from experiments.gpu_rung.rung import Size

SIZE = Size(DIRECTORY.with_name("smallest-corpus"), length=1024, rounds=1, steps=1, batch=1, accumulation=1, roots=4,
            root_tokens=192, anchors=4, top_k=2, tokens_per_batch=2048, lengths=(1024,), tasks=("ruler/niah_single_1",),
            prompts=1, documents=1, short_window=256, simulated_devices=1)
SEEDS = (0,)
get_config, measure = SIZE.get_config, SIZE.measure


def prepare():
  """Six of the material's texts of each kind."""
  if not (SIZE.corpus / "packages.json").exists():
    write_corpus(SIZE.corpus, pages=(), packages={}, most=6)
  SIZE.prepare()


def cells():
  # Of so few pairs none may pass what 1% of random ones does; and two cores embed the head of a chunk.
  return [("policylong", {"screening.epsilon": 0.01, "screening.epsilon_from_control": None,
                          "screening.bucket_multiple": 128, "screening.max_chunk_tokens": 128,
                          "retrieval.embedder_max_tokens": 64, "retrieval.embedder_batch": 8})]

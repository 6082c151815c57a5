"""The demo: SmolLM2-135M chooses its own long training data twice, on two CPU cores.

  make demo
  # or: python -m policylong.main --config=configs/demo.py --workdir=runs/demo

Hardware: 2 CPU cores, under 6 GiB of memory. Time: under 10 minutes with all set-up.
Corpus: the sources of Django 5.2.8, a web framework in Python: files that use, repeat and extend what other files say,
so that there is something to find. Of five corpora it is the one whose own candidates stood furthest above random
chunks (docs/demo.md has all five).

The paper's setting (policylong/paper.py, with a comment above each field), but for what stands here. The paper's alpha
2.0 and epsilon 0.4 are for hundreds of millions of chunks; on a corpus of three thousand they accept next to nothing.
Here alpha is 1.0, and what a context must show is set each round by random ones: at most 1% of them may lower the
entropy by so large a share, and at most 2% the loss of the token that stands there by so much. Few do both.
"""

from ml_collections import ConfigDict

from policylong import paper
from policylong.material import MINILM_SHA256, SMOLLM2_SHA256


def get_config() -> ConfigDict:
  config = paper.config()
  # Two: the second is screened by a policy that was trained on what the first chose.
  config.rounds = 2
  # What `make material` fetches, here and below.
  config.model.update({"path": "material/smollm2.gguf", "sha256": SMOLLM2_SHA256})
  config.corpus.update({
      "sources": (
          {"name": "django", "kind": "text", "path": "material/django/**/*.py", "id_field": "", "text_field": "",
           "split": ""},),
      # Where the runs are, which share it.
      "cache_dir": "runs/cache"})
  config.retrieval.update({
      # A small embedder, which is not told what is asked for.
      "embedder": "minilm", "embedder_path": "material/minilm", "embedder_sha256": MINILM_SHA256,
      "query_instruction": "",
      # For two cores: the head of each chunk, eight at once.
      "embedder_max_tokens": 96, "embedder_batch": 8})
  config.screening.update({
      # Few roots, with few anchors and candidates each, for the ten minutes; and short rows, three in a batch.
      "roots_per_round": 12, "roots_per_shard": 4, "max_anchors_per_root": 10, "top_k": 3,
      "root_tokens": 192, "min_root_tokens": 96, "max_chunk_tokens": 320, "tokens_per_batch": 1536,
      # With the first lines of a file any other file of the framework helps a little: they begin alike.
      "skip_tokens": 32,
      # For a small corpus, as said above; of four random chunks a root, since the thresholds come from a round's.
      "alpha": 1.0, "epsilon": None, "epsilon_from_control": 0.01, "control_chunks": 4,
      # The token that stands there must become likelier too: of so few accepted pairs each should be right.
      "evidence": "entropy_and_loss", "loss_margin_from_control": 0.02,
      # Of a handful of roots every row.
      "budget": None})
  # What a step on two cores has the memory and the time for.
  config.synthesis.sequence_length = 4096
  config.training.update({
      # One step a round, of one sequence on each core, at a rate at which a single step tells.
      "steps_per_round": 1, "batch_size": 2, "accumulation": 1, "checkpoint_every": 1, "peak_learning_rate": 2e-4,
      # The paper's would be the whole sequence.
      "short_window": 512})
  # Loss by position, which takes seconds, on a part of the framework that is not in the corpus.
  config.eval.update({"tasks": ("position_loss",), "lengths": (1024,), "samples": 4, "protocol": "nvidia",
                      "short_window": 512})
  config.eval.documents.update({"kind": "text", "path": "material/django_held_out/**/*.py", "id_field": "",
                                "text_field": ""})
  # One device for each of two cores, with half of the weights each (data 2 takes 2 GiB more); on one GPU or TPU chip
  # set fsdp to 1 and simulated_devices to 0.
  config.mesh.update({"fsdp": 2, "context": 1, "simulated_devices": 2})
  return config

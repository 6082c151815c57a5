"""The paper's setting: Qwen2.5-3B from 32K to 131,072 tokens in 4 rounds of 1B tokens.

  python -m policylong.main --config=configs/qwen3b_128k.py:v5p:4x4x4 --workdir=DIR_THAT_ALL_HOSTS_SHARE \\
    --config.model.path=DIR_OF_QWEN2.5-3B --config.retrieval.embedder_path=DIR_OF_QWEN3_EMBEDDING_0.6B

on every host of the slice; the argument is a key of SLICES, and docs/pods.md says what each of them holds and how fast
it should be. `:runlocal` is the same run, shrunk to eight simulated devices of a laptop and SmolLM2-135M.

Values marked P are PolicyLong's own (arXiv 2604.07809), E are EntropyLong's (arXiv 2510.02330), which the
group's later paper builds on, D are decisions of this project where no source says.
"""

from ml_collections import ConfigDict

from policylong.config import optional

# Slice -> how a step lies on it: sequences over fsdp, the tokens of each over context, as few as leave 16K tokens or
# more to a device; accumulation, and what is kept for the backward pass, as memory allows.
SLICES = {
    "v5p:4x4x4": {"fsdp": 16, "context": 4, "accumulation": 2, "remat": "all_but_attention"},
    "v5e:8x8": {"fsdp": 8, "context": 8, "accumulation": 2, "remat": "full"},
    "v6e:8x8": {"fsdp": 16, "context": 4, "accumulation": 2, "remat": "all_but_attention"},
}


def get_config(slice_: str = "v5p:4x4x4") -> ConfigDict:
  """The run on a slice of `SLICES`, or "runlocal"."""
  if slice_ == "runlocal":
    return shrunk(paper())
  return on_slice(paper(), SLICES, slice_)


def on_slice(config: ConfigDict, slices: dict, slice_: str) -> ConfigDict:
  """A config laid over one of the slices that it is made for."""
  if slice_ not in slices:
    raise ValueError(f"the config knows no slice {slice_!r}: use one of {', '.join(slices)}")
  layout = slices[slice_]
  config.mesh.fsdp, config.mesh.context = layout["fsdp"], layout["context"]
  config.training.accumulation, config.training.remat = layout["accumulation"], layout["remat"]
  return config


def shrunk(config: ConfigDict) -> ConfigDict:
  """The same program, small: eight simulated devices, ring attention, what `make material` fetches.

  It shows that everything works together, in two and a half minutes, and nothing else: a step teaches little, and
  epsilon lets a fifth of random contexts pass, so that a handful of roots has positives.
  """
  config.rounds = 2
  config.model.update({"path": "material/smollm2.gguf", "rope_theta": 1e6})
  config.corpus.sources = ({"name": "sotu", "kind": "text", "path": "material/sotu/[12][90]*.txt", "id_field": "",
                            "text_field": "", "split": ""},)
  config.corpus.cache_dir = "runs/cache"
  # No second model to fetch: n-grams, hashed.
  config.retrieval.update({"embedder": "hashed", "embedder_path": "", "index": "exact"})
  # A small model gains less from a context, so epsilon comes from the control (see configs/demo.py).
  config.screening.update({
      "roots_per_round": 4, "roots_per_shard": 1, "root_tokens": 128, "min_root_tokens": 64, "alpha": 1.0,
      "max_anchors_per_root": 2, "top_k": 2, "control_chunks": 3, "max_chunk_tokens": 128,
      # One program for all rows; those of a root, with the root alone, are one batch of the eight devices.
      "bucket_multiple": 256, "tokens_per_batch": 256,
      "epsilon": None, "epsilon_from_control": 0.2, "negatives_per_positive": 4})
  config.synthesis.sequence_length = 512
  config.eval.update({"tasks": ("position_loss",), "lengths": (256,), "samples": 2})
  config.eval.documents.update({"kind": "text", "path": "material/sotu/18*.txt"})
  config.training.update({"steps_per_round": 1, "batch_size": 2, "context_attention": "ring"})
  config.mesh.update({"fsdp": 2, "context": 4, "simulated_devices": 8})
  return config


def paper() -> ConfigDict:
  """The setting itself."""
  return ConfigDict({
      # Every random choice follows from it.
      "seed": 0,
      # Rounds of screening, synthesis and training (P).
      "rounds": 4,
      # Rounds of training that the policy which screens may lack: 0, the newest one screens; 1, the one before.
      "max_staleness": 0,
      # How sequences are made: policylong; entropylong (one round); nextlong, quest, knn, iclm, standard, utk, prolong,
      # which do not ask the policy.
      "method": "policylong",
      "method_options": {
          # How nextlong, knn and iclm search: embeddings (the retrieval group, their papers' way) or bm25.
          "search": "embeddings",
          # NExtLong: chunks behind each meta-chunk; None: as many as its formula says for the sequence's length.
          "nextlong_k": optional(),
          # NExtLong: where a meta-chunk stands among its chunks: head (the paper's best), tail or random.
          "nextlong_position": "head",
          # Quest: RAKE keywords that score less are none (paper: 3).
          "quest_least_score": 3.0,
          # Quest: share of the keywords, those with the fewest documents, that is oversampled (paper: 0.1 to 0.3).
          "quest_split_ratio": 0.2,
          # UtK: share of the sequences that is knotted (paper: 0.3 or 0.8).
          "utk_share": 0.3,
          # ProLong: share of the sequences that comes from documents of at least sequence_length tokens (paper: 0.6).
          "prolong_long_share": 0.6,
      },
      "model": {
          # An HF directory (config.json, safetensors, tokenizer) or a GGUF file.
          "path": "models/Qwen2.5-3B",
          # Expected sha256 of the weight file; "" does not check.
          "sha256": "",
          # RoPE theta for the longer context; None keeps the model's own 1e6 (D: unknown for Qwen2.5; E has 2e8
          # for Llama-3-8B).
          "rope_theta": optional(),
          # YaRN factor over the model's own context length; None for no YaRN.
          "yarn_factor": optional(),
          # Weights and matmul inputs of screening; logits and reductions are always float32.
          "scoring_dtype": "bfloat16",
      },
      "corpus": {
          # Where documents come from (E: 229M documents, 644M chunks). kind: jsonl, parquet, text (files) or
          # tfds; the fields of a record that hold id and text; split is for tfds only.
          "sources": (
              {"name": "fineweb_edu", "kind": "parquet", "path": "corpus/fineweb-edu/*.parquet", "id_field": "id",
               "text_field": "text", "split": ""},
              {"name": "cosmopedia_v2", "kind": "parquet", "path": "corpus/cosmopedia-v2/*.parquet", "id_field": "",
               "text_field": "text", "split": ""},
          ),
          # Sources that give root documents; () means all.
          "root_sources": (),
          # Characters of whole paragraphs in a chunk, the retrieval unit (NExtLong).
          "chunk_chars": 2048,
          # Where the chunked corpus and its index are kept; later rounds and runs use them again.
          "cache_dir": "corpus/cache",
      },
      "retrieval": {
          # D (E used jina-embeddings-v3, whose licence is non-commercial): minilm (all-MiniLM-L6-v2), qwen3
          # (Qwen3-Embedding) or hashed (n-grams, for smoke tests).
          "embedder": "qwen3",
          # Directory of the embedder's weights and tokenizer.
          "embedder_path": "models/Qwen3-Embedding-0.6B",
          # Expected sha256 of its weight file; "" does not check.
          "embedder_sha256": "",
          # Longer texts are cut to so many tokens.
          "embedder_max_tokens": 1024,
          # Texts of that length that a device embeds at once.
          "embedder_batch": 256,
          # What a query asks for; used by qwen3 only.
          "query_instruction": "Given a passage, retrieve passages that help to predict how it goes on",
          # scann or exact.
          "index": "scann",
          # ScaNN partitions; None: about sqrt(chunks) from 20,000 chunks on, brute force below.
          "leaves": optional(),
          # ScaNN searches as many leaves as recall@10 against exact search needs on real queries.
          "target_recall": 0.95,
      },
      "screening": {
          # Root documents screened each round, none twice (E: 100K in all).
          "roots_per_round": 25_000,
          # A root is at most so many tokens (P: root and candidate are about 2K tokens together); of a longer
          # document one window is read.
          "root_tokens": 1536,
          # Shorter documents are no roots.
          "min_root_tokens": 128,
          # Tokens at the start of a root that are never anchors: they have too little left context.
          "skip_tokens": 16,
          # Anchor: entropy > mean + alpha * std of its root (E).
          "alpha": 2.0,
          # Of more anchors in a root the most uncertain ones are kept.
          "max_anchors_per_root": 64,
          # (E) The query is the text of tokens [t - w, t + w) around an anchor t.
          "query_window": 16,
          # Chunks retrieved for an anchor, cosine (E).
          "top_k": 32,
          # A chunk that shares so long a run of tokens with a query window is a near-copy, never a candidate.
          "near_copy_ngram": 13,
          # Random chunks verified for each root, for comparison; never used as context.
          "control_chunks": 4,
          # A context is accepted if it lowers the entropy by more than this share (E). None: from control.
          "epsilon": optional(0.4),
          # Each round, the smallest epsilon at which at most this share of random contexts passes.
          "epsilon_from_control": optional(),
          # Accept only gains that exceed the best control gain at the anchor by so much; None: not asked
          # (paper).
          "control_margin": optional(),
          # Hard negatives: positives (similar to the verified positives, P), rejected (refused candidates),
          # both, or none.
          "negatives": "positives",
          # Negatives ranked for each positive at most; a sequence takes as many as it has room for, and a root of few
          # positives needs many of each.
          "negatives_per_positive": 256,
          # A chunk is cut to so many tokens.
          "max_chunk_tokens": 768,
          # Scoring rows are padded to multiples of it.
          "bucket_multiple": 128,
          # Padded tokens that a device scores at once.
          "tokens_per_batch": 32_768,
          # Roots that go through scan, retrieval and verification together; a restart repeats at most one such
          # shard.
          "roots_per_shard": 64,
      },
      "synthesis": {
          # Tokens of a training sequence, exactly (P).
          "sequence_length": 131_072,
          # Text between a context and what follows it.
          "separator": "\n\n",
      },
      "training": {
          # Optimizer steps a round: 238 x 32 x 131,072 = 1.0B tokens (P).
          "steps_per_round": 238,
          # Sequences a step: 4M tokens (E).
          "batch_size": 32,
          # Microbatches that a step adds up.
          "accumulation": 1,
          # Learning rate after warm-up (E).
          "peak_learning_rate": 4e-5,
          # Share of the schedule that warms up; then cosine to 0 (E).
          "warmup_fraction": 0.2,
          # D. run: one schedule over all rounds, optimizer state carried on; round: both restart each round.
          "schedule": "run",
          # True: no document of a sequence sees another (ProLong's way); False: full causal attention (P).
          "document_masking": False,
          # LongCE: tokens that the long context makes likelier weigh more in the loss (P: no).
          "longce": False,
          # LongFilter: train on this share of a round's sequences, those that need their length most; None: on all (P).
          "longfilter_share": optional(),
          # What both compare the whole context with, in tokens (LongCE: 4096).
          "short_window": 4096,
          # AdamW (E).
          "adam_b1": 0.9,
          "adam_b2": 0.95,
          # Decay of weight matrices; norms and biases have none (E: 0.1).
          "weight_decay": 0.1,
          # Gradients are scaled down to this global norm (E).
          "clip_norm": 1.0,
          # Weights and activations in the forward and backward pass; the master copy is float32.
          "compute_dtype": "bfloat16",
          # What of a layer is computed again in the backward pass: "none" (everything is kept), "all_but_products"
          # (the results of matrix products and of attention are kept), "all_but_attention" (only what was attended to
          # is) or "full" (only the layer's input is).
          "remat": "all_but_attention",
          # How attention reaches the tokens of other devices of mesh.context: "gather" or "ring".
          "context_attention": "gather",
          # Steps between checkpoints; the end of a round is always one.
          "checkpoint_every": 50,
          # Newest checkpoints kept.
          "keep_checkpoints": 2,
      },
      # Benchmarks of the base model and of the policy after each round.
      "eval": {
          # ruler (13 tasks and their mean), ruler/TASK, longppl, position_loss, lm-eval's tasks; () for none.
          "tasks": ("ruler",),
          # Lengths of prompts and documents, in tokens.
          "lengths": (8192, 16_384, 32_768, 65_536, 131_072),
          # Prompts of a task, or documents, at each length.
          "samples": 20,
          # RULER as NVIDIA's package runs it ("nvidia") or as HELMET does and the papers compared with ("helmet").
          "protocol": "helmet",
          # Held-out text for longppl and position_loss, in the form of corpus.sources; path "" for none.
          "documents": {"name": "held-out", "kind": "jsonl", "path": "", "id_field": "id", "text_field": "text",
                        "split": ""},
          # LongPPL's short context, in tokens (LongPPL's own: 4096).
          "short_window": 4096,
          # Where RULER's package and prompt sets are kept; fetched when first needed.
          "ruler_dir": "material/ruler",
      },
      # Devices along each axis; -1: all that are left. simulated_devices: so many CPU devices (of all processes
      # together) in the place of real ones; 0: the real ones.
      "mesh": {"data": 1, "fsdp": 16, "context": 4, "tensor": 1, "simulated_devices": 0},
      "report": {
          # Roots shown in full on the page, for each round.
          "roots": 4,
          # Anchors shown for each of them.
          "anchors_per_root": 6,
      },
  })

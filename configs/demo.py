"""The demo: SmolLM2-135M chooses its own long training data twice, on two CPU cores.

  make demo
  # or: python -m policylong.main --config=configs/demo.py --workdir=runs/demo

Hardware: 2 CPU cores, under 6 GiB of memory. Time: under 10 minutes with all set-up.
Corpus: the 138 State of the Union speeches since 1900 (roots and contexts), 2,500 Wikipedia leads (contexts).

The thresholds are small-scale ones. The paper's alpha 2.0 and epsilon 0.4 are for hundreds of millions of
chunks; on a corpus of six thousand they accept next to nothing. Here alpha is 1.0 and epsilon is set each
round such that at most 0.5% of random contexts would pass.
"""

from ml_collections import ConfigDict

from policylong.config import optional
from policylong.material import MINILM_SHA256, SMOLLM2_SHA256


def get_config() -> ConfigDict:
  return ConfigDict({
      # Every random choice follows from it.
      "seed": 0,
      # Rounds of screening, synthesis and training (paper: 4).
      "rounds": 2,
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
          "path": "material/smollm2.gguf",
          # Expected sha256 of the weight file; "" does not check.
          "sha256": SMOLLM2_SHA256,
          # RoPE theta for the longer context; None keeps the model's own.
          "rope_theta": optional(),
          # YaRN factor over the model's own context length; None for no YaRN.
          "yarn_factor": optional(),
          # Weights and matmul inputs of screening; logits and reductions are always float32.
          "scoring_dtype": "bfloat16",
      },
      "corpus": {
          # Where documents come from. kind: jsonl, parquet, text (files) or tfds; the fields of a record
          # that hold id and text; split is for tfds only.
          "sources": (
              {"name": "sotu", "kind": "text", "path": "material/sotu/[12][90]*.txt", "id_field": "",
               "text_field": "", "split": ""},
              {"name": "wiki", "kind": "jsonl", "path": "material/wiki-sample.jsonl", "id_field": "id",
               "text_field": "text", "split": ""},
          ),
          # Sources that give root documents; () means all.
          "root_sources": ("sotu",),
          # Characters of whole paragraphs in a chunk, the retrieval unit (NExtLong).
          "chunk_chars": 2048,
          # Where the chunked corpus and its index are kept; later rounds and runs use them again.
          "cache_dir": "runs/cache",
      },
      "retrieval": {
          # minilm (all-MiniLM-L6-v2), qwen3 (Qwen3-Embedding) or hashed (n-grams, for smoke tests).
          "embedder": "minilm",
          # Directory of the embedder's weights and tokenizer.
          "embedder_path": "material/minilm",
          # Expected sha256 of its weight file; "" does not check.
          "embedder_sha256": MINILM_SHA256,
          # Longer texts are cut to so many tokens.
          "embedder_max_tokens": 96,
          # Texts of that length that a device embeds at once.
          "embedder_batch": 8,
          # What a query asks for; used by qwen3 only.
          "query_instruction": "",
          # scann or exact.
          "index": "scann",
          # ScaNN partitions; None: about sqrt(chunks) from 20,000 chunks on, brute force below.
          "leaves": optional(),
          # ScaNN searches as many leaves as recall@10 against exact search needs on real queries.
          "target_recall": 0.95,
      },
      "screening": {
          # Root documents screened each round, none twice.
          "roots_per_round": 8,
          # A root is at most so many tokens; of a longer document one window is read.
          "root_tokens": 192,
          # Shorter documents are no roots.
          "min_root_tokens": 96,
          # Tokens at the start of a root that are never anchors: they have too little left context.
          "skip_tokens": 16,
          # Anchor: entropy > mean + alpha * std of its root (paper: 2.0).
          "alpha": 1.0,
          # Of more anchors in a root the most uncertain ones are kept.
          "max_anchors_per_root": 10,
          # The query is the text of tokens [t - w, t + w) around an anchor t.
          "query_window": 16,
          # Chunks retrieved for an anchor (paper: 32).
          "top_k": 2,
          # A chunk that shares so long a run of tokens with a query window is a near-copy, never a candidate.
          "near_copy_ngram": 13,
          # Random chunks verified for each root, for comparison; never used as context.
          "control_chunks": 3,
          # A context is accepted if it lowers the entropy by more than this share (paper: 0.4). None: from control.
          "epsilon": optional(),
          # Each round, the smallest epsilon at which at most this share of random contexts passes.
          "epsilon_from_control": optional(0.005),
          # Accept only gains that exceed the best control gain at the anchor by so much; None: not asked (paper).
          "control_margin": optional(),
          # Hard negatives: positives (similar to the verified positives, the paper's rule), rejected
          # (refused candidates), both, or none.
          "negatives": "positives",
          # Negatives ranked for each positive at most; a sequence takes as many as it has room for.
          "negatives_per_positive": 24,
          # A chunk is cut to so many tokens.
          "max_chunk_tokens": 320,
          # Scoring rows are padded to multiples of it.
          "bucket_multiple": 128,
          # Padded tokens that a device scores at once.
          "tokens_per_batch": 1536,
          # Roots that go through scan, retrieval and verification together; a restart repeats at most one such shard.
          "roots_per_shard": 4,
      },
      "synthesis": {
          # Tokens of a training sequence, exactly (paper: 131,072).
          "sequence_length": 4096,
          # Text between a context and what follows it.
          "separator": "\n\n",
      },
      "training": {
          # Optimizer steps a round.
          "steps_per_round": 1,
          # Sequences a step.
          "batch_size": 2,
          # Microbatches that a step adds up.
          "accumulation": 1,
          # Learning rate after warm-up.
          "peak_learning_rate": 2e-4,
          # Share of the schedule that warms up; then cosine to 0.
          "warmup_fraction": 0.2,
          # run: one schedule over all rounds, optimizer state carried on; round: both restart each round.
          "schedule": "run",
          # True: no document of a sequence sees another (ProLong's way); False: full causal attention (paper).
          "document_masking": False,
          # LongCE: tokens that the long context makes likelier weigh more in the loss.
          "longce": False,
          # LongFilter: train on this share of a round's sequences, those that need their length most; None: on all.
          "longfilter_share": optional(),
          # What both compare the whole context with, in tokens (LongCE: 4096).
          "short_window": 512,
          "adam_b1": 0.9,
          "adam_b2": 0.95,
          # Decay of weight matrices; norms and biases have none.
          "weight_decay": 0.1,
          # Gradients are scaled down to this global norm.
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
          "checkpoint_every": 1,
          # Newest checkpoints kept.
          "keep_checkpoints": 2,
      },
      # Benchmarks of the base model and of the policy after each round.
      "eval": {
          # ruler (13 tasks and their mean), ruler/TASK, longppl, position_loss, lm-eval's tasks; () for none.
          "tasks": ("position_loss",),
          # Lengths of prompts and documents, in tokens.
          "lengths": (1024,),
          # Prompts of a task, or documents, at each length.
          "samples": 4,
          # RULER as NVIDIA's package runs it ("nvidia") or as HELMET does and the papers compared with ("helmet").
          "protocol": "nvidia",
          # Held-out text for longppl and position_loss, in the form of corpus.sources; path "" for none. Here the
          # speeches of the 19th century, which are not in the corpus.
          "documents": {"name": "held-out", "kind": "text", "path": "material/sotu/18*.txt", "id_field": "",
                        "text_field": "", "split": ""},
          # LongPPL's short context, in tokens (LongPPL's own: 4096).
          "short_window": 512,
          # Where RULER's package and prompt sets are kept; fetched when first needed.
          "ruler_dir": "material/ruler",
      },
      # Devices along each axis; -1: all that are left. simulated_devices: so many CPU devices (of all processes
      # together) in the place of real ones; 0: the real ones. Here one for each of two cores, with half of
      # the weights each (data 2 takes 2 GiB more); on one GPU or TPU chip set fsdp to 1 and
      # simulated_devices to 0.
      "mesh": {"data": 1, "fsdp": 2, "context": 1, "tensor": 1, "simulated_devices": 2},
      "report": {
          # Roots shown in full on the page, for each round.
          "roots": 4,
          # Anchors shown for each of them.
          "anchors_per_root": 6,
      },
  })

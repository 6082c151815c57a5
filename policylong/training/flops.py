"""FLOPs of training by formula, with causal attention counted as half (so the share of peak cannot flatter).

Letters: D model, N query heads, H head size, V vocabulary, L layers, S sequence.
"""

from policylong.model.qwen import ModelConfig, num_params


def nonembedding_params(config: ModelConfig) -> int:
  """Parameters of everything but the embedding and the output matrix; norms and biases included."""
  matrices = 1 if config.tied else 2
  return num_params(config) - matrices * config.vocab_size * config.embed_dim


def train_flops_per_token(config: ModelConfig, sequence_length: float) -> float:
  """6 (N_nonembed + V D) + 6 L S N H: forward and backward of one token of a sequence of S.

  Of several documents that do not see each other S is sum(n^2) / sum(n) over their lengths n.

  A weight costs 2 FLOPs a token forward and 4 backward. Attention at full width costs
  4 S N H a token and layer forward (scores and values), three times that with the backward, and half of
  it when the mask is causal. Recomputation by remat is not useful work and is not counted.
  """
  matmuls = nonembedding_params(config) + config.vocab_size * config.embed_dim
  attention = config.num_layers * sequence_length * config.num_heads * config.head_dim
  return 6.0 * matmuls + 6.0 * attention


def score_flops(config: ModelConfig, rows: int, length: int, read: int) -> float:
  """Of a forward pass over `rows` rows of `length` tokens whose output matrix meets `read` of them in all."""
  matmuls = 2.0 * nonembedding_params(config) * rows * length + 2.0 * config.vocab_size * config.embed_dim * read
  return matmuls + 2 * config.num_layers * rows * attention_product_flops(config, length)


def attention_product_flops(config: ModelConfig, length: int) -> float:
  """Of one of attention's products (scores, or values) in one layer over one causal sequence: S^2 N H."""
  return float(length) ** 2 * config.num_heads * config.head_dim

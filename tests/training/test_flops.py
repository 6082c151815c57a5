"""FLOPs and parameter counts against numbers worked out by hand."""

import pytest

from policylong.model.qwen import ModelConfig
from policylong.training.flops import nonembedding_params, train_flops_per_token

SMOLLM2 = ModelConfig(family="llama", vocab_size=49152, embed_dim=576, mlp_dim=1536, num_layers=30, num_heads=9,
                      num_kv_heads=3, head_dim=64, norm_eps=1e-5, rope_theta=1e5, rope_scaling=None, max_positions=8192,
                      tied=True)
QWEN_3B = ModelConfig(family="qwen2", vocab_size=151936, embed_dim=2048, mlp_dim=11008, num_layers=36, num_heads=16,
                      num_kv_heads=2, head_dim=128, norm_eps=1e-6, rope_theta=1e6, rope_scaling=None,
                      max_positions=32768, tied=True)


def test_parameters_outside_the_embedding_are_what_the_model_cards_say():
  # SmolLM2-135M has 134,515,008 parameters in all, Qwen2.5-3B 3,085,938,688 (2.77B without its embedding)
  assert nonembedding_params(SMOLLM2) == 134_515_008 - 49152 * 576 == 106_203_456
  assert nonembedding_params(QWEN_3B) == 3_085_938_688 - 151936 * 2048 == 2_774_773_760


def test_flops_per_token_by_hand():
  # 6 * 134,515,008 + 6 * 30 * 4096 * 9 * 64
  assert train_flops_per_token(SMOLLM2, 4096) == 807_090_048 + 424_673_280
  # 6 * 3,085,938,688 + 6 * 36 * 131072 * 16 * 128
  assert train_flops_per_token(QWEN_3B, 131072) == 18_515_632_128 + 57_982_058_496


def test_an_untied_head_costs_what_a_tied_one_does():
  untied = ModelConfig(**{**vars(SMOLLM2), "tied": False})
  assert train_flops_per_token(untied, 4096) == train_flops_per_token(SMOLLM2, 4096)


def test_half_of_a_v5p_trains_3000_tokens_of_qwen_3b_a_second_at_128k():
  assert 0.5 * 459e12 / train_flops_per_token(QWEN_3B, 131072) == pytest.approx(3000, rel=0.01)

"""A run's hours are arithmetic on what is estimated of its programs, done here by hand."""

import dataclasses

import pytest

from configs import qwen3b_128k
from policylong import config as config_lib
from policylong.aot import hours


@pytest.fixture(scope="module")
def config():
  """4 x 238 steps of 32 sequences: 30,464 sequences of 131,072 tokens; a root of 1,536, contexts of 768 tokens.

  A root with 46 positives and one negative of each takes 1,536 + 92 x 768 = 72,192 tokens, so a second one fills the
  sequence: 60,928 roots.
  """
  return config_lib.parse(qwen3b_128k.get_config())


# A step an hour, so that hours are numbers of steps.
PROGRAMS = {name: {"tokens": tokens, "estimated_step_seconds": 3600.0}
            for name, tokens in (("train", 2 ** 17), ("score", 1536), ("verify", 2304))}


def test_without_a_budget_every_row_of_every_root_is_scored(config):
  found = hours.of_run(config, PROGRAMS, None)
  # A root's rows: 35 anchors x 32 candidates + 4 of the control, each as long as what PROGRAMS score in an hour.
  assert found.train == pytest.approx(30_464) and found.scan == pytest.approx(60_928)
  assert found.verify == pytest.approx(60_928 * 1124)
  assert found.scored == pytest.approx(2 * (1536 + 1124 * 2304) / 131_072)
  assert found.together == pytest.approx(30_464 + 60_928 * 1125)


def test_a_budget_bounds_what_is_scored_the_scan_included(config):
  found = hours.of_run(config, PROGRAMS, 8.0)
  assert found.scored == 8.0
  assert found.verify == pytest.approx((30_464 * 8 * 131_072 - 60_928 * 1536) / 2304)
  assert hours.of_run(config, PROGRAMS, 1e9) == hours.of_run(config, PROGRAMS, None)


def test_a_method_that_does_not_ask_the_policy_screens_nothing(config):
  found = hours.of_run(dataclasses.replace(config, method="nextlong"), PROGRAMS, 8.0)
  assert (found.scan, found.verify, found.scored) == (0, 0, 0) and found.together == found.train


def with_fields(config, **changes):
  """With other fields in its groups, each named group__field."""
  for name, value in changes.items():
    group, field = name.split("__")
    config = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **{field: value})})
  return config


@pytest.mark.parametrize(("changes", "roots"), [
    ({}, 2 * 7616),
    ({"synthesis__negatives_per_positive": None}, 7616),  # as many as fit
    ({"synthesis__negatives_per_positive": 2}, 2 * 7616),  # 107,520 tokens, and a second root's first contexts
    ({"synthesis__negatives_per_positive": 4}, 7616),  # 178,176
    ({"screening__negatives": "none", "screening__roots_per_round": 40_000}, 4 * 7616),  # 36,864
    ({"screening__negatives": "none"}, 25_000),  # the most that a round may screen
    ({"training__longfilter_share": 0.8}, 2 * 9520),  # of so many sequences training reads 0.8
    ({"synthesis__sequence_length": 72_192, "screening__roots_per_round": 7}, 7),
])
def test_a_round_screens_the_roots_that_fill_its_sequences(config, changes, roots):
  assert hours.roots_of_a_round(with_fields(config, **changes)) == roots


def test_entropylongs_roots_bring_no_negatives(config):
  config = dataclasses.replace(with_fields(config, screening__roots_per_round=100_000), method="entropylong", rounds=1)
  assert hours.roots_of_a_round(config) == 4 * 7616


def test_fewer_positives_need_more_roots(config):
  """What docs/pods.md says of EntropyLong's 46 at 292 anchors: 35 anchors have five or six at that rate."""
  config = with_fields(config, screening__roots_per_round=1_000_000)
  # 14 of 9,216 tokens a root, or 12 of 10,752; the next root and its best positive do not fit, and end the sequence
  assert hours.roots_of_a_round(config, 5) == 14 * 7616 + 1 and hours.roots_of_a_round(config, 6) == 12 * 7616 + 1

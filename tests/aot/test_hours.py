"""A run's hours are arithmetic on what is estimated of its programs, done here by hand."""

import dataclasses

import pytest

from configs import qwen3b_128k
from policylong import config as config_lib
from policylong.aot import hours


@pytest.fixture(scope="module")
def config():
  """4 x 238 steps of 32 sequences: 30,464 sequences of 131,072 tokens; a root of 1,536, contexts of 768 tokens."""
  return config_lib.parse(qwen3b_128k.get_config())


# A step an hour, so that hours are numbers of steps.
PROGRAMS = {name: {"tokens": tokens, "estimated_step_seconds": 3600.0}
            for name, tokens in (("train", 2 ** 17), ("score", 1536), ("verify", 2304))}


def test_without_a_budget_every_row_of_every_root_is_scored(config):
  found = hours.of_run(config, PROGRAMS, None)
  # A root's rows: 35 anchors x 32 candidates + 4 of the control, each as long as what PROGRAMS score in an hour.
  assert found.train == pytest.approx(30_464) and found.scan == pytest.approx(30_464)
  assert found.verify == pytest.approx(30_464 * 1124)
  assert found.scored == pytest.approx((1536 + 1124 * 2304) / 131_072)
  assert found.together == pytest.approx(30_464 * 1126)


def test_a_budget_bounds_what_is_scored_the_scan_included(config):
  found = hours.of_run(config, PROGRAMS, 8.0)
  assert found.scored == 8.0
  assert found.verify == pytest.approx(30_464 * (8 * 131_072 - 1536) / 2304)
  assert hours.of_run(config, PROGRAMS, 1e9) == hours.of_run(config, PROGRAMS, None)


def test_a_method_that_does_not_ask_the_policy_screens_nothing(config):
  found = hours.of_run(dataclasses.replace(config, method="nextlong"), PROGRAMS, 8.0)
  assert (found.scan, found.verify, found.scored) == (0, 0, 0) and found.together == found.train

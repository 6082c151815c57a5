"""What lies in TensorBoard's files, read back by their format."""

from policylong.storage.workdir import Workdir
from policylong.training.metrics import MetricsLog, write_scalars
from tests.event_files import points


def test_what_is_written_in_one_second_is_all_there_and_steps_that_are_trained_again_once(tmp_path):
  workdir = Workdir(tmp_path)
  for start, last in ((0, 3), (2, 4)):  # killed at 3, and its newest checkpoint is that of step 2
    write_scalars(workdir, start, {"round/roots": 8 + start})
    with MetricsLog(workdir, start) as log:
      for step in range(start + 1, last + 1):
        log.write({"step": step, "loss": step / 2 + start})
    write_scalars(workdir, last, {"evaluation/x": last})
  assert points(workdir.tensorboard) == {
      "round/roots": [(0, 8), (2, 10)], "training/loss": [(1, 0.5), (2, 1.0), (3, 3.5), (4, 4.0)],
      "evaluation/x": [(4, 4)]}

"""What TensorBoard shows of a folder, by the format of its files."""

import pytest


def points(folder) -> dict[str, list[tuple[int, float]]]:
  """{tag: [(step, value)]}, without what a writer that went on from an earlier step took back."""
  event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
  found: dict[str, list[tuple[int, float]]] = {}
  for path in sorted(folder.iterdir()):
    data, at = path.read_bytes(), 0
    while at < len(data):  # the length in 8 bytes and its checksum in 4, the event and its checksum in 4
      length = int.from_bytes(data[at:at + 8], "little")
      event = event_pb2.Event.FromString(data[at + 12:at + 12 + length])
      if event.session_log.status == event_pb2.SessionLog.START:
        found = {tag: [point for point in of_tag if point[0] < event.step] for tag, of_tag in found.items()}
      for value in event.summary.value:
        found.setdefault(value.tag, []).append((event.step, value.simple_value))
      at += 16 + length
  return found

"""ICLM (In-Context Pretraining, arXiv 2310.10638): documents in the order of a walk from neighbour to neighbour.

The walk is the paper's greedy travelling salesman over the graph that joins each document with its 10 nearest: it
starts at the document of the lowest degree, goes on to the most similar neighbour that it has not visited, and
where there is none, starts again at the unvisited document of the lowest degree. Each document is visited once,
and the row of them is cut every L tokens. The graph is that of the documents which the round's training reads,
compared by their texts, of which an embedder reads the first tokens.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from policylong.records import LongSequence
from policylong.synthesis.method import Inputs
from policylong.synthesis.pieces import concatenated, document

_NEIGHBOURS = 10


def sequences(inputs: Inputs) -> Iterator[LongSequence]:
  """At most `inputs.count` sequences.

  Raises:
    UserError: the round's documents do not fill one sequence.
  """
  library = inputs.library
  chosen, tokens = [], 0
  for doc_id in library.documents(inputs.round_index):
    if tokens >= inputs.count * inputs.length:
      break
    chosen.append(doc_id)
    tokens += len(document(library, doc_id).tokens)
  order = walk(*library.neighbours([library.text(doc_id) for doc_id in chosen], _NEIGHBOURS))
  rows = concatenated((document(library, chosen[i]) for i in order), inputs.length, inputs.policy_step,
                      what=f"iclm, round {inputs.round_index}: its documents")
  return itertools.islice(rows, inputs.count)


def walk(rows: np.ndarray, scores: np.ndarray) -> list[int]:
  """Every document once, from neighbour to neighbour.

  Args:
    rows: int32[N, k], the neighbours of each document, -1 for none.
    scores: float32[N, k], how similar they are.

  Returns:
    The N documents in the order of the walk. Of equals the lower number comes first.
  """
  graph: list[dict[int, float]] = [{} for _ in rows]
  for i, (row, values) in enumerate(zip(rows.tolist(), scores.tolist())):
    for j, value in zip(row, values):
      if j >= 0 and j != i:
        graph[i][j] = graph[j][i] = max(value, graph[i].get(j, value))
  starts = iter(sorted(range(len(graph)), key=lambda i: (len(graph[i]), i)))
  order: list[int] = []
  visited = [False] * len(graph)
  for start in starts:
    here = None if visited[start] else start
    while here is not None:
      order.append(here)
      visited[here] = True
      here = min((j for j in graph[here] if not visited[j]), key=lambda j: (-graph[here][j], j), default=None)
  return order

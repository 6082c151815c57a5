"""Metrics, in a file of the name that HELMET's own have; each of another value for the same answer, so that a mistaken
one shows."""


def calculate_metrics(prediction, answers):
  share = sum(answer.lower() in prediction.lower() for answer in answers) / len(answers)
  return {"ruler_recall": share, "substring_exact_match": share / 2, "exact_match": share / 4, "rougeL_f1": share / 5,
          "NDCG@10": share / 8}

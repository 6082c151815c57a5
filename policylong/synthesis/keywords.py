"""RAKE: the keywords of a text from the text itself (Rose et al., 2010).

Runs of words between stop words and punctuation are phrases. A word's score is its degree, the words of all phrases
that it stands in, over how often it occurs; a phrase has the sum of its words' scores. Runs of more than three words
are parts of sentences more than keywords, and are left out from the beginning.
"""

import collections
import itertools
import re

_MOST_WORDS = 3
_TOKEN = re.compile(r"[^\W\d_][\w'’-]*|\d+|[^\s]")
_ENGLISH = """
a about above after again against all almost along already also although always am among an and another any anyone
anything are around as at away back be became because become been before behind being below between both but by came
can cannot come could did do does doing done down during each either else enough even ever every few first for from
further gave get gets give given go goes going gone got had has have having he her here hers herself him himself his
how however i if in indeed into is it its itself just keep kept last least less let like made make makes many may me
might mine more most much must my myself near neither never next no nobody none nor not nothing now of off often on
once one only onto or other others otherwise our ours ourselves out over own per perhaps put quite rather really same
say says see seem seemed seems several shall she should since so some something sometimes still such take than that
the their theirs them themselves then there therefore these they thing things this those though three through thus to
together too toward two under until up upon us use used very was way we well went were what when where whether which
while who whole whom whose why will with within without would yet you your yours yourself yourselves
"""
_STOP_WORDS = frozenset(_ENGLISH.split())


def rake(text: str, least_score: float) -> dict[str, float]:
  """{phrase: score} of the phrases of one to three words that score at least so much, in lower case."""
  phrases = [phrase for phrase in _phrases(text) if len(phrase) <= _MOST_WORDS]
  count: collections.Counter[str] = collections.Counter()
  degree: collections.Counter[str] = collections.Counter()
  for phrase in phrases:
    for word in phrase:
      count[word] += 1
      degree[word] += len(phrase)
  scores = {" ".join(phrase): sum(degree[word] / count[word] for word in phrase) for phrase in phrases}
  return {phrase: score for phrase, score in scores.items() if score >= least_score}


def _phrases(text: str) -> list[tuple[str, ...]]:
  words = (word for word in _TOKEN.findall(text.lower()))
  runs = itertools.groupby(words, key=lambda word: word[0].isalpha() and len(word) > 1 and word not in _STOP_WORDS)
  return [tuple(run) for is_phrase, run in runs if is_phrase]

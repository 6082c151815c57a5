"""The methods by their names in a config."""

from policylong.synthesis import entropylong, given, iclm, knn, nextlong, policylong, prolong, quest, standard, utk
from policylong.synthesis.method import Method

_POLICY = frozenset({"policy", "roots", "embedder", "index"})
_ROOTS_AND_INDEX = frozenset({"roots", "embedder", "index"})

METHODS = {
    "policylong": Method(_POLICY | {"negatives"}, policylong.sequences),
    "entropylong": Method(_POLICY, entropylong.sequences),
    "nextlong": Method(_ROOTS_AND_INDEX, nextlong.sequences),
    "quest": Method(frozenset(), quest.sequences),
    "knn": Method(_ROOTS_AND_INDEX, knn.sequences),
    "iclm": Method(frozenset({"embedder"}), iclm.sequences),
    "standard": Method(frozenset(), standard.sequences),
    "utk": Method(frozenset(), utk.sequences),
    "prolong": Method(frozenset(), prolong.sequences),
    "given": Method(frozenset({"sequences"}), given.sequences),
}

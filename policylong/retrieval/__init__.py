"""From a text to the chunks of the corpus that are most similar to it: embedders, vector indexes, their store."""

"""What the policy says of the corpus: scan -> anchors -> candidates -> verify -> negatives."""

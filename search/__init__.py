"""How a model shrinks: latency, importance, actions and searches. Imports `supernet`, never `train`.

Accuracy enters as a callable `score(architecture) -> percent`.
"""

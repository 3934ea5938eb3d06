"""The tier of a pod of its own: one Job per run under a RuntimeClass whose kernel is not the node's."""

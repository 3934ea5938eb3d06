"""Runs the whole suite on one machine: keys, processes, readiness, restarts and an orderly stop.

Nothing here imports a service; each part is started by its module name and known by its contract only.
"""

"""The trainer: datasets, training jobs, evaluation gates, signed adapters. No module of the service imports torch or ray."""

import os

# Before gRPC is loaded, which reads it once: its handlers around a fork crash now and then what is started beside its
# threads. Whatever the trainer starts is a program of its own and needs none of them.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

"""Isolation by gVisor: a kernel in user space answers the run's system calls, and bubblewrap holds that kernel."""

"""The seccomp filter of every sandbox: what of the kernel a program may call at all."""

"""Waits for a program in a fresh interpreter without packages, and becomes it. Leaves nothing of its own but `__doc__`."""


def _load():  # type: ignore[no-untyped-def]  # noqa: ANN202 - every byte is read at each start
    import builtins
    import posix
    import sys

    name = "main.py"

    def show(kind, error, trace):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - the same
        import linecache
        import traceback

        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
        while trace is not None and trace.tb_frame.f_code.co_filename == "<string>":
            trace = trace.tb_next
        traceback.print_exception(kind, error, trace)

    posix.write(1, b"+")
    pieces = []
    while piece := posix.read(3, 1 << 16):
        pieces.append(piece)
    posix.close(3)
    length, _, rest = b"".join(pieces).partition(b"\0")
    if not length:
        posix._exit(0)  # noqa: SLF001 - its name
    arguments, _, rest = rest.partition(b"\0")
    variables, _, rest = rest.partition(b"\0")
    fields = rest.split(b"\0", int(arguments) + 2 * int(variables))
    source = fields.pop()
    if len(source) != int(length):
        posix._exit(125)  # noqa: SLF001 - its name
    words = [field.decode("utf-8", "surrogateescape") for field in fields]
    sys.argv = [name, *words[: int(arguments)]]
    words = words[int(arguments) :]
    # The allocator has read it.
    posix.unsetenv(b"MALLOC_ARENA_MAX")
    posix.environ.pop(b"MALLOC_ARENA_MAX", None)
    if words:
        import os

        os.environ.update(zip(words[::2], words[1::2], strict=True))
    text = source.decode("utf-8", "replace")
    sys.excepthook = show
    for leave in ("exit", "quit"):
        setattr(builtins, leave, sys.exit)
    globals()["__file__"] = "/workspace/" + name
    return compile(source, name, "exec", dont_inherit=True)


exec(globals().pop("_load")())  # noqa: S102 - that is what it is for

from pathlib import Path

from services.tools.sandbox.launcher.processes import tasks_of_this_user


def test_threads_of_this_user_are_counted(tmp_path: Path) -> None:
    for pid, threads in (("10", 3), ("11", 1)):
        for thread in range(threads):
            (tmp_path / pid / "task" / str(thread)).mkdir(parents=True)
    (tmp_path / "self").mkdir()
    assert tasks_of_this_user(tmp_path) == 4

"""What workers report. How they end is in test_kills.py."""

import threading
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from gkp.study.execute import workers

LONG = "why " * 100_000  # more than a pipe holds


def report(sender: Connection, *texts: dict[str, str]) -> None:
    for text in texts:
        sender.send(text)
    sender.close()


def test_long_reports_of_several_workers_arrive_and_those_of_killed_ones_are_not_awaited() -> None:
    pipes = [Pipe(duplex=False) for _ in range(3)]
    texts = [({"a": LONG},), (), ({"b": LONG, "c": "short"},)]  # the second is killed before it says anything
    given = [(sender, *said) for (_, sender), said in zip(pipes, texts, strict=True)]
    senders = [threading.Thread(target=report, args=each) for each in given]
    for thread in senders:
        thread.start()
    failed = workers._collect([receiver for receiver, _ in pipes])
    assert failed == {"a": LONG, "b": LONG, "c": "short"}
    for thread in senders:
        thread.join()

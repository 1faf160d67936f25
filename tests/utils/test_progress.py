"""gkp.utils.progress: what is written where, and the estimate of the time left."""

import io

import pytest

from gkp.utils.progress import Progress, Task, clock_text, default_mode, each_shown, showing


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("CI", "GKP_PROGRESS", "NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)


def test_mode_follows_the_stream_and_the_environment(monkeypatch):
    assert default_mode(io.StringIO()) == "lines"
    assert default_mode(Terminal()) == "bar"
    monkeypatch.setenv("CI", "true")
    assert default_mode(Terminal()) == "lines"
    monkeypatch.setenv("GKP_PROGRESS", "off")
    assert Progress(stream=Terminal()).mode == "off"
    monkeypatch.setenv("GKP_PROGRESS", "loud")
    with pytest.raises(ValueError, match="'loud' .*GKP_PROGRESS.*bar, lines, off"):
        Progress()


def test_lines_go_to_standard_output_and_nothing_to_standard_error(capsys):
    with Progress("lines").task("fine-tune", 4) as task:
        task.advance(2)
        task.say("epoch 1/2")
        task.advance(2)
        task.say("epoch 2/2")
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("fine-tune:  50 %, 0:00 left  epoch 1/2")
    assert lines[1].startswith("fine-tune: 100 %")
    assert err == ""


def test_off_writes_nothing(capsys):
    with Progress("off").task("fine-tune", 2) as task:
        task.advance(2)
        task.say("epoch 1/1")
    assert capsys.readouterr() == ("", "")


def test_bar_shows_title_count_and_what_is_said(capsys):
    stream = Terminal()
    with Progress("bar", stream=stream).task("attacks", 10, done=3) as task:
        task.advance(4)
        task.say("[50 %] halfway")
        task.say("")
    text = stream.getvalue()
    # Square brackets are rich's markup; what is said must come out as it is.
    assert "attacks: [50 %] halfway" in text
    assert "7/10" in text
    assert capsys.readouterr() == ("", "")


def test_estimate_counts_only_what_this_process_did():
    clock = Clock()
    task = Task("t", total=100, done=60, clock=clock)
    assert task.seconds_left() is None
    assert task.status() == " 60 %"
    clock.now += 10
    task.advance(10)
    # 10 units took 10 s, 30 are left; the 60 of an earlier process took no time here.
    assert task.seconds_left() == pytest.approx(30)
    assert task.status() == " 70 %, 0:30 left"


def test_a_sign_of_life_after_a_silence_only():
    clock, lines = Clock(), []
    task = Task("t", total=100, write=lines.append, every_seconds=30, clock=clock)
    for _ in range(6):
        clock.now += 10
        task.advance()
    assert lines == ["t:   3 %, 16:10 left", "t:   6 %, 15:40 left"]
    clock.now += 29
    task.say("epoch")
    clock.now += 29
    task.advance()
    assert len(lines) == 3


def test_a_task_without_units_is_done():
    assert Task("t", total=0).status() == "100 %"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (9.9, "0:09"), (75.2, "1:15"), (3600, "1:00:00"), (3700, "1:01:40")]
)
def test_clock_text(seconds, text):
    assert clock_text(seconds) == text


def test_long_work_is_silent_unless_it_is_shown(capsys):
    work = {"a": 1.0, "b": 3.0}
    assert list(each_shown("search", {"a": 10, "b": 20}, work)) == [("a", 10), ("b", 20)]
    assert capsys.readouterr().out == ""
    stream = io.StringIO()
    with showing(Progress("lines", stream=stream)):
        for name, _ in each_shown("search", {"a": 10, "b": 20}, work):
            assert name == "a" or stream.getvalue().endswith("2 of 2: b\n")  # named before its work is done
    (second,) = stream.getvalue().splitlines()  # what is wrong from the start is told alone
    assert second.startswith("search:  25 %, ")
    with showing(Progress("lines", stream=stream)), pytest.raises(RuntimeError):
        raise RuntimeError
    list(each_shown("search", {"a": 10}, work))
    assert capsys.readouterr().out == ""

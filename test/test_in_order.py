import threading

import pytest

from vla_reasoner_ros.evaluation.in_order import InOrder


@pytest.fixture
def worker():
    worker = InOrder("a-test", most=3)
    yield worker
    worker.close()


def test_calls_are_made_in_their_order_in_a_thread_of_its_own(worker):
    made, threads = [], set()

    def note(number):
        made.append(number)
        threads.add(threading.current_thread().name)

    for number in range(100):
        worker.call(note, number)
    worker.finish()
    assert made == list(range(100))
    assert len(threads) == 1
    assert threads.pop().startswith("a-test")
    assert worker.cpu_s > 0.0


def test_no_more_calls_wait_than_allowed(worker):
    gate, begun, given = threading.Event(), threading.Event(), []

    def hold():
        begun.set()
        assert gate.wait(60.0)

    def give():
        for number in range(10):
            worker.call(hold)
            given.append(number)

    giver = threading.Thread(target=give)
    giver.start()
    assert begun.wait(60.0)
    giver.join(0.2)
    assert len(given) <= 3
    gate.set()
    giver.join(60.0)
    worker.finish()
    assert len(given) == 10


def test_after_a_failure_nothing_is_made_any_more_and_it_is_said(worker):
    made = []
    worker.call(made.append, 1)
    worker.call({}.__getitem__, "missing")

    def go_on():
        for number in range(2, 10):
            worker.call(made.append, number)
        worker.finish()

    with pytest.raises(KeyError, match="missing"):
        go_on()
    assert made == [1]


def test_what_waits_when_it_is_closed_is_never_made():
    worker, gate, begun, made = InOrder("a-test", 3), threading.Event(), threading.Event(), []

    def hold():
        begun.set()
        gate.wait(60.0)

    worker.call(hold)
    worker.call(made.append, 1)
    assert begun.wait(60.0)
    closing = threading.Thread(target=worker.close)
    closing.start()
    while not worker._waiting[-1].cancelled():
        closing.join(0.01)
    gate.set()
    closing.join(60.0)
    assert made == []

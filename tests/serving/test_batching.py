"""The thread that answers requests in batches."""

import threading
import weakref
from concurrent.futures import CancelledError
from dataclasses import dataclass

import pytest

from aim_hf.serving.batching import Batcher, QueueFull


@dataclass(frozen=True)
class Request:
    number: int
    form: tuple = ()


class Answers:
    """Answers with the number, and keeps what it was given. Waits to be let go first."""

    def __init__(self):
        self.batches, self.let_go, self.busy = [], threading.Semaphore(0), threading.Event()

    def __call__(self, requests):
        self.busy.set()
        assert self.let_go.acquire(timeout=30)
        self.batches.append([request.number for request in requests])
        if any(request.number < 0 for request in requests):
            raise ZeroDivisionError
        return [request.number for request in requests]


def check(request):
    if request.number > 100:
        raise ValueError("too much")


@pytest.fixture
def batcher():
    answers = Answers()
    batcher = Batcher(check, answers, rows=3, max_queue=5)
    batcher.answers = answers
    yield batcher
    for _ in range(20):
        answers.let_go.release()
    batcher.stop()


def submit_while_busy(batcher, *requests):
    """The network is busy with request 0 when these come."""
    first = batcher.submit(Request(0))
    assert batcher.answers.busy.wait(30)
    futures = [batcher.submit(request) for request in requests]
    return first, futures


def let_go(batcher, count):
    for _ in range(count):
        batcher.answers.let_go.release()


def test_requests_of_one_form_run_together_in_order_and_the_oldest_first(batcher):
    other = ("other",)
    first, futures = submit_while_busy(batcher, Request(1), Request(2, other), Request(3), Request(4), Request(5))
    let_go(batcher, 4)
    assert [future.result(30) for future in (first, *futures)] == [0, 1, 2, 3, 4, 5]
    assert batcher.answers.batches == [[0], [1, 3, 4], [2], [5]]


def test_as_many_wait_as_may(batcher):
    first, futures = submit_while_busy(batcher, *map(Request, range(1, 6)))
    with pytest.raises(QueueFull, match="5 requests wait already"):
        batcher.submit(Request(6))
    futures[2].cancel()
    late = batcher.submit(Request(7))  # in the place of the one that was given up
    let_go(batcher, 3)
    assert late.result(30) == 7
    with pytest.raises(CancelledError):
        futures[2].result(0)
    assert batcher.answers.batches == [[0], [1, 2, 4], [5, 7]]


def test_a_request_that_is_refused_leaves_the_others_alone(batcher):
    _, futures = submit_while_busy(batcher, Request(1), Request(101), Request(2))
    let_go(batcher, 2)
    with pytest.raises(ValueError, match="too much"):
        futures[1].result(30)
    assert futures[0].result(30) == 1 and batcher.answers.batches == [[0], [1, 2]]


def test_a_batch_that_fails_is_answered_row_by_row_and_the_next_one_runs(batcher):
    _, futures = submit_while_busy(batcher, Request(-1), Request(1), Request(2), Request(3))
    let_go(batcher, 6)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        futures[0].result(30)
    assert [future.result(30) for future in futures[1:]] == [1, 2, 3] and batcher.alive
    assert batcher.answers.batches == [[0], [-1, 1, 2], [-1], [1], [2], [3]]


def test_the_memory_of_a_batch_that_failed_is_free_before_its_rows_are_answered():
    """As a batch that is too large for the memory: its tensors must not be there while its rows run."""
    tensors, left = [], []
    waiting, together = threading.Event(), threading.Semaphore(0)

    def answer(requests):
        waiting.set()
        assert together.acquire(timeout=30)
        left.append(sum(tensor() is not None for tensor in tensors))
        tensor = set(requests)
        tensors.append(weakref.ref(tensor))
        if len(requests) > 1:
            raise MemoryError
        return [request.number for request in requests]

    batcher = Batcher(check, answer, rows=3, max_queue=5)
    first = batcher.submit(Request(0))
    assert waiting.wait(30)
    futures = [batcher.submit(Request(number)) for number in (1, 2, 3)]
    for _ in range(5):
        together.release()
    assert [future.result(30) for future in (first, *futures)] == [0, 1, 2, 3]
    batcher.stop()
    assert left == [0, 0, 0, 0, 0]


def test_stopping_answers_what_waits(batcher):
    _, futures = submit_while_busy(batcher, *map(Request, range(1, 5)))
    let_go(batcher, 3)
    batcher.stop()
    assert [future.result(0) for future in futures] == [1, 2, 3, 4] and not batcher.alive

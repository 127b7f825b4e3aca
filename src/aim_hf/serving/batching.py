"""Requests of many clients, answered in batches by the one thread in which the network runs.

While one batch is computed, requests gather; the next batch is the oldest request and others of its form. No request
waits for a batch to fill, and none is passed over for long.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

import torch

logger = logging.getLogger(__name__)


class Batchable(Protocol):
    form: tuple  # requests of one form run together


class QueueFull(RuntimeError):
    """The queue is full: `max_queue` requests wait."""


class Batcher:
    """A thread that answers requests.

    Args:
        check: raises ValueError for a request that must not get into a batch.
        answer: returns the replies to a batch, each of which may be an exception. If it raises, it is called again for
            each request alone.
        rows: largest number of requests in a batch.
        prepare: called first, in this thread.
        max_queue: requests that may wait.
        on_batch: called with the rows and the seconds of each batch, in this thread.
    """

    def __init__(
        self,
        check: Callable[[Any], None],
        answer: Callable[[list[Any]], list[Any]],
        rows: int,
        max_queue: int,
        on_batch: Callable[[int, float], None] = lambda rows, seconds: None,
        prepare: Callable[[], None] = lambda: None,
    ):
        self.check, self.answer, self.rows, self.max_queue, self.on_batch = check, answer, rows, max_queue, on_batch
        self.prepared: Future[None] = Future()  # its result is there once `prepare` has ended
        self._prepare = prepare
        self._waiting: list[tuple[Batchable, Future]] = []
        self._changed = threading.Condition()
        self._stopping = self._lost_device = False
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether requests can be answered: the thread runs, and the accelerator didn't fail for good."""
        return self._thread.is_alive() and not self._lost_device

    def submit(self, request: Batchable) -> Future:
        """Queues a request; returns the future of its reply. Cancelling the future takes a waiting request out of the
        queue.

        Raises:
            QueueFull: if `max_queue` requests wait already.
        """
        with self._changed:
            self._waiting = [(other, future) for other, future in self._waiting if not future.cancelled()]
            if len(self._waiting) >= self.max_queue:
                raise QueueFull(f"{self.max_queue} requests wait already; send this one again in a moment.")
            future: Future = Future()
            self._waiting.append((request, future))
            self._changed.notify()
        return future

    def stop(self) -> None:
        """Answers the waiting requests, then ends the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._prepare()
        except Exception as error:
            return self.prepared.set_exception(error)
        self.prepared.set_result(None)
        while batch := self._next_batch():
            start = time.perf_counter()
            sound = []
            for request, future in batch:
                try:
                    self.check(request)
                    sound.append((request, future))
                except ValueError as error:
                    future.set_exception(error)
                except Exception as error:
                    future.set_exception(_failure(error))
            if not sound:
                continue
            replies = self._answers([request for request, _ in sound])
            self.on_batch(len(sound), time.perf_counter() - start)  # before the replies, so that metrics count them
            for (_, future), reply in zip(sound, replies, strict=True):
                if isinstance(reply, Exception):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)

    def _answers(self, requests: list[Any]) -> list[Any]:
        """The replies. A batch that fails is answered row by row, so that only the faulty request gets an error."""
        try:
            return self.answer(requests)
        except Exception as error:
            # Such an error of CUDA, which isn't a lack of memory, stays until the process ends.
            self._lost_device |= isinstance(error, torch.AcceleratorError)
            if len(requests) == 1:
                return [_failure(error)]
        # Not in the handler: the error's traceback holds the tensors of a batch that was too large for the memory.
        return [reply for request in requests for reply in self._answers([request])]

    def _next_batch(self) -> list[tuple[Batchable, Future]]:
        """Waits for requests; returns the next batch, [] after `stop` once all requests have been answered."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                batch, others = [], []
                for request, future in self._waiting:
                    fits = not batch or (len(batch) < self.rows and request.form == batch[0][0].form)
                    if not fits:
                        others.append((request, future))
                    elif future.set_running_or_notify_cancel():
                        batch.append((request, future))
                self._waiting = others
                if batch or self._stopping:
                    return batch


def _failure(error: Exception) -> RuntimeError:
    logger.error("the network failed", exc_info=error)
    return RuntimeError(f"the network failed ({type(error).__name__}); see the server's log.")

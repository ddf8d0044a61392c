"""Which request has which lane: each lane takes one at a time, and one that was given up on is out until it is done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from edge_agent.contract.errors import ModelUnavailable
from edge_agent.runtime.backend import RunCancelled
from edge_agent.runtime.gpu.device_memory import Event
from edge_agent.runtime.tensorrt.execution import Lane

# Of a lane that was given up on: how often it is looked at while somebody waits for it.
_LOOK_AGAIN_S = 0.005
# A run whose length is not known is looked at after a share of the time that it has taken: 6 % late at most.
_SHARE = 16
_LEAST_NAP_S, _LONGEST_NAP_S = 5e-5, 5e-3


class Wish:
    """Whether the runs that began under it shall end; from any thread."""

    __slots__ = ("is_cancelled",)

    def __init__(self) -> None:
        self.is_cancelled = False

    def check(self) -> None:
        """Go on, or not.

        Raises:
            RunCancelled: They shall end.
        """
        if self.is_cancelled:
            raise RunCancelled("the run was broken off")


class Awaited:
    """An event that is given up on when somebody wishes so.

    The GPU cannot be stopped, and a driver's wait cannot be broken off: so the event is looked at again and again. For
    runs whose length is known that is not worth its latency: ``patient`` waits in the driver.
    """

    __slots__ = ("_event", "_patient", "_wish")

    def __init__(self, event: Event, wish: Wish, *, patient: bool) -> None:
        self._event, self._wish, self._patient = event, wish, patient

    def is_done(self) -> bool:
        """See :class:`edge_agent.runtime.gpu.device_memory.Event`."""
        return self._event.is_done()

    def wait(self) -> None:
        """As the event's; or until it is given up on.

        Raises:
            RunCancelled: The GPU goes on with it.
            RuntimeError: It failed on the GPU.
        """
        if not self._patient:
            began = time.monotonic()
            while not self._event.is_done():
                self._wish.check()
                taken = time.monotonic() - began
                time.sleep(min(max(taken / _SHARE, _LEAST_NAP_S), _LONGEST_NAP_S))
        self._event.wait()

    def elapsed_us(self, since: Event) -> float:
        """See :class:`edge_agent.runtime.gpu.device_memory.Event`."""
        return self._event.elapsed_us(since)


class LanePool:
    """The lanes of one engine; safe from any thread.

    Args:
        dispose: Closes a lane; called once for each, from any thread, once the pool is closed and the lane done.
    """

    def __init__(self, lanes: Sequence[Lane], *, dispose: Callable[[Lane], None]) -> None:
        self._free = list(lanes)
        self._given_up: list[tuple[Lane, Event]] = []
        self._dispose = dispose
        self._changed = threading.Condition()
        self._closed = False

    def take(self, wish: Wish) -> Lane:
        """A lane that nothing runs on; waits for one.

        Raises:
            RunCancelled: Somebody wished so meanwhile.
            ModelUnavailable: The model was closed.
        """
        with self._changed:
            while True:
                wish.check()
                if self._closed:
                    raise ModelUnavailable("the model was closed meanwhile; ask again")
                self._take_back()
                if self._free:
                    return self._free.pop()  # the last one used: what it remembers is what comes next, as a rule
                self._changed.wait(_LOOK_AGAIN_S if self._given_up else None)

    def give(self, lane: Lane) -> None:
        """Give a lane back, its run done."""
        with self._changed:
            if not self._closed:
                self._free.append(lane)
                self._changed.notify()
                return
        self._dispose(lane)

    def give_up(self, lane: Lane, event: Event) -> None:
        """Give a lane back on which something still runs, until ``event``."""
        with self._changed:
            if not self._closed:
                self._given_up.append((lane, event))
                self._changed.notify_all()  # those who wait must look at the clock from now on
                return
        self._dispose_later([(lane, event)])

    def wake(self) -> None:
        """Let those who wait see what somebody wished."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Dispose of the lanes: the free ones now, the others when their run is done."""
        with self._changed:
            self._closed = True
            free, self._free = self._free, []
            given_up, self._given_up = self._given_up, []
            self._changed.notify_all()
        for lane in free:
            self._dispose(lane)
        if given_up:
            self._dispose_later(given_up)

    def _take_back(self) -> None:
        for entry in [entry for entry in self._given_up if _has_ended(entry[1])]:
            self._given_up.remove(entry)
            self._free.append(entry[0])

    def _dispose_later(self, lanes: list[tuple[Lane, Event]]) -> None:
        """In a thread, once the GPU does not write to their memory any more; a run that hangs keeps its own."""

        def run() -> None:
            for lane, event in lanes:
                while not _has_ended(event):
                    time.sleep(_LOOK_AGAIN_S)
                self._dispose(lane)

        threading.Thread(target=run, name="gpu-lanes-given-up", daemon=True).start()


def _has_ended(event: Event) -> bool:
    """Whether the GPU is done with what an event stands behind, well or not."""
    try:
        return event.is_done()
    except RuntimeError:
        return True  # it failed, or the GPU was let go of: nothing is written any more

"""Tensors between threads: all come, in order, and few wait."""

import threading

import numpy as np

from hansa.worker.pipe import Pipe


def numbered(index, count=250):
    return f"t{index}", np.full(count, index, np.float32)


def test_all_come_in_order_and_no_more_wait_than_the_bound():
    pipe, most, came = Pipe(bound=3000), 0, []

    def send():
        for index in range(20):
            pipe.put(*numbered(index))
        pipe.close()

    sender = threading.Thread(target=send)
    sender.start()
    for name, value in pipe:
        most = max(most, pipe.waiting)
        came.append((name, value.tolist()))
    sender.join()
    assert came == [(name, value.tolist()) for name, value in map(numbered, range(20))]
    assert most <= 3000


def test_a_tensor_larger_than_the_bound_goes_alone():
    pipe = Pipe(bound=10)
    pipe.put(*numbered(1))
    pipe.close()
    assert [name for name, _ in pipe] == ["t1"]


def test_what_is_sent_may_be_changed_afterwards():
    pipe, (name, value) = Pipe(), numbered(1)
    pipe.put(name, value)
    value[:] = 9
    pipe.close()
    assert [float(got[0]) for _, got in pipe] == [1.0]


def test_a_sender_does_not_wait_for_a_reader_that_is_gone():
    pipe = Pipe(bound=10)
    pipe.put(*numbered(1))
    sender = threading.Thread(target=lambda: pipe.put(*numbered(2)))
    sender.start()
    pipe.drain()
    sender.join(20)
    assert not sender.is_alive()
    assert pipe.waiting == 0

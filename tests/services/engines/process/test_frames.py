"""Frames between a service and its engine's process: what goes in comes out, and nothing else is a frame."""

import json
import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from logitcask_services.engines.process.frames import (
    MAX_BODY_BYTES,
    PREFIX,
    Connection,
    ConnectionGoneError,
    Frame,
    FrameError,
    decode,
    encode,
    sizes_of,
)

DTYPES = st.sampled_from(["<u1", "<u2", "<u4", "<u8", "<i4", "<i8", "<f2", "<f4", "<f8", ">u2", ">f4"])
ARRAYS = st.dictionaries(
    st.text(max_size=8), arrays.arrays(DTYPES, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0)), max_size=5
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
HEADS = st.dictionaries(st.text(max_size=8).filter(lambda name: name != "arrays"), VALUES, max_size=4)


def joined(frame):
    return b"".join(bytes(part) for part in encode(frame))


def parsed(content):
    head_bytes, body_bytes = sizes_of(content[: PREFIX.size])
    rest = content[PREFIX.size :]
    assert len(rest) == head_bytes + body_bytes
    return decode(rest[:head_bytes], np.frombuffer(rest[head_bytes:], np.uint8))


@settings(deadline=None, max_examples=60)
@given(HEADS, ARRAYS)
def test_what_goes_in_comes_out(head, given_arrays):
    frame = parsed(joined(Frame(head=head, arrays=given_arrays)))
    assert frame.head == head
    assert list(frame.arrays) == list(given_arrays)
    for name, array in given_arrays.items():
        assert frame.arrays[name].dtype == array.dtype.newbyteorder("<")
        np.testing.assert_array_equal(frame.arrays[name], array, strict=array.dtype.byteorder != ">")


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200), st.binary(max_size=64))
def test_other_bytes_are_refused_in_words(head, body):
    """Nothing is raised that is no FrameError, and random bytes are no frame."""
    with pytest.raises(FrameError, match="frame"):
        decode(head, np.frombuffer(body, np.uint8))
    with pytest.raises(FrameError, match="a frame starts with"):
        sizes_of((head + bytes(PREFIX.size))[: PREFIX.size])


@pytest.mark.parametrize(
    ("listing", "words"),
    [
        ([["a", "<u2", [5]]], "ends at byte 10 of a body of 8"),
        ([["a", "<u2", [0]], ["a", "<u8", [1]]], "under names of their own"),
        ([["a", "<u2", [-1]]], "listed as name"),
        ([["a", "<u2", [True]]], "listed as name"),
        ([["a", "O", [1]]], "listed as name"),
        ([["a", "V8", [1]]], "listed as name"),
        ([["a", "nonsense", [1]]], "listed as name"),
        ([["a", "<u2,<u2", [1]]], "listed as name"),
        ([["a", "<u2"]], "listed as name"),
        ([3], "listed as name"),
        ({}, "lists `arrays`"),
        ([], "take 0 bytes"),
        ([["a", "<u8", [2**40, 2**40]]], "ends at byte"),
    ],
)
def test_arrays_that_are_none(listing, words):
    with pytest.raises(FrameError, match=words):
        decode(json.dumps({"arrays": listing}).encode(), np.zeros(8, np.uint8))


def test_a_body_that_is_too_large_is_refused_before_memory_is_taken():
    with pytest.raises(FrameError, match="a body of at most"):
        sizes_of(PREFIX.pack(b"LCF1", 10, MAX_BODY_BYTES + 1))


@pytest.mark.parametrize("array", [np.array(["text"]), np.array([None]), np.array([1 + 2j])])
def test_objects_do_not_travel(array):
    with pytest.raises(FrameError, match="carries numbers"):
        encode(Frame(head={}, arrays={"a": array}))


def test_large_frames_from_several_threads_stay_whole():
    """Larger than the socket takes at once, and more arrays than one system call."""
    ours, theirs = Connection.pair()
    other = Connection(theirs)
    frames = [
        Frame(head={"sender": sender}, arrays={str(at): np.full(1000, sender, np.uint32) for at in range(700)})
        for sender in range(3)
    ]
    threads = [threading.Thread(target=ours.send, args=(frame,)) for frame in frames]
    for thread in threads:
        thread.start()
    got = [other.receive() for _ in frames]
    for thread in threads:
        thread.join()
    assert sorted(frame.head["sender"] for frame in got) == [0, 1, 2]
    for frame in got:
        assert len(frame.arrays) == 700
        assert all((array == frame.head["sender"]).all() for array in frame.arrays.values())
    ours.close()
    ours.close()
    with pytest.raises(ConnectionGoneError):
        other.receive()
    with pytest.raises(ConnectionGoneError):
        other.send(frames[0])
    other.close()


def test_a_frame_that_is_cut_off_is_the_end():
    ours, theirs = Connection.pair()
    content = joined(Frame(head={"a": 1}, arrays={"b": np.arange(9)}))
    os.write(theirs.fileno(), content + content[:-3])
    theirs.close()
    assert [frame.head for frame in ours.frames()] == [{"a": 1}]
    ours.close()

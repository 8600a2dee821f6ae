"""What the C++ operations are given, field for field as in the headers. Pointers must stay good during a call."""

import ctypes
from typing import Final


def _fields(pointers: str, counts: str, numbers: str = "") -> list[tuple[str, type]]:
    kinds = ((pointers, ctypes.c_void_p), (counts, ctypes.c_int64), (numbers, ctypes.c_float))
    return [(name, kind) for names, kind in kinds for name in names.split()]


class DecodeAttention(ctypes.Structure):
    """See decode_attention.h."""

    _fields_ = _fields(
        "keys values query out tables table_starts first last",
        "sequences heads groups dim query_row query_head block_size block_stride token_stride head_stride type threads",
        "scaling",
    )


class ChunkAttention(ctypes.Structure):
    """See chunk_attention.h."""

    _fields_ = _fields(
        "keys values query out table",
        "start rows window heads groups dim query_row query_head block_size block_stride token_stride head_stride type "
        "threads",
        "scaling",
    )


class Write(ctypes.Structure):
    """See engine_ops.cpp."""

    _fields_ = _fields(
        "key value keys values slots",
        "rows heads dim key_row key_head value_row value_head block_size block_stride token_stride head_stride type",
    )


class HeadNorm(ctypes.Structure):
    """See rows.h."""

    _fields_ = _fields("weight", "", "epsilon")


class Rotation(ctypes.Structure):
    """See engine_ops.cpp."""

    _fields_ = (
        *_fields("x cosines sines", ""),
        ("query_norm", HeadNorm),
        ("key_norm", HeadNorm),
        *_fields("", "rows row_stride query_heads key_heads dim type threads"),
    )


class Matrix(ctypes.Structure):
    """See products.h."""

    _fields_ = _fields("weight bias", "outputs inputs padded_inputs width")


class Layer(ctypes.Structure):
    """See step.h."""

    _fields_ = (
        *_fields("norm_before_attention norm_before_mlp keys values", ""),
        ("query_norm", HeadNorm),
        ("key_norm", HeadNorm),
        *((name, Matrix) for name in ("qkv", "output", "gate_and_up", "down")),
        *_fields("", "window", "epsilon_before_attention epsilon_before_mlp scaling"),
    )


class Step(ctypes.Structure):
    """See step.h."""

    _fields_ = (
        *_fields("layers embedding norm cosines sines tokens positions slots tables table_starts sampled", ""),
        *_fields("hidden mixed attended inner normed logits", ""),
        ("head", Matrix),
        *_fields(
            "",
            "num_layers rows samples width heads groups dim block_size block_stride token_stride head_stride type "
            "threads",
            "epsilon",
        ),
    )


STRUCTS: Final = (DecodeAttention, ChunkAttention, Write, HeadNorm, Rotation, Matrix, Layer, Step)
"""All of them: a library whose own are of other sizes is not used. Fields of one size in another order pass."""

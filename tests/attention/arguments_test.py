# SPDX-License-Identifier: Apache-2.0
"""One check of arguments for every attention function: same call, same words."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from attention import attention, attention_map, sharded_tda, tda_attention

B, T, H, D, KV = 2, 4, 4, 8, 2
Q = jnp.ones((2, B, T, H, D))
K = jnp.ones((2, B, T, KV, D))
V = jnp.ones((B, T, KV, D))
LAM = jnp.full((H,), 0.5)
IDS = np.ones((B, T), np.int32)

# What is changed in a good call, and all of what must be said: argument, value, allowed, remedy.
MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "views": (
        {"q": Q[:1]},
        r"q has shape \(1, 2, 4, 4, 8\): tda takes \[2, B, T, H, D\]; stack its two views in front",
    ),
    "keys of another width": (
        {"k": K[..., :4]},
        r"k has shape \(2, 2, 4, 2, 4\): tda takes \[2, 2, S, Hkv, 8\] to match q",
    ),
    "values of other keys": (
        {"v": V[:, :3]},
        r"v has shape \(2, 3, 2, 8\): must be \[2, 4, 2, Dv\] to match k",
    ),
    "no key head": (
        {"k": K[..., :0, :], "v": V[..., :0, :]},
        r"k has shape \(2, 2, 4, 0, 8\): no dimension may be empty",
    ),
    "no query": ({"q": Q[:, :, :0]}, r"q has shape \(2, 2, 0, 4, 8\): no dimension may be empty"),
    "groups": (
        {"k": K[..., [0, 1, 1], :], "v": V[..., [0, 1, 1], :]},
        "q has H=4 heads: must be a multiple of the Hkv=3 heads of k",
    ),
    "integers": (
        {"q": Q.astype(int), "k": K.astype(int), "v": V.astype(int)},
        "q has dtype int32: must be floating; cast it with .astype",
    ),
    "mixed": (
        {"k": K.astype(jnp.bfloat16)},
        "k has dtype bfloat16: must be float32 as q; cast one of them with .astype",
    ),
    "mixed values": (
        {"v": V.astype(jnp.float16)},
        "v has dtype float16: must be float32 as q; cast one of them with .astype",
    ),
    "one side of segments": (
        {"q_segment_ids": IDS},
        "kv_segment_ids is missing: give both segment ids or neither",
    ),
    "segments of other keys": (
        {"q_segment_ids": IDS, "kv_segment_ids": IDS[:, :3]},
        r"kv_segment_ids has shape \(2, 3\): must be \[2, 4\]",
    ),
    "segments as floats": (
        {"q_segment_ids": IDS.astype(np.float32), "kv_segment_ids": IDS},
        "q_segment_ids has dtype float32: must be integers, 0 for padding; cast it with .astype",
    ),
    "offsets of other rows": (
        {"q_offset": np.zeros(3, np.int32)},
        r"q_offset has shape \(3,\): must be an int or integers \[2\]",
    ),
    "an offset between keys": (
        {"q_offset": np.asarray(0.5, np.float32)},
        r"q_offset has dtype float32: must be an int or integers \[2\]",
    ),
}


def arguments(change: dict[str, Any]) -> dict[str, Any]:
    return {"q": Q, "k": K, "v": V, **change}


@pytest.mark.parametrize("what", MALFORMED)
def test_every_function_names_argument_value_allowed_and_remedy(what: str) -> None:
    change, message = MALFORMED[what]
    bad = arguments(change)
    without_values = {name: x for name, x in bad.items() if name != "v"}
    with pytest.raises(ValueError, match=f"^{message}"):
        tda_attention(**bad, lam=LAM)
    with pytest.raises(ValueError, match=f"^{message}"):
        attention(**bad, kind="tda")
    if "v" not in change:
        with pytest.raises(ValueError, match=f"^{message}"):
            attention_map(**without_values, kind="tda")


def test_the_unchanged_call_is_allowed() -> None:
    o = tda_attention(**arguments({}), lam=LAM)
    np.testing.assert_array_equal(attention(**arguments({}), kind="tda"), o)
    assert attention_map(Q, K, kind="tda").shape == (B, H, T, T)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": 0.0}, "beta=0.0: must be > 0"),
        ({"kappa": np.ones(3)}, r"kappa has shape \(3,\): must be a scalar or \[4\]"),
        ({"p": 0.5}, "p=0.5: must be a number >= 1"),
        ({"p": float("nan")}, "p=nan: must be a number >= 1"),
    ],
)
def test_knobs_are_checked_alike(change: dict[str, Any], message: str) -> None:
    """As arguments of `tda_attention` and, under their full name, as knobs of `attention`."""
    ((name, _),) = change.items()
    with pytest.raises(ValueError, match=f"^{message}"):
        tda_attention(Q, K, V, LAM, **change)
    as_knob = message.replace(name, rf"knobs\['{name}'\]", 1)
    for kind, views in (("tda", 2), ("tra", 1)):
        with pytest.raises(ValueError, match=f"^{as_knob}"):
            attention(Q[:views], K[:views], V, kind=kind, knobs=change)


def test_weights_of_the_second_view_are_one_per_head() -> None:
    with pytest.raises(ValueError, match=r"^lam has shape \(3,\): must be \[4\], one per head"):
        tda_attention(Q, K, V, LAM[:3])
    with pytest.raises(ValueError, match=r"^knobs\['lam'\] has shape \(3,\): must be a scalar or"):
        attention(Q, K, V, kind="tda", knobs={"lam": LAM[:3]})


def test_implementations_are_named_alike() -> None:
    allowed = "None, reference, xla, pallas_tpu, pallas_gpu, interpret"
    for call in (
        lambda: tda_attention(Q, K, V, LAM, implementation="flash"),
        lambda: attention(Q, K, V, kind="tda", implementation="flash"),
    ):
        with pytest.raises(ValueError, match=f"^implementation='flash': tda allows {allowed}$"):
            call()


def test_sharded_calls_are_checked_before_they_are_split() -> None:
    import jax

    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(ValueError, match=r"^k has shape \(2, 2, 4, 2, 4\): tda takes"):
        sharded_tda(mesh, Q, K[..., :4], V, LAM)
    with pytest.raises(ValueError, match=r"^beta=0.0: must be > 0"):
        sharded_tda(mesh, Q, K, V, LAM, beta=0.0)

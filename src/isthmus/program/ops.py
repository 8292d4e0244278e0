"""What every operation is: one table, by the name without namespace and overload ("add", not "aten.add.Tensor").

Every reading of a network's graph asks it: which operations are layers, which keep zeros, in which a result is affine.
An operation without a line is refused by the readings that would need one, and merely run by the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt
from typing import Literal

__all__ = ["OPS", "UNKNOWN", "Kind", "Linear", "Op", "names", "op_named"]

Kind = Literal[
    "affine",  # a layer: a weight [out, in, ...] and perhaps a bias
    "convolution",  # a convolution of another form: transposed, or over three axes
    "product",  # a product of two tensors, perhaps added to a third
    "pointwise",  # entry by entry, with broadcasting
    "norm",  # batch normalisation
    "own norm",  # normalisation by what each example itself holds
    "pool",  # over windows of a given size
    "adaptive pool",  # over as many windows as are asked for
    "resize",  # more positions of each channel
    "reduce",  # a sum, mean or maximum over whole axes
    "softmax",
    "reshape",  # the same entries in the same order
    "squeeze",  # axes of size 1 left out
    "shape",  # every entry of the result is an entry of the first argument, or 0
    "join",  # several tensors become one
    "part",  # one becomes several, or one of several is taken
    "identity",  # changes nothing in evaluation mode
    "cast",  # the same numbers in another type
    "constant",  # one number everywhere
    "table",  # made from numbers alone
    "along",  # each line of one axis by itself: running sums, differences, sorting
    "look up",  # entries of the first argument at places that whole numbers name
    "write",  # the first argument with entries overwritten, or added to, at such places
    "size",
    "embedding",
    "recurrent",
    "attention",
    "unknown",
]

Linear = Literal["", "jointly", "first", "each", "added", "scaled"]


@dataclass(frozen=True)
class Op:
    """The facts of one operation; what is left out is not known, or does not hold.

    `zero_at_zero`: f(0) = 0 entry by entry. `homogeneous`: f(c x) = c f(x) for c > 0. `independent`: no shift of f is a
    combination of others (Assumption 2.2 of Nguyen 2019). `bound`, `lipschitz` and `curvature`: the suprema of |f|,
    |f'| and |f''|, infinite at a kink. `linear`: in which tensor arguments it is affine: in all of them "jointly"; in
    the "first", or in "each" of the first two (with what is added), while the others are fixed; in what is "added" to a
    product, and in each factor; in values that are "scaled" by fixed statistics. `random` in training mode. `aliases`:
    the result may be a view of the argument although torch's schema does not say so.
    """

    kind: Kind
    zero_at_zero: bool = False
    homogeneous: bool = False
    independent: bool = False
    bound: float | None = None
    lipschitz: float | None = None
    curvature: float | None = None
    linear: Linear = ""
    random: bool = False
    aliases: bool = False


UNKNOWN = Op("unknown")


def _each(op: Op, several: str) -> dict[str, Op]:
    return dict.fromkeys(several.split(), op)


_MOVES = """unflatten permute transpose t unsqueeze expand slice select movedim moveaxis swapaxes swapdims mT adjoint
narrow index_select flip roll rot90 repeat repeat_interleave tile pixel_shuffle pixel_unshuffle channel_shuffle im2col
index tril triu diag diagonal unfold"""
_FUNCTIONS = """__and__ __or__ __xor__ acos addcmul bitwise_and bitwise_not bitwise_or bitwise_xor cos cosh eq erfc exp
exp2 fill floor_divide fmax fmin ge gt hardsigmoid isfinite isinf isnan le lerp log log10 log1p log2 log_sigmoid
logaddexp logical_and logical_not logical_or logical_xor lt masked_fill maximum minimum ne pow reciprocal remainder
rsqrt threshold where xlogy"""

_NEAREST = """upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d
_upsample_nearest_exact2d _upsample_nearest_exact3d"""
_DROPOUT = "dropout alpha_dropout feature_dropout feature_alpha_dropout"
_KEEPING = """sgn sign sin tan sinh asin atan erf expm1 square sqrt mish hardswish hardshrink floor ceil trunc round"""

OPS: dict[str, Op] = {
    # layers and products
    **_each(Op("affine", linear="each"), "linear conv1d conv2d"),
    **_each(Op("convolution"), "conv3d conv_transpose1d conv_transpose2d conv_transpose3d"),
    **_each(Op("product", linear="each"), "matmul mm bmm mv dot outer"),
    **_each(Op("product", linear="added"), "addmm addmv baddbmm"),
    **_each(Op("product", linear="each"), "_grouped_mm grouped_mm_fallback"),
    "einsum": Op("product", aliases=True),
    **_each(Op("norm", linear="scaled"), "batch_norm _native_batch_norm_legit_no_training"),
    **_each(Op("own norm"), "layer_norm native_layer_norm rms_norm group_norm instance_norm _weight_norm"),
    # activations
    "relu": Op("pointwise", True, True, True, bound=inf, lipschitz=1.0, curvature=inf),
    "leaky_relu": Op("pointwise", True, True, bound=inf, lipschitz=1.0, curvature=inf),
    "prelu": Op("pointwise", True, True),
    "rrelu": Op("pointwise", True, True),
    "softshrink": Op("pointwise", True, lipschitz=1.0),
    "abs": Op("pointwise", True, True, lipschitz=1.0),
    "tanh": Op("pointwise", True, independent=True, bound=1.0, lipschitz=1.0, curvature=4 / (3 * sqrt(3))),
    "sigmoid": Op("pointwise", independent=True, bound=1.0, lipschitz=0.25, curvature=1 / (6 * sqrt(3))),
    "softplus": Op("pointwise", independent=True, bound=inf, lipschitz=1.0, curvature=0.25),
    "silu": Op("pointwise", True, independent=True, bound=inf, lipschitz=1.0998393194985538, curvature=0.5),
    **_each(Op("pointwise", True, independent=True), "elu selu celu gelu relu6 softsign"),
    # continuous and piecewise linear with two pieces or more, or exponential units (Lemma 2.3); and, beyond the paper,
    # functions whose shifts are independent because their poles, branch points or tails differ
    **_each(Op("pointwise", independent=True), "hardtanh clamp clamp_max clamp_min"),
    # other operations entry by entry
    "neg": Op("pointwise", True, linear="jointly"),
    **_each(Op("pointwise", linear="jointly"), "add sub rsub"),
    **_each(Op("pointwise", True, linear="each"), "mul multiply"),
    **_each(Op("pointwise", linear="first"), "div true_divide"),
    **_each(Op("pointwise", True), _KEEPING),
    **_each(Op("pointwise"), _FUNCTIONS),
    # pooling and reductions
    **_each(Op("pool", homogeneous=True), "max_pool1d max_pool2d max_pool3d"),
    **_each(Op("pool", homogeneous=True), "max_pool1d_with_indices max_pool2d_with_indices"),
    **_each(Op("pool", homogeneous=True, linear="jointly"), "avg_pool1d avg_pool2d avg_pool3d"),
    **_each(Op("adaptive pool", homogeneous=True), "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"),
    **_each(
        Op("adaptive pool", homogeneous=True, linear="jointly"),
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d",
    ),
    **_each(Op("resize"), _NEAREST),
    **_each(Op("resize"), "upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d"),
    **_each(Op("reduce", homogeneous=True, linear="jointly"), "mean sum"),
    **_each(Op("reduce"), "all amax amin any logsumexp linalg_vector_norm max min norm prod std std_mean var var_mean"),
    **_each(Op("softmax"), "softmax _softmax log_softmax _log_softmax"),
    # moving entries
    **_each(
        Op("reshape", homogeneous=True, linear="jointly"), "view reshape flatten ravel view_as reshape_as _unsafe_view"
    ),
    "squeeze": Op("squeeze", homogeneous=True, linear="jointly"),
    **_each(Op("shape", linear="jointly"), _MOVES),
    **_each(Op("join", linear="jointly"), "cat concat concatenate stack"),
    **_each(Op("part", linear="jointly"), "split split_with_sizes chunk unbind tensor_split"),
    "getitem": Op("part", homogeneous=True, linear="jointly"),
    # what leaves its argument as it is
    **_each(Op("identity", linear="jointly"), "alias clone contiguous detach lift_fresh lift_fresh_copy positive"),
    **_each(Op("identity", linear="jointly", random=True, aliases=True), _DROPOUT),
    **_each(Op("cast"), "to _to_copy"),
    "type_as": Op("cast", aliases=True),
    **_each(Op("unknown", aliases=True), "atleast_1d atleast_2d atleast_3d"),
    # tensors made from numbers, and what reads whole numbers
    **_each(Op("constant"), "empty empty_like full full_like new_empty new_full new_ones new_zeros ones ones_like"),
    **_each(Op("constant"), "scalar_tensor zeros zeros_like"),
    **_each(Op("table"), "arange eye linspace"),
    "sym_size": Op("size"),
    **_each(Op("along", linear="jointly"), "cumsum diff"),
    **_each(Op("along"), "cummax cummin cumprod logcumsumexp sort topk argsort argmax argmin"),
    "gather": Op("look up", linear="first"),
    **_each(Op("look up"), "one_hot histc bincount"),
    **_each(Op("write", linear="jointly"), "scatter scatter_add index_add index_copy index_put"),
    "embedding": Op("embedding"),
    **_each(Op("recurrent"), "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"),
    "scaled_dot_product_attention": Op("attention"),
}


def op_named(base: str) -> Op:
    """The line of the table, or `UNKNOWN`.

    >>> op_named("relu").homogeneous, op_named("fft_fft").kind
    (True, 'unknown')
    """
    return OPS.get(base, UNKNOWN)


def names(*kinds: Kind) -> list[str]:
    """The operations of some kinds.

    >>> names("norm")
    ['batch_norm', '_native_batch_norm_legit_no_training']
    """
    return [name for name, op in OPS.items() if op.kind in kinds]

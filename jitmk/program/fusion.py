"""Which parts of a model are fused into the prologues and epilogues of others, and which are phases of their own."""

from __future__ import annotations

from dataclasses import dataclass, fields

from jitmk.model.spec import ModelSpec, QkNormScope
from jitmk.program.configs import MERGED_COLUMNS, MERGED_SPLITS, SHORT_HEAD
from jitmk.program.program import NARROW


@dataclass(frozen=True)
class Fusion:
    """What is fused.

    Attributes:
        norm: norms in front of projections, into the projection's prologue.
        post_norm: norms behind a block, into the prologue of the projection that reads the block's result.
        qk_norm: norms of queries and keys, into attention.
        rope: rotation and the append to the cache, into attention.
        merge: the merge of a few splits of attention, into the prologue of the projection behind it.
        activation: the MLP's activation, into the epilogue of gate and up.
        residual: the addition to the residual, into the epilogue of a block's last projection.
    """

    norm: bool = True
    post_norm: bool = True
    qk_norm: bool = True
    rope: bool = True
    merge: bool = True
    activation: bool = True
    residual: bool = True

    @classmethod
    def of(cls, spec: ModelSpec, wanted: bool | Fusion) -> Fusion:
        """What of `wanted` the device code can do for a model: True is all, False nothing."""
        return (wanted if isinstance(wanted, Fusion) else FUSED if wanted else UNFUSED).possible(spec)

    @property
    def merged_splits(self) -> int:
        """Into how many parts attention may split the context before they have to be merged by a phase of its own."""
        return MERGED_SPLITS if self.merge else 1

    def early_tiles(self, spec: ModelSpec) -> int:
        """How many tiles of the cache a warp reads before it has the queries.

        With three an SM is later to look for their words, which only one can afford that has little else to do, as in
        narrow models. Registers are enough for short heads, and in kernels without post-norms.
        """
        return 3 if self.merge and spec.head_dim <= SHORT_HEAD and not spec.post_norm else 1

    def possible(self, spec: ModelSpec) -> Fusion:
        """What of this the device code can do for a model.

        A norm of queries and keys is fused where a unit of attention has all that it runs over, and then the rotation
        behind it must be fused too. A post-norm is fused where one projection reads the sum, whose own norm must then
        be in its prologue as well: with a parallel block the sums of attention and MLP are made one after the other.
        Splits are merged by the projection where its warps can hold all of their results at once, and only in narrow
        models, where a phase that all wait for takes longer than that.
        """
        by_head = spec.qk_norm is None or spec.qk_norm.scope is QkNormScope.HEAD
        return Fusion(
            self.norm,
            self.post_norm and self.norm and not spec.parallel,
            self.qk_norm and self.rope and by_head,
            self.rope,
            self.merge and spec.hidden_size <= NARROW and spec.attention_size <= MERGED_COLUMNS,
            self.activation,
            self.residual,
        )


FUSED = Fusion()
UNFUSED = Fusion(*[False] * len(fields(Fusion)))

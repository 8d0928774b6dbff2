r"""The rate of arithmetic of an EM iteration, against plain matrix products of the same shapes.

With the P = (d + 1)(d + 2) / 2 features 1, x and the upper triangle of x xᵀ of every row, an iteration is two products:
joint log-densities (k, P) x (P, n) and moments (P, n) x (n, k), 2 n k P operations each. The rate is these 4 n k P
operations over the seconds of a whole iteration, exponentials and all; the ceiling is the same number over the seconds
of the two products alone, each in the fastest layout of `jnp.dot` that we know of, over all rows at once or block by
block on rows that stay in cache, on every device at once.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.benchmarks import subjects
from tests.benchmarks.data import simulate
from tests.benchmarks.iterations import our_steps
from tests.benchmarks.rows import Row, Target
from tests.benchmarks.timing import medians, seconds_of, take_turns

SECTION = "products"
SHAPES = ((65536, 32, 16), (16384, 64, 16))
QUICK_SHAPES = ((4096, 32, 16),)
BLOCKS = (512, 1024, 2048)
NUM_FINALISTS = 3
FRACTION = 0.5

# Each layout: the axes of the factor with components and of the features as they lie in memory, and their product.
JOINT = {
    "(k,P)(P,n)": (("k", "P"), ("P", "n"), lambda a, b: jnp.dot(a, b, precision="highest")),
    "(k,P)(n,P)'": (("k", "P"), ("n", "P"), lambda a, b: jnp.dot(a, b.T, precision="highest")),
    "(n,P)(P,k)": (("P", "k"), ("n", "P"), lambda a, b: jnp.dot(b, a, precision="highest")),
    "(n,P)(k,P)'": (("k", "P"), ("n", "P"), lambda a, b: jnp.dot(b, a.T, precision="highest")),
}
MOMENTS = {
    "(P,n)(n,k)": (("n", "k"), ("P", "n"), lambda a, b: jnp.dot(b, a, precision="highest")),
    "(P,n)(k,n)'": (("k", "n"), ("P", "n"), lambda a, b: jnp.dot(b, a.T, precision="highest")),
    "(k,n)(P,n)'": (("k", "n"), ("P", "n"), lambda a, b: jnp.dot(a, b.T, precision="highest")),
    "(k,n)(n,P)": (("k", "n"), ("n", "P"), lambda a, b: jnp.dot(a, b, precision="highest")),
    "(n,k)'(n,P)": (("n", "k"), ("n", "P"), lambda a, b: jnp.dot(a.T, b, precision="highest")),
}


def run(quick: bool) -> Iterator[Row]:
    for shape in QUICK_SHAPES if quick else SHAPES:
        problem = simulate(*shape)
        for dtype in ("float64", "float32"):
            x = subjects.place(problem.x, dtype)
            ours = our_steps(x, subjects.mixture_of(problem.start, "full", dtype), "full", 2, 20)
            compile_seconds, fit = ours.warm_up()
            with subjects.precision(dtype):
                layout, seconds = {}, 0.0
                for role, layouts in (("joint", JOINT), ("moments", MOMENTS)):
                    layout[role], best = fastest(shape, dtype, layouts, BLOCKS[1:2] if quick else BLOCKS)
                    seconds += best
                    ours.measure()
            ours.measure()
            operations = 4 * shape[0] * shape[2] * num_statistics(shape[1])
            yield Row(
                section=SECTION,
                what="rate of arithmetic",
                peer="jnp.dot",
                dtype=dtype,
                family="full",
                shape=shape,
                seconds=ours.seconds,
                peer_seconds=seconds,
                ratio=seconds / ours.seconds,
                target=Target("ratio", at_least=FRACTION),
                steps=int(fit.num_steps),
                log_likelihood=float(fit.log_likelihood),
                result=subjects.sentence(fit),
                compile_seconds=compile_seconds,
                note=f"{operations / ours.seconds / 1e9:.3g} of {operations / seconds / 1e9:.3g} GF/s; "
                f"{layout['joint']}, {layout['moments']}",
                extra={"operations": operations, "layouts": layout},
            )


def num_statistics(num_features: int) -> int:
    return (num_features + 1) * (num_features + 2) // 2


def fastest(
    shape: tuple[int, int, int], dtype: str, layouts: dict, blocks: tuple[int, ...], repeats: int = 5
) -> tuple[str, float]:
    """Name and seconds of the fastest way to form one of the two products."""
    num_rows, num_features, num_components = shape
    sizes = {"n": num_rows, "P": num_statistics(num_features), "k": num_components}
    builders = {}
    for name, layout in layouts.items():
        builders[f"{name} whole"] = functools.partial(at_once, sizes, dtype, layout)
        for block in blocks:
            if num_rows % (block * jax.device_count()) == 0:
                builders[f"{name} in blocks of {block}"] = functools.partial(in_blocks, sizes, block, dtype, layout)
    trial = {}
    for name, build in builders.items():
        # One at a time: the features of all rows are hundreds of megabytes.
        program = build()
        seconds_of(program)
        trial[name] = min(seconds_of(program)[0] for _ in range(2))
    finalists = {name: builders[name]() for name in sorted(trial, key=trial.__getitem__)[:NUM_FINALISTS]}
    for program in finalists.values():
        seconds_of(program)
    times = medians(take_turns(finalists, repeats))
    best = min(times, key=times.__getitem__)
    return best, times[best]


def _mesh() -> Mesh:
    return Mesh(jax.devices(), ("rows",))


def _array(axes: tuple[str, ...], sizes: dict[str, int], dtype: str, shared_out: str | None = None) -> jax.Array:
    """An array of ones, the axis `shared_out` dealt to the devices; what is multiplied does not matter."""
    shape = tuple(sizes[axis] for axis in axes)
    return jax.block_until_ready(jnp.ones(shape, dtype, device=NamedSharding(_mesh(), _spec(axes, shared_out))))


def _spec(axes: tuple[str, ...], shared_out: str | None) -> PartitionSpec:
    return PartitionSpec(*("rows" if axis == shared_out else None for axis in axes))


def at_once(sizes: dict[str, int], dtype: str, layout: tuple) -> Callable[[], jax.Array]:
    """The product over all rows, each device its share of them; partial sums stay with their device."""
    left, right, product = layout
    a, b = _array(left, sizes, dtype, "n"), _array(right, sizes, dtype, "n")
    shared = jax.shard_map(
        lambda a, b: product(a, b)[None],
        mesh=_mesh(),
        in_specs=(_spec(left, "n"), _spec(right, "n")),
        out_specs=PartitionSpec("rows"),
    )
    return functools.partial(jax.jit(shared), a, b)


def in_blocks(sizes: dict[str, int], block: int, dtype: str, layout: tuple) -> Callable[[], jax.Array]:
    """As many products of one block as there are blocks of rows: the features stay in cache, the factor k changes."""
    left, right, product = layout
    num_blocks = sizes["n"] // block
    sizes = {**sizes, "n": block, "b": num_blocks}
    a, b = _array(("b", *left), sizes, dtype, "b"), _array(right, sizes, dtype)

    def scanned(factors: jax.Array, b: jax.Array) -> jax.Array:
        total = jnp.zeros_like(product(factors[0], b))
        return jax.lax.scan(lambda total, a: (total + product(a, b), None), total, factors)[0][None]

    shared = jax.shard_map(
        scanned,
        mesh=_mesh(),
        in_specs=(PartitionSpec("rows"), PartitionSpec()),
        out_specs=PartitionSpec("rows"),
        check_vma=False,
    )
    return functools.partial(jax.jit(shared), a, b)

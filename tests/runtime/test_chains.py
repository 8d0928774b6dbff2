"""Runs in stretches: the same draws however they are divided, resumed from a file, kept after Ctrl-C."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesgmm import FitWarning, InputError, fit_gibbs, fit_nuts
from bayesgmm.engines.fit import ResultCode
from bayesgmm.likelihood.rows import as_rows
from bayesgmm.runtime import chains
from bayesgmm.runtime.chains import Chains, Checkpoint, Run, advance_each, run_in_stretches, stretch
from bayesgmm.runtime.progress import Progress


def walk(chain_method="parallel", num_chains=4, room=16):
    """A random walk as a run of chains."""

    def one(own, first, count):
        key, place = own

        def step(place, index):
            place = place + jax.random.normal(jax.random.fold_in(key, index))
            return place, {"place": place}

        place, drawn = stretch(step, place, first, count, room)
        return (key, place), drawn

    chains = Chains(num_chains, chain_method)
    run = functools.partial(advance_each, jax.jit(chains.together.map(one)))
    state = (jax.random.split(jax.random.key(3), num_chains), jnp.zeros(num_chains))
    return (lambda state, first, count: run(state, jnp.asarray(first), jnp.asarray(count))), chains.apart(state)


def expected_walk(num_chains, num_steps):
    keys = jax.random.split(jax.random.key(3), num_chains)
    moves = [[jax.random.normal(jax.random.fold_in(key, i)) for i in range(num_steps)] for key in keys]
    return np.cumsum(np.asarray(moves), 1)


@pytest.mark.parametrize("chain_method", ["parallel", "sequential", "vectorized"])
@pytest.mark.parametrize("num_chains", [1, 3, 4, 12])
def test_draws_do_not_depend_on_how_they_are_divided(chain_method, num_chains):
    advance, state = walk(chain_method, num_chains)
    found = run_in_stretches(advance, state, run_of(num_draws=30))
    np.testing.assert_allclose(found.draws["place"], expected_walk(num_chains, 37)[:, 7:], rtol=1e-5, atol=1e-5)
    assert not found.interrupted
    assert found.num_steps == 37


def test_a_program_can_map_over_chains_that_others_compute_one_by_one():
    chains = Chains(3, "sequential")
    whole = jax.jit(chains.map(lambda own, factor: own * factor))(jnp.arange(3.0), 2.0)
    np.testing.assert_array_equal(whole, [0.0, 2.0, 4.0])
    one = jax.jit(chains.together.map(lambda own, factor: (own[0], own[1] * factor)))
    keys = jax.random.split(jax.random.key(1), 3)
    states, drawn = advance_each(one, chains.apart((keys, jnp.arange(3.0))), 2.0)
    np.testing.assert_array_equal(drawn, whole)
    for state, key in zip(states, keys, strict=True):
        np.testing.assert_array_equal(jax.random.key_data(state), jax.random.key_data(key)[None])
    assert one._cache_size() == 1


def run_of(told=None, num_draws=60, **options):
    return Run(num_warmup=7, num_draws=num_draws, room=16, progress=Progress("walk", told), fewest=4, **options)


class Stop:
    """Lets a run go on for so many stretches, then raises once."""

    def __init__(self, advance, after, error):
        self.advance, self.after, self.error = advance, after, error

    def __call__(self, *args):
        self.after -= 1
        if self.after == -1:
            raise self.error
        return self.advance(*args)


def test_crashed_run_goes_on_to_the_same_draws(tmp_path):
    advance, state = walk()
    whole = run_in_stretches(advance, state, run_of())
    path = tmp_path / "deep" / "run.npz"
    saving = Checkpoint(path, {"seed": 3}, seconds=-1.0)
    with pytest.raises(RuntimeError, match="power cut"):
        run_in_stretches(Stop(advance, 4, RuntimeError("power cut")), state, run_of(checkpoint=saving))
    assert path.exists()
    assert [file.name for file in path.parent.iterdir()] == ["run.npz"]
    told = []
    counted = Stop(advance, 100, None)
    resumed = run_in_stretches(counted, state, run_of(told.append, checkpoint=Checkpoint(path, {"seed": 3})))
    assert "resumed" in told[0]
    np.testing.assert_array_equal(resumed.draws["place"], whole.draws["place"])
    assert not path.exists()


def test_checkpoint_of_another_run_is_refused(tmp_path):
    _, state = walk()
    path = tmp_path / "run.npz"
    Checkpoint(path, {"x": np.zeros(3)}).save(state, [], 5)
    other = Checkpoint(path, {"x": np.array([0.0, 0.0, 1.0])})
    with pytest.raises(InputError, match="is of a run with other data or settings, or by another version; delete it"):
        other.load(state)
    path.write_text("no zip file")
    with pytest.raises(InputError, match="is no checkpoint of a run"):
        Checkpoint(path, {"x": np.zeros(3)}).load(state)


def test_another_version_does_not_resume(tmp_path, monkeypatch):
    """It may draw otherwise: a run that it continued would be neither the one nor the other."""
    from bayesgmm.engines import draws
    from bayesgmm.target.problem import make_problem

    x = np.arange(12.0)[:, None]
    problem = make_problem(as_rows(x), 2, "full", None, jax.random.key(0))

    def identity():
        steps = {"num_warmup": 1, "num_draws": 1, "room": 1}
        return draws.make_run(
            "nuts", problem, (), progress=None, checkpoint=tmp_path / "run.npz", **steps
        ).checkpoint.identity

    first = identity()
    assert first == identity()
    monkeypatch.setattr(draws.importlib.metadata, "version", lambda name: "9.9.9")
    assert first != identity()


def test_interrupt_keeps_what_was_drawn():
    advance, state = walk()
    found = run_in_stretches(Stop(advance, 4, KeyboardInterrupt()), state, run_of())
    assert found.interrupted
    kept = found.draws["place"].shape[1]
    assert 4 <= kept < 60
    np.testing.assert_allclose(found.draws["place"], expected_walk(4, 7 + kept)[:, 7:], rtol=1e-5, atol=1e-5)
    with pytest.raises(KeyboardInterrupt):
        run_in_stretches(Stop(advance, 1, KeyboardInterrupt()), state, run_of())


def test_a_bar_is_shown_where_one_is_asked_for(capsys):
    advance, state = walk()
    run_in_stretches(advance, state, run_of(True))
    assert re.search(r"walk.*67/67", capsys.readouterr().err)
    run_in_stretches(advance, state, run_of(None))
    assert not capsys.readouterr().err


def test_interrupt_at_the_very_end_loses_nothing(tmp_path):
    advance, state = walk()
    checkpoint = Checkpoint(tmp_path / "run.npz", "walk")

    def stop(message):
        if message.startswith("walk: 67 of 67"):
            raise KeyboardInterrupt

    found = run_in_stretches(advance, state, run_of(stop, checkpoint=checkpoint))
    assert not found.interrupted
    assert found.draws["place"].shape[1] == 60
    assert not checkpoint.path.exists()


def test_interrupt_right_after_resuming_keeps_what_was_on_file(tmp_path):
    advance, state = walk()
    checkpoint = Checkpoint(tmp_path / "run.npz", "walk")
    run = run_of(checkpoint=checkpoint)
    part = run_in_stretches(Stop(advance, 4, KeyboardInterrupt()), state, run)
    again = run_in_stretches(Stop(advance, 0, KeyboardInterrupt()), state, run)
    assert again.interrupted
    np.testing.assert_array_equal(again.draws["place"], part.draws["place"])
    assert checkpoint.path.exists()


@pytest.mark.parametrize("engine", [fit_gibbs, fit_nuts])
def test_interrupted_fit_says_so_and_goes_on_when_called_again(engine, tmp_path, monkeypatch, key):
    x = np.random.default_rng(0).normal(size=(60, 1)) + 4 * (np.arange(60) % 2)[:, None]
    path = tmp_path / "run.npz"
    options = {"family": "diag", "key": key, "num_chains": 2, "num_warmup": 50, "num_draws": 60, "num_starts": 1}
    whole = engine(x, 2, checkpoint=False, on_failure="ignore", **options)
    calls = []

    class Told:
        def __call__(self, message):
            calls.append(message)
            if len(calls) == 7:
                raise KeyboardInterrupt

    monkeypatch.setattr(chains, "_STRETCH_SECONDS", 0.0)  # one step at a time
    monkeypatch.setattr(chains, "_FIRST_STRETCH", 50)
    with pytest.warns(FitWarning, match="interrupted"):
        part = engine(x, 2, checkpoint=path, progress=Told(), **options)
    assert part.code is ResultCode.interrupted
    kept = part.draws.draw_shape[1]
    assert 4 <= kept < 60
    np.testing.assert_array_equal(part.draws.means, whole.draws.means[:, :kept])
    told = []
    resumed = engine(x, 2, checkpoint=path, progress=told.append, on_failure="ignore", **options)
    assert "resumed" in told[0]
    np.testing.assert_array_equal(resumed.draws.means, whole.draws.means)
    assert not path.exists()


def test_interrupted_single_chain_keeps_only_what_can_be_judged(key):
    x = np.random.default_rng(0).normal(size=(60, 1)) + 4 * (np.arange(60) % 2)[:, None]

    def stop_after(kept):
        def listen(message):
            if int(message.split(": ")[1].split(" of")[0]) >= 20 + kept:
                raise KeyboardInterrupt

        return listen

    options = {"family": "diag", "key": key, "num_chains": 1, "num_warmup": 20, "num_draws": 500, "num_starts": 1}
    part = fit_gibbs(x, 2, checkpoint=False, progress=stop_after(8), on_failure="ignore", **options)
    assert part.code is ResultCode.interrupted
    assert part.draws.draw_shape[1] >= 8
    with pytest.raises(KeyboardInterrupt):
        fit_gibbs(x, 2, checkpoint=False, progress=stop_after(0), on_failure="ignore", **options)


def test_the_best_chain_method_uses_the_devices():
    assert chains.make_chains(4, None).method == "parallel"
    assert chains.make_chains(10**6, None).method == "parallel"  # by eighths
    assert chains.make_chains(11, None).method == chains.make_chains(1, None).method == "sequential"

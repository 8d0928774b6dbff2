"""Variational inference: close to the posterior where the guide can be, honest about its stopping and its misfit."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import DATA, compilations, target_of, to_float32
from numpyro.distributions import constraints
from numpyro.handlers import reparam
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoBNAFNormal, AutoDelta, AutoIAFNormal, AutoLaplaceApproximation, AutoNormal
from numpyro.infer.importance import psis_diagnostic
from numpyro.infer.initialization import init_to_value
from numpyro.infer.util import potential_energy

import bayesgmm
from bayesgmm.engines import guides, vi
from bayesgmm.engines.draws import pareto_khat
from bayesgmm.engines.elbo import ALL_ROWS_UP_TO, can_resolve, has_settled, tangent_at
from bayesgmm.likelihood.rows import as_rows
from bayesgmm.target.laplace import approximate
from bayesgmm.target.numpyro_model import sites_of_mixture
from bayesgmm.target.unconstrained import in_column_units

standardised_model = reparam(bayesgmm.model, config=in_column_units)


@pytest.mark.parametrize(
    ("family", "guide"),
    [
        pytest.param(
            family,
            guide,
            marks=[] if name == "full" or (name, guide) == ("diag", "full_rank") else [pytest.mark.slow],
            id=f"{name}-{guide}",
        )
        for name, family in bayesgmm.FAMILIES.items()
        for guide in guides.GUIDES
    ],
)
def test_fits_every_family(family, guide, key):
    x = DATA["faithful"]
    fit = bayesgmm.fit_vi(x, 2, family=family, key=key, guide=guide)
    assert fit.code is bayesgmm.ResultCode.successful
    assert fit.draws.draw_shape == (1, 2000)
    assert len(fit.trace) == fit.num_steps
    assert np.isfinite(fit.trace).all()
    # The ELBO rises, and its settled part is flat beside its beginning.
    assert fit.trace[-500:].mean() > fit.trace[:50].mean()
    assert fit.summary["khat"] < 0.9
    # Of 272 rows and a weak prior the posterior mean is near the maximum of the likelihood.
    em = bayesgmm.fit_em(x, 2, family=family, key=key)
    deviation = np.asarray(fit.draws.means).std((0, 1))
    assert (np.abs(fit.mixture.means - em.mixture.means) < deviation).all()
    assert float(fit.log_likelihood) == pytest.approx(float(bayesgmm.log_likelihood(fit.mixture, x)))


@pytest.mark.parametrize("num_rows", [2000, 2 * ALL_ROWS_UP_TO])
def test_one_component_has_the_known_posterior(num_rows, key):
    """k = 1 in one dimension: the posterior sd of the mean is s / sqrt(n), that of the log scale 1 / sqrt(2 n)."""
    x = np.random.default_rng(3).normal(2.0, 3.0, size=(num_rows, 1))
    fit = bayesgmm.fit_vi(x, 1, key=key, num_draws=4000 if num_rows < ALL_ROWS_UP_TO else 1000)
    assert fit.code is bayesgmm.ResultCode.successful
    means, scales = np.asarray(fit.draws.means)[0, :, 0, 0], np.asarray(fit.draws.scales)[0, :, 0, 0]
    # Four Monte Carlo errors of a mean and of a standard deviation, and one part in fifty for the optimiser.
    error = 1 / np.sqrt(len(means))
    deviation = x.std() / np.sqrt(num_rows)
    assert means.mean() == pytest.approx(x.mean(), abs=(4 * error + 0.05) * deviation)
    assert means.std() == pytest.approx(deviation, rel=0.02 + 3 * error)
    assert np.log(scales).std() == pytest.approx(1 / np.sqrt(2 * num_rows), rel=0.02 + 3 * error)
    assert fit.summary["khat"] < 0.7


def _two_clusters(num_rows, rng):
    """Overlapping clusters on a line."""
    first = rng.random(num_rows) < 0.4
    return np.where(first, rng.normal(-1.0, 1.0, num_rows), rng.normal(2.0, 1.5, num_rows))[:, None]


def _laplace_deviations(mixture, x):
    """Standard deviations of logit weight, means and log scales of two components, from the observed information."""

    def objective(theta):
        weight, scales = jax.nn.sigmoid(theta[0]), jnp.exp(theta[3:])
        log_weights = jnp.log(jnp.stack([weight, 1 - weight]))
        z = (x - theta[1:3]) / scales
        return -jnp.logaddexp(*(log_weights - jnp.log(scales) - 0.5 * z**2).T).sum()

    weights, means, scales = (np.asarray(part) for part in (mixture.weights, mixture.means, mixture.scales))
    theta = np.concatenate([[np.log(weights[0] / weights[1])], means[:, 0], np.log(scales[:, 0])])
    return np.sqrt(np.diag(np.linalg.inv(jax.jit(jax.hessian(objective))(jnp.asarray(theta)))))


def _deviations(draws):
    weights, means, scales = (np.asarray(part)[0] for part in (draws.weights, draws.means, draws.scales))
    logit = np.log(weights[:, :1] / weights[:, 1:])
    return np.concatenate([logit, means[..., 0], np.log(scales[..., 0])], axis=1).std(0)


@pytest.mark.slow
def test_minibatches_of_many_rows_have_the_posterior_of_all(key, x64):
    """Twice as many rows as are ever taken at once: standard deviations are those of the information matrix."""
    x = jnp.asarray(_two_clusters(2 * ALL_ROWS_UP_TO, np.random.default_rng(4)))
    em = bayesgmm.fit_em(x, 2, key=key, tol=1e-10)
    fit = bayesgmm.fit_vi(x, 2, key=key, start=em.mixture, num_draws=2000)
    assert fit.code is bayesgmm.ResultCode.successful
    assert fit.summary["khat"] < 0.7
    np.testing.assert_allclose(_deviations(fit.draws), _laplace_deviations(em.mixture, x), rtol=0.1)
    # The log-densities are those of all rows, in the coordinates that the guide moves in.
    family, prior = bayesgmm.FAMILIES["full"], jax.tree.map(jnp.asarray, bayesgmm.default_prior(x, 2))
    target = target_of(x, 2, family, prior, em.mixture)
    units = guides.units_of(approximate(target, em.mixture), x.dtype)
    point = target.split(target.vector_of(jax.tree.map(lambda leaf: leaf[0, 0], fit.draws)))
    density = -potential_energy(standardised_model, (x, 2, family, prior), {}, point) + jnp.log(units.scale).sum()
    assert float(fit.sample_stats["log_p"][0, 0]) == pytest.approx(float(density), abs=1e-5)
    # The ELBO of the batches is the mean of the log-ratios on all rows.
    ratios = np.asarray(fit.sample_stats["log_p"] - fit.sample_stats["log_q"])
    assert ratios.mean() == pytest.approx(fit.summary["elbo"], abs=0.1)


@pytest.mark.slow
def test_minibatches_agree_with_all_rows_at_every_step(key):
    x = _two_clusters(60_000, np.random.default_rng(5))
    fits = [bayesgmm.fit_vi(x, 2, key=key, batch_size=size, num_draws=4000) for size in (None, 1000)]
    np.testing.assert_allclose(_deviations(fits[0].draws), _deviations(fits[1].draws), rtol=0.06)
    assert fits[0].summary["elbo"] == pytest.approx(fits[1].summary["elbo"], abs=0.1)


def _setting(x, num_components, guide="normal", one_by_one=False, start=None):
    """A fit's parts, at its beginning: at EM's mixture or the one that is given."""
    family = bayesgmm.FAMILIES["full"]
    if start is None:
        start = bayesgmm.fit_em(x, num_components, key=jax.random.key(0)).mixture
    start = jax.tree.map(jnp.asarray, start)
    target = target_of(x, num_components, family, bayesgmm.default_prior(x, num_components), start)
    plan = vi._Plan(guide, None, 8, one_by_one)
    around = approximate(target, start)
    units = guides.units_of(around, target.rows.dtype)
    given = guides.parameters_at_start(guide, None, around, units)
    return plan, vi._begin(jax.random.key(0), target, units, given, plan=plan), start, target, units


@pytest.mark.parametrize("away", [0.0, 3.0])
def test_elbo_of_minibatches_is_unbiased(away, key, x64):
    """Over a partition of the rows the mean of the batches' ELBOs is that of all rows, however far the reference is."""
    plan, state, start, target, units = _setting(DATA["faithful"], 2, "full_rank")
    model, guide, _ = approximation = plan.approximation
    svi = plan.svi(approximation, 0.1, target, units)
    parameters, x = svi.get_params(state.svi), target.rows.values

    @jax.jit
    def loss(x, tangent):
        seen = dataclasses.replace(target, rows=as_rows(x))
        return vi.Elbo(4).loss(key, parameters, model, guide, seen, units, tangent)

    reference = bayesgmm.Mixture(
        start.log_weights + jnp.log(jnp.array([1.5, 0.5])) * away,
        start.means + away,
        start.precision_factor * 1.1**away,
    )
    tangent = tangent_at(reference, target.rows)
    batches = np.random.default_rng(0).permutation(len(x)).reshape(17, 16)
    of_batches = np.array([-loss(x[rows], tangent) for rows in batches])
    assert of_batches.mean() + float(tangent.log_likelihood) == pytest.approx(-float(loss(x, None)), rel=1e-10)
    by_numpyro = jax.jit(lambda: Trace_ELBO(4).loss(key, parameters, model, guide, target, units))
    assert float(loss(x, None)) == pytest.approx(float(by_numpyro()), rel=1e-12)
    # And at the start the noise is a small part of a nat, where plain rescaled batches have dozens.
    plain = np.array([start.log_prob(x[rows]).sum() * 17 for rows in batches])
    assert of_batches.std() > 0
    if not away:
        assert of_batches.std() < 0.1 * plain.std()


def test_memory_holds_no_responsibilities_of_all_rows_and_particles(key):
    num_rows, num_particles = 100_000, 8
    x = np.random.default_rng(0).normal(size=(num_rows, 1)).astype(np.float32)
    x[: num_rows // 2] += 4
    truth = bayesgmm.Mixture.from_covariances(
        *to_float32((np.full(2, 0.5), np.array([[0.0], [4.0]]), np.ones((2, 1, 1))))
    )
    all_of_them = num_rows * num_particles * 2 * x.dtype.itemsize
    for size in (4096, num_rows):
        plan, state, start, target, units = _setting(x, 2, one_by_one=size == num_rows, start=truth)
        tangent = tangent_at(start, target.rows) if size < num_rows else None
        advance = vi._advance.lower(state, jnp.float32(0.1), target, units, tangent, plan, 100, size)
        assert advance.compile().memory_analysis().temp_size_in_bytes < all_of_them / 2


def test_khat_is_that_of_numpyro(key, x64):
    """NumPyro's own diagnostic, given the same guide and the same random numbers; it fits the tail on its own."""
    plan, state, _, target, units = _setting(DATA["faithful"], 2)
    state, _ = vi._advance(state, jnp.asarray(0.04), target, units, None, plan, 500, len(target.rows))
    _, log_p, log_q = vi._draw(state.mean, key, target, units, plan, 1000)
    model, guide, _ = plan.approximation  # a guide set up anew takes the same numbers as in `_draw`
    theirs = psis_diagnostic(key, state.mean, model, guide, target, units, num_particles=1000)
    assert pareto_khat(np.asarray(log_p), np.asarray(log_q)) == pytest.approx(theirs, abs=0.02)


def test_khat_tells_a_good_guide_from_a_bad_one(key):
    """Two columns that are nearly one: their means and scales are correlated, which a mean-field guide cannot be."""
    rng = np.random.default_rng(6)
    column = rng.normal(size=(400, 1))
    x = np.concatenate([column, column + 0.05 * rng.normal(size=(400, 1))], axis=1)
    # Many draws: k-hat of a thousand has an error of a tenth.
    good, bad = (bayesgmm.fit_vi(x, 1, key=key, guide=name, num_draws=10_000) for name in ("full_rank", "normal"))
    assert good.summary["khat"] < 0.7
    assert bad.summary["khat"] > 0.7
    # What is missed: deviations of the means, which the good guide has right, by the closed form.
    right = x.std(0) / 20
    np.testing.assert_allclose(np.asarray(good.draws.means)[0, :, 0].std(0), right, rtol=0.1)
    assert (np.asarray(bad.draws.means)[0, :, 0].std(0) < 0.3 * right).all()
    # A factor of low rank has the correlations between the means, and those between the scales.
    middle = bayesgmm.fit_vi(x, 1, key=key, guide="low_rank", rank=2)
    assert bad.summary["elbo"] + 1 < middle.summary["elbo"] < good.summary["elbo"] + 0.1
    assert (np.asarray(middle.draws.means)[0, :, 0].std(0) > 0.8 * right).all()


def _own_guide(x, num_components, family, prior):
    """A mean-field guide by hand, over the sites of the model."""
    start = bayesgmm.Mixture.from_covariances([0.36, 0.64], [[2.0, 54.5], [4.3, 80.0]], [[0.07, 34.0], [0.17, 36.0]])
    values = sites_of_mixture(start, family, prior)
    for name, positive in {"means": False, "scales": True}.items():
        value = jnp.log(values[name]) if positive else values[name]
        width = 0.05 if positive else 0.1 * values["scales"]
        loc = numpyro.param(f"{name}_loc", value)
        scale = numpyro.param(f"{name}_scale", width + jnp.zeros_like(value), constraint=constraints.positive)
        normal = dist.LogNormal if positive else dist.Normal
        numpyro.sample(name, normal(loc, scale).to_event(2))
    concentration = numpyro.param("concentration", 272 * values["weights"], constraint=constraints.positive)
    numpyro.sample("weights", dist.Dirichlet(concentration))


def test_guide_of_ones_own(key):
    """It does what the guide of the same form does that comes by name."""
    x = DATA["faithful"]
    own = bayesgmm.fit_vi(x, 2, family="diag", key=key, guide=_own_guide)
    assert own.code is bayesgmm.ResultCode.successful
    assert own.summary["khat"] < 0.7
    named = bayesgmm.fit_vi(x, 2, family="diag", key=key, guide="normal")
    assert own.summary["elbo"] == pytest.approx(named.summary["elbo"], abs=0.3)
    ratio = np.asarray(own.draws.means).std((0, 1)) / np.asarray(named.draws.means).std((0, 1))
    np.testing.assert_allclose(ratio, 1.0, atol=0.15)


def _ready(x):
    values = sites_of_mixture(
        bayesgmm.fit_em(x, 2, family="diag", key=jax.random.key(0)).mixture, bayesgmm.FAMILIES["diag"]
    )
    return AutoNormal(bayesgmm.model, init_loc_fn=init_to_value(values=values), init_scale=0.01)


@pytest.mark.parametrize(
    "guide",
    [
        pytest.param(AutoNormal, marks=pytest.mark.slow),
        pytest.param(functools.partial(AutoBNAFNormal, hidden_factors=[4]), id="BNAF"),
        pytest.param(lambda model: AutoIAFNormal(model, num_flows=1), id="IAF", marks=pytest.mark.slow),
        pytest.param("ready", marks=pytest.mark.slow),
    ],
)
def test_guides_of_numpyro(guide, key):
    x = DATA["faithful"]
    if guide == "ready":
        with jax.enable_x64(True):
            guide = _ready(jnp.asarray(x))
    fit = bayesgmm.fit_vi(x, 2, family="diag", key=key, guide=guide)
    assert fit.code is bayesgmm.ResultCode.successful
    assert fit.summary["khat"] < 1.0  # the tails of a small flow are light
    # No lower than a mean-field guide by more than what flows keep of their noise.
    named = bayesgmm.fit_vi(x, 2, family="diag", key=key, guide="normal")
    assert fit.summary["elbo"] > named.summary["elbo"] - 0.5
    if isinstance(guide, AutoNormal):  # which was not changed by the fit
        again = bayesgmm.fit_vi(x, 2, family="diag", key=key, guide=guide)
        np.testing.assert_array_equal(again.trace, fit.trace)


@pytest.mark.slow
@pytest.mark.parametrize("scale_prior", ["half_normal", "hierarchical", "conjugate"])
def test_other_priors(scale_prior, key):
    x = DATA["faithful"]
    if scale_prior == "conjugate":
        prior = bayesgmm.conjugate_prior(x, 2)
    else:
        prior = bayesgmm.default_prior(x, 2, scale_prior=scale_prior)
    fit = bayesgmm.fit_vi(x, 2, prior=prior, key=key)
    assert fit.code is bayesgmm.ResultCode.successful
    assert fit.summary["khat"] < 0.7


def test_log_q_is_the_density_of_the_draws(key):
    """The importance ratios of a nearly normal posterior are nearly constant: their spread is small."""
    fit = bayesgmm.fit_vi(DATA["faithful"], 2, family="diag", key=key)
    ratios = np.asarray(fit.sample_stats["log_p"] - fit.sample_stats["log_q"])
    assert ratios.shape == (1, 2000)
    assert ratios.std() < 1.0
    # Their mean is the ELBO that the optimiser watched, within Monte Carlo error.
    error = ratios.std() / np.sqrt(ratios.size) + fit.trace[-500:].std() / np.sqrt(500)
    assert abs(ratios.mean() - fit.summary["elbo"]) < 6 * error


def test_a_second_fit_compiles_nothing(key):
    x = DATA["faithful"]
    bayesgmm.fit_vi(x, 2, key=key)
    with compilations() as events:
        bayesgmm.fit_vi(x + 1.0, 2, key=key)
    assert events == []


def test_step_limit_is_reported_and_progress_told(key):
    told = []
    with pytest.warns(bayesgmm.FitWarning, match="step limit"):
        fit = bayesgmm.fit_vi(DATA["faithful"], 2, key=key, window=100, max_steps=200, progress=told.append)
    assert fit.code is bayesgmm.ResultCode.max_steps_reached
    assert "vi (full rank), k = 2: 200 of 200, ELBO" in told[-1]


def test_interrupted_fit_says_so_and_goes_on_when_called_again(tmp_path, key):
    x, path = DATA["faithful"], tmp_path / "run.npz"
    options = {"key": key, "guide": "normal", "window": 100, "num_draws": 100}
    whole = bayesgmm.fit_vi(x, 2, checkpoint=False, **options)

    def stop_at(step):
        def listen(message):
            if f": {step} of" in message:
                raise KeyboardInterrupt

        return listen

    with pytest.warns(bayesgmm.FitWarning, match="interrupted"):
        part = bayesgmm.fit_vi(x, 2, checkpoint=path, progress=stop_at(500), **options)
    assert part.code is bayesgmm.ResultCode.interrupted
    assert part.draws.draw_shape == (1, 100)
    assert len(part.trace) == 500 < len(whole.trace)
    with pytest.raises(KeyboardInterrupt):  # before a window was taken in this call; what there was stays on file
        bayesgmm.fit_vi(x, 2, checkpoint=path, progress=stop_at(500), **options)
    with pytest.raises(bayesgmm.InputError, match="is of a run with other data or settings"):
        bayesgmm.fit_vi(x + 1.0, 2, checkpoint=path, **options)
    told = []
    resumed = bayesgmm.fit_vi(x, 2, checkpoint=path, progress=told.append, **options)
    assert "500 of 20000, resumed" in told[0]
    np.testing.assert_array_equal(resumed.trace, whole.trace)
    np.testing.assert_array_equal(resumed.draws.means, whole.draws.means)
    assert not path.exists()


def test_too_noisy_an_elbo_is_not_taken_for_a_settled_one(key):
    """Batches of 4 rows, about a start far from the posterior: what a climb would be cannot be seen."""
    x = DATA["faithful"]
    far = bayesgmm.Mixture.from_covariances([0.5, 0.5], [[0.0, 40.0], [9.0, 90.0]], [np.diag([4.0, 400.0])] * 2)
    fit = bayesgmm.fit_vi(
        x, 2, key=key, start=far, batch_size=4, num_draws=100, max_steps=4000, window=200, on_failure="ignore"
    )
    assert fit.code is bayesgmm.ResultCode.max_steps_reached


def test_stopping_rule():
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(200, 2, 500))
    stops = np.mean([has_settled(before, after) for before, after in flat])
    assert stops > 0.95  # one-sided, at two standard errors
    assert not any(has_settled(before, after + 0.25) for before, after in flat[:50])  # four standard errors
    assert has_settled(np.zeros(500) + flat[0, 0] + 5, flat[0, 1])  # falling is not climbing
    # Ten times the noise hides a rise of a nat; nothing is concluded, until windows are long enough to see it.
    assert not any(has_settled(10 * before, 10 * after + 1) for before, after in flat)
    assert not can_resolve(*(10 * flat[0]))
    long = 10 * rng.normal(size=(20, 2, 5000))
    assert all(can_resolve(*pair) for pair in long)
    assert np.mean([has_settled(before, after + 1) for before, after in long]) < 0.05


def test_khat_of_known_ratios():
    """Ratios of a normal target to a narrower normal of variance s^2 have a tail of index 1 - s^2.

    But for a factor of the root of a logarithm, which lifts the estimate from a finite sample by about 0.1.
    """
    draws = np.random.default_rng(1).normal(size=50_000)
    for variance in (0.3, 0.6):
        x = draws * np.sqrt(variance)
        log_ratio = -0.5 * x**2 + 0.5 * x**2 / variance
        assert pareto_khat(log_ratio, np.zeros_like(log_ratio)) == pytest.approx(1 - variance, abs=0.15)
    assert pareto_khat(np.array([0.0, np.nan, 1.0]), np.zeros(3)) == np.inf


def _half_a_guide(x, num_components, family, prior):
    numpyro.sample("weights", dist.Dirichlet(jnp.ones(num_components)))


def _broken(x, num_components, family, prior):
    raise KeyError("nothing")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guide": "student"}, "guide='student' is not known; choose one of normal, full_rank, low_rank, or give a"),
        ({"guide": 3}, "guide=3 is not known; choose one of"),
        ({"guide": lambda x, y: None}, r"takes neither \(x, num_components, family, prior\), as a guide does, nor"),
        ({"guide": lambda model: 3}, "made 3 of the model, which is no guide"),
        (
            {"guide": _half_a_guide},
            "samples weights; it must sample the sites of bayesgmm.model .* means, scales, weig",
        ),
        ({"guide": _broken}, r"cannot be run with \(x, num_components, family, prior\); mend it: KeyError: 'nothing'"),
        ({"guide": AutoDelta}, "is a point and has no density; use fit_map"),
        ({"guide": AutoLaplaceApproximation}, "is a point and has no density; use fit_map"),
        ({"rank": 2}, "rank=2 belongs to guide='low_rank', and this is guide='full_rank'; drop it"),
        ({"guide": "low_rank", "rank": 0}, "rank=0 must be a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number of at least 1"),
        ({"num_draws": 0}, "num_draws=0 must be a whole number of at least 25"),
        ({"max_steps": 10}, "max_steps=10 must be at least two windows of 500 steps"),
    ],
)
def test_bad_arguments(settings, message, key, monkeypatch):
    """Refused before anything is fitted."""
    monkeypatch.setattr(vi, "starts_of", lambda *_, **__: pytest.fail("fitted"))
    with pytest.raises(bayesgmm.InputError, match=message):
        bayesgmm.fit_vi(DATA["faithful"], 2, family="diag", key=key, **settings)


@pytest.mark.parametrize("batch_size", [pytest.param(None, marks=pytest.mark.slow), 64])
def test_float32_stays_float32(batch_size, key):
    fit = bayesgmm.fit_vi(DATA["faithful"].astype(np.float32), 2, key=key, num_draws=100, batch_size=batch_size)
    assert {np.asarray(leaf).dtype for leaf in jax.tree.leaves((fit.mixture, fit.draws))} == {np.dtype(np.float32)}
    assert fit.code is bayesgmm.ResultCode.successful
    assert fit.summary["khat"] < 0.9


def test_an_elbo_that_is_not_finite_ends_the_fit(key):
    """The last approximation that is one is kept, or the start: a failure has a code, and finite parameters."""
    x = DATA["faithful"].astype(np.float32)
    covariances = np.full((2, 1, 1), 1e-36) * np.eye(2)  # whose densities overflow in float32
    start = bayesgmm.Mixture.from_covariances(*to_float32((np.full(2, 0.5), x[:2], covariances)))
    options = {"num_draws": 25, "window": 20, "max_steps": 100, "on_failure": "ignore"}
    fit = bayesgmm.fit_vi(x, 2, key=key, start=start, **options)
    assert fit.code is bayesgmm.ResultCode.nonfinite
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fit.mixture))
    assert bayesgmm.diagnose(fit, x).worst == 3

"""Results print as a person reads them, in a terminal and in a notebook; inside a program as what they are."""

import dataclasses

import fits
import jax
import numpy as np
import pandas as pd
import pytest
from helpers import DATA, compilations

import bayesgmm
from bayesgmm.errors import InputError


def test_a_point_prints_with_how_it_ended_and_its_parameters():
    fit = fits.em("faithful", 2)
    first, *lines = str(fit).splitlines()
    assert first.startswith("EM, 2 components of family full; log-likelihood -1130.26; ")
    assert first.endswith("steps, converged")
    assert lines[0].startswith("  cluster 0: weight 0.3559, mean x0 2.036")
    assert len(lines) == 2
    page = fit._repr_html_()
    assert "<th>cluster 1</th>" in page
    assert "weight 0.6441" in page


def test_draws_print_with_their_spread():
    fit = fits.nuts("faithful", 2)
    assert "R-hat 1.0" in str(fit)
    assert "± 0.0" in str(fit)
    table = fit.summary_table(["eruptions", "waiting"]).set_index(["cluster", "quantity"])
    draws = fit.draws.means[..., 0, 1].ravel()
    line = table.loc["0", "mean waiting"]
    assert line["value"] == pytest.approx(draws.mean())
    assert line["sd"] == pytest.approx(draws.std(ddof=1))
    assert (line["low"], line["high"]) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    with pytest.raises(InputError, match="feature_names"):
        fit.summary_table(["eruptions"])


def test_what_is_certain_has_no_spread_of_rounding():
    """The weight of the only component, whose draws differ from 1 by rounding."""
    fit, rng = fits.em("faithful", 2), np.random.default_rng(0)
    one = bayesgmm.Mixture(np.zeros(1), *(np.asarray(leaf)[:1] for leaf in jax.tree.leaves(fit.mixture)[1:]))
    draws = bayesgmm.Mixture(
        1e-16 * rng.normal(size=(1, 50, 1)),
        one.means + 0.01 * rng.normal(size=(1, 50, 1, 2)),
        np.broadcast_to(one.precision_factor, (1, 50, 1, 2, 2)),
    )
    fit = dataclasses.replace(fit, mixture=one, draws=draws)
    assert "weight 1, mean" in str(fit)
    assert fit.summary_table()["sd"][0] == 0


def test_many_components_are_cut_short():
    weights = np.full(30, 1 / 30)
    mixture = bayesgmm.Mixture.from_covariances(weights, np.arange(30.0)[:, None], np.ones((30, 1, 1)))
    fit = dataclasses.replace(fits.em("faithful", 2), mixture=mixture)
    assert str(fit).splitlines()[-1] == "  ...:        and 6 clusters more"


def test_inside_a_program_and_of_several_fits_it_prints_as_it_is():
    fit = fits.em("faithful", 2)
    told = []

    @jax.jit
    def look(number):
        one = dataclasses.replace(fit, result=number)
        told.append((str(one), one._repr_html_()))
        return number

    look(np.int32(0))
    assert told[0][0].startswith("Fit(")
    assert told[0][1].startswith("<pre>Fit(")
    several = dataclasses.replace(fit, result=np.zeros(3, np.int32))
    assert str(several).startswith("Fit(")
    with pytest.raises(InputError, match="3 fits"):
        several.summary_table()


NAMES = ("eruptions", "waiting")
TABLE = pd.DataFrame(DATA["faithful"], columns=list(NAMES))


def shown_objects():
    fit, draws = fits.em("faithful", 2), fits.nuts("faithful", 2)
    prior = bayesgmm.default_prior(TABLE, 2)
    tree = bayesgmm.to_datatree(draws, TABLE, prior=prior, key=jax.random.key(0))
    comparison = bayesgmm.compare(TABLE, [1, 2], engines=["em"], key=jax.random.key(0))
    return {
        "fit": (fit, ["EM, 2 components", "weight 0.3559"]),
        "draws": (draws.draws, ["Mixture of 2 Gaussian components in 2 dimensions; 2 x 400 of them", "±"]),
        "mixture": (fit.mixture, ["Mixture of 2 Gaussian components in 2 dimensions", "cluster 1", "corr x0, x1"]),
        "diagnosis": (bayesgmm.diagnose(fit, TABLE), ["no problems found"]),
        "uncertainty": (bayesgmm.uncertainty(fit, TABLE), ["Standard errors (observed)", "weight 0.356 ± 0.029"]),
        "prior": (prior, ["Weakly informative prior of 2 components of 2 features", "Normal, waiting: mean 70.9"]),
        "conjugate": (bayesgmm.conjugate_prior(TABLE, 2), ["Conjugate prior of 2 components", "InverseWishart"]),
        "loo": (bayesgmm.loo(tree), ["Leave-one-out: ELPD -11", "largest Pareto k"]),
        "comparison": (comparison, ["272 rows", "k = 2 by BIC among 1 and 2", "eruptions"]),
        "summary": (comparison.summary(), ["k = 2 by BIC"]),
    }


def test_every_result_has_a_text_and_a_page():
    for name, (result, parts) in shown_objects().items():
        text, page = str(result), result._repr_html_()
        for part in parts:
            assert part in text, (name, part, text)
        assert page.startswith("<p"), name
        assert max(map(len, text.splitlines())) <= 120, name
        assert "nan" not in text, name


def test_a_finding_says_what_to_try_on_a_page_too():
    rows = np.r_[DATA["faithful"], DATA["faithful"][:1].repeat(3, 0)]
    fit = bayesgmm.fit_em(rows, 2, key=jax.random.key(0), max_steps=1, on_failure="ignore")
    diagnosis = bayesgmm.diagnose(fit, rows)
    assert diagnosis
    page = diagnosis._repr_html_()
    assert "try: " in page
    assert f"<th>{diagnosis[0].severity.name}</th>" in page


def test_what_many_columns_print_stays_short(rng):
    x = np.concatenate([rng.normal(size=(80, 20)), 5 + rng.normal(size=(80, 20))])
    text = str(bayesgmm.fit_em(x, 2, family="diag", key=jax.random.key(0)).mixture)
    assert len(text.splitlines()) < 14
    assert "and 26 more" in text


def test_a_pytree_of_shapes_prints_as_it_is():
    fit = fits.em("faithful", 2)
    assert str(jax.tree.map(np.shape, fit.mixture)).startswith("Mixture(log_weights=(2,)")
    assert str(jax.tree.map(np.shape, fit)).startswith("Fit(")


def test_ipython_prints_the_text():
    class Printer:
        def text(self, shown):
            self.shown = shown

    printer, fit = Printer(), fits.em("faithful", 2)
    fit._repr_pretty_(printer, False)
    assert printer.shown == str(fit)


def test_names_of_columns_travel_with_a_fit_and_a_prior(tmp_path):
    fit = bayesgmm.fit_em(TABLE, 2, key=jax.random.key(0))
    assert fit.feature_names == fit.mixture.feature_names == NAMES
    assert "mean eruptions 2.036" in str(fit)
    assert "mean waiting" in str(fit.mixture)
    assert set(fit.summary_table()["quantity"]) >= {"mean eruptions", "sd waiting", "corr eruptions, waiting"}
    errors = bayesgmm.uncertainty(fit, TABLE)
    assert "mean eruptions" in set(errors.to_frame()["quantity"])
    prior = bayesgmm.default_prior(TABLE, 2)
    assert "eruptions" in prior.describe()
    assert "eruptions" in bayesgmm.conjugate_prior(TABLE, 2).describe()
    draws = fits.nuts("faithful", 2).named(NAMES)
    tree = bayesgmm.to_datatree(draws, DATA["faithful"], prior=prior, key=jax.random.key(0))
    assert tuple(tree.posterior["feature"].values) == NAMES
    bayesgmm.save_fit(fit, tmp_path / "fit.npz")
    assert bayesgmm.load_fit(tmp_path / "fit.npz").feature_names == NAMES
    table = bayesgmm.parameter_table({"em": fit, "nuts": draws})
    assert "mean waiting" in set(table.frame["quantity"])


def test_columns_are_asked_for_by_name():
    mixture = bayesgmm.fit_em(TABLE, 2, key=jax.random.key(0)).mixture
    one = mixture.marginal("waiting")
    assert one.feature_names == ("waiting",)
    np.testing.assert_array_equal(one.means, mixture.marginal(1).means)
    given = mixture.condition(["waiting"], [80.0])
    assert given.feature_names == ("eruptions",)
    np.testing.assert_array_equal(given.means, mixture.condition([1], [80.0]).means)
    assert mixture.permute([1, 0]).feature_names == NAMES
    assert fits.nuts("faithful", 2).named(NAMES).draws[0, 3].feature_names == NAMES
    with pytest.raises(InputError, match=r"columns=.wating. is not known; did you mean .waiting."):
        mixture.marginal("wating")
    with pytest.raises(InputError, match="columns='waiting'"):
        fits.em("faithful", 2).mixture.marginal("waiting")


def test_names_are_nothing_to_jax():
    """They compile nothing, and fits with and without them go together."""
    mixture = fits.em("faithful", 2).mixture
    named = mixture.named(NAMES)
    assert jax.tree.structure(named) == jax.tree.structure(mixture)
    mixture.log_prob(DATA["faithful"])
    with compilations() as events:
        named.log_prob(DATA["faithful"])
    assert events == []
    assert bayesgmm.fit_em(TABLE, 2, start=named).feature_names == NAMES

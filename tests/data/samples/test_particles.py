from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from ddlflow.data.roles import choose
from ddlflow.data.samples.particles import (
    GAIN,
    INDEX,
    MASS,
    REGIONS,
    SCHEMA,
    SHARE,
    SPECIES,
    SPEED_OF_LIGHT,
    TIME_OFFSET,
    TRIGGERS,
    energy_loss,
    events,
)
from ddlflow.spec.pipeline import Pipeline

NUMERIC = ["p_gev", "theta", "dedx_kev_cm", "tof_ns", "photons", "e_over_p"]
CATEGORIES = ["region", "trigger", "sector"]


@pytest.fixture(scope="module")
def tracks() -> pd.DataFrame:
    return events(100_000, seed=3).to_pandas()


# ---- the columns ---------------------------------------------------------------------------


def test_a_row_knows_its_number():
    assert events(4, first=24_998)["track"].to_pylist() == [24_998, 24_999, 25_000, 25_001]


def test_species_have_their_shares(tracks):
    shares = tracks["species"].value_counts(normalize=True)
    for name, share in zip(SPECIES, SHARE, strict=True):
        spread = np.sqrt(share * (1 - share) / len(tracks))
        assert abs(shares[name] - share) < 5 * spread, name


def test_dead_channels_are_missing_and_nothing_else_is(tracks):
    missing = tracks.isna().mean()
    assert 0.03 < missing["tof_ns"] < 0.05
    assert 0.02 < missing["e_over_p"] < 0.03
    assert (missing.drop(["tof_ns", "e_over_p"]) == 0).all()
    assert np.isfinite(tracks[NUMERIC].fillna(0)).all().all()


def test_values_are_within_their_ranges(tracks):
    assert (tracks[["p_gev", "dedx_kev_cm"]] > 0).all().all()
    assert tracks["theta"].between(0.14, np.pi - 0.14).all()
    assert (tracks[["photons", "e_over_p"]].fillna(0) >= 0).all().all()
    assert set(tracks["sector"]) == set(range(12))
    assert set(tracks["region"]) == set(REGIONS)
    assert set(tracks["trigger"]) <= set(TRIGGERS)


def test_regions_overlap_in_angle_by_the_spread_of_the_vertex(tracks):
    angle = np.abs(np.pi / 2 - tracks["theta"])
    spans = angle.groupby(tracks["region"]).agg(["min", "max"])
    for inner, outer in pairwise(REGIONS):
        overlap = spans.loc[inner, "max"] - spans.loc[outer, "min"]
        assert 0 < overlap < 0.2


def test_triggers_have_a_long_tail(tracks):
    counts = tracks["trigger"].value_counts()
    assert counts["minimum-bias"] > 0.4 * len(tracks)
    assert (counts < 20).sum() > 10  # rare_below is 20 in pipelines/particles.yaml


def test_the_pipeline_reads_each_column_as_what_it_is():
    text = (Path(__file__).parents[3] / "pipelines" / "particles.yaml").read_text()
    pipeline = Pipeline.model_validate(yaml.safe_load(text))
    schema = dict(zip(SCHEMA.names, SCHEMA.types, strict=True))
    roles = choose(schema, pipeline.data, pipeline.labels)
    assert list(roles.numeric) == NUMERIC
    assert list(roles.categorical) == CATEGORIES
    assert pipeline.report.histogram in NUMERIC
    assert set(pipeline.infer.keys) <= set(schema)


# ---- the physics ---------------------------------------------------------------------------


def test_energy_loss_is_that_of_argon():
    """Least 1.519 MeV cm^2/g (PDG) of all collisions; those up to 10 keV alone are less."""
    density = 1.662e-3
    p = np.geomspace(0.1, 20, 2_000)
    muon, pion, proton = (energy_loss(p, MASS[k]) for k in (1, 2, 4))
    least = muon.min() / (1000 * density)
    assert 0.6 * 1.519 < least < 0.8 * 1.519
    for mass, loss in ((MASS[1], muon), (MASS[2], pion)):
        assert 3 < p[loss.argmin()] / mass < 4.5
    # The curve is one of beta gamma alone, but for the largest energy that a collision can take.
    at = 2.0
    assert energy_loss(np.array([at * MASS[2]]), MASS[2]) == pytest.approx(
        energy_loss(np.array([at * MASS[4]]), MASS[4]), rel=1e-3
    )
    assert (np.diff(proton[p < 2]) < 0).all()


def test_energy_loss_ends_in_a_plateau():
    slow, fast, faster = energy_loss(np.array([50, 4e4, 4e6]) * MASS[1], MASS[1])
    assert slow < fast
    assert fast == pytest.approx(faster, rel=1e-3)


def test_the_curve_does_not_jump_where_the_density_effect_begins():
    p = MASS[2] * 10 ** (1.7635 + np.array([-1e-6, 1e-6]))
    below, above = energy_loss(p, MASS[2])
    assert below == pytest.approx(above, rel=1e-3)


def test_measured_energy_loss_follows_the_curve_in_each_sector(tracks):
    pions = tracks[(tracks["species"] == "pion") & (tracks["region"] == "barrel")]
    ratio = np.log(pions["dedx_kev_cm"] / energy_loss(pions["p_gev"].to_numpy(), MASS[2]))
    gain = np.exp(ratio.groupby(pions["sector"]).median())
    np.testing.assert_allclose(gain, GAIN, rtol=0.015)


def test_time_of_flight_is_that_of_the_mass(tracks):
    for number, name in enumerate(SPECIES):
        seen = tracks[(tracks["species"] == name) & (tracks["region"] == "barrel")]
        seen = seen[seen["p_gev"] > 0.8 * MASS[number] + 0.2]
        p = seen["p_gev"].to_numpy()
        beta = p / np.hypot(p, MASS[number])
        expected = 1.2 / np.sin(seen["theta"]) / (beta * SPEED_OF_LIGHT)
        late = (seen["tof_ns"] - expected).groupby(seen["sector"]).median()
        np.testing.assert_allclose(late, TIME_OFFSET, atol=0.05, err_msg=name)


def test_photons_come_above_the_threshold_alone(tracks):
    mass = tracks["species"].map(dict(zip(SPECIES, MASS, strict=True)))
    index = tracks["region"].map(dict(zip(REGIONS, INDEX, strict=True)))
    threshold = mass / np.sqrt(index**2 - 1)
    below, above = tracks["p_gev"] < 0.9 * threshold, tracks["p_gev"] > 3 * threshold
    assert tracks["photons"][below].mean() == pytest.approx(0.4, abs=0.02)  # dark counts
    assert (tracks["photons"][above] > 2).mean() > 0.98
    most = tracks[above & (tracks["species"] == "electron")].groupby("region")["photons"].mean()
    assert most.to_dict() == pytest.approx(
        {"barrel": 14.4, "endcap": 11.4, "forward": 20.4}, rel=0.03
    )


def test_electrons_give_the_calorimeter_all_and_muons_little(tracks):
    fast = tracks[tracks["p_gev"] > 2].groupby("species")["e_over_p"].median()
    assert fast["electron"] == pytest.approx(1, abs=0.02)
    assert fast["muon"] < 0.13
    assert fast["muon"] < fast["pion"] < fast["electron"]


# ---- what a model can learn ----------------------------------------------------------------


@pytest.mark.filterwarnings(
    # Ten epochs are enough to compare.
    "ignore:Stochastic Optimizer:sklearn.exceptions.ConvergenceWarning"
)
def test_categories_help_and_the_task_is_neither_easy_nor_hopeless(tracks):
    tracks = tracks.iloc[:40_000]
    label, test = tracks["species"], slice(30_000, None)
    numeric = tracks[NUMERIC].fillna(tracks[NUMERIC].mean())
    x = StandardScaler().fit_transform(numeric)
    coded = OneHotEncoder(min_frequency=20, sparse_output=False).fit_transform(tracks[CATEGORIES])

    def accuracy(model, features: np.ndarray) -> float:
        model.fit(features[:30_000], label[:30_000])
        return float(model.score(features[test], label[test]))

    def mlp() -> MLPClassifier:
        return MLPClassifier(
            (32,), batch_size=200, learning_rate_init=0.004, max_iter=8, random_state=0
        )

    majority = float((label[test] == "pion").mean())
    linear = accuracy(LogisticRegression(max_iter=200), x)
    without, with_categories = accuracy(mlp(), x), accuracy(mlp(), np.hstack([x, coded]))
    assert majority + 0.05 < linear < without
    assert without + 0.005 < with_categories
    assert 0.75 < with_categories < 0.95

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from ddlflow.data.samples.collider import SCHEMA, events, high_level
from ddlflow.data.samples.masses import FEATURES, HIGH_LEVEL, LOW_LEVEL, M_TOP, M_W, MASS
from ddlflow.errors import DataError


@pytest.fixture(scope="module")
def made() -> pa.Table:
    return events(60_000, seed=3)


def columns(table: pa.Table, names: list[str]) -> np.ndarray:
    return np.stack([table[name].to_numpy() for name in names], axis=1)


def real_events() -> pa.Table:
    folder = os.environ.get("DDLFLOW_REAL_DATA")
    if not folder:
        pytest.skip("DDLFLOW_REAL_DATA, the folder of real data, is not set")
    return pq.read_table(Path(folder) / "higgs-sample" / "train.parquet")


def mass(table: pa.Table, name: str) -> np.ndarray:
    """In GeV."""
    return table[name].to_numpy() * MASS[HIGH_LEVEL.index(name), 0]


# ---- the columns ---------------------------------------------------------------------------


def test_columns_are_those_of_the_real_sample():
    real = real_events()
    assert real.schema.names == SCHEMA.names
    assert real.schema.types == SCHEMA.types


def test_columns_spread_as_those_of_the_real_sample(made):
    real = real_events()
    for name in FEATURES:
        low, high = np.quantile(real[name].to_numpy(), [0.05, 0.95])
        made_low, made_high = np.quantile(made[name].to_numpy(), [0.05, 0.95])
        assert abs(made_low - low) < 0.35, name
        assert abs(made_high - high) < 0.35 * high + 0.05, name


def test_values_are_finite_and_within_the_cuts(made):
    values = columns(made, SCHEMA.names)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    assert set(np.unique(made["label"])) == {0.0, 1.0}
    assert 0.52 < made["label"].to_numpy().mean() < 0.54
    for name in ("lepton_phi", "missing_energy_phi", "jet1_phi", "jet4_phi"):
        assert np.abs(made[name].to_numpy()).max() < 1.7436
    assert made["lepton_pT"].to_numpy().min() > 0.274
    tags = columns(made, [f"jet{k}_b-tag" for k in (1, 2, 3, 4)])
    assert ((tags > 0).sum(axis=1) <= 2).all()
    assert np.allclose(np.unique(tags[:, 0]), [0, 2.173 / 2, 2.173])


def test_jets_fall_in_pt(made):
    units = [109.1, 79.42, 56.94, 41.08]
    pt = columns(made, [f"jet{k}_pt" for k in (1, 2, 3, 4)]) * units
    assert (np.diff(pt, axis=1) < 1e-3).all()
    assert pt.min() > 14.99


# ---- the masses ----------------------------------------------------------------------------


def test_high_level_columns_are_those_of_the_low_level_ones(made):
    again = high_level(columns(made, LOW_LEVEL))
    assert again.shape == (60_000, 7)
    assert again.dtype == np.float32
    np.testing.assert_allclose(again, columns(made, HIGH_LEVEL), rtol=1e-5)


def four_vectors(event: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
    """The slow way, in float64, for one event: (E, x, y, z) by name, and the lepton's eta."""

    def vector(pt: float, eta: float, phi: float) -> np.ndarray:
        return pt * np.array([np.cosh(eta), np.cos(phi), np.sin(phi), np.sinh(eta)])

    turn = np.pi / 1.7435
    jets = event[5:].reshape(4, 4).astype(float)
    pt, eta = [109.1, 79.42, 56.94, 41.08], [1.0099, 1.0293, 1.0985, 1.2008]
    levels = np.rint(2 * jets[:, 3] / [2.173, 2.215, 2.548, 3.102])
    order = sorted(range(4), key=lambda k: (-levels[k], k))
    vectors = [vector(jets[k, 0] * pt[k], jets[k, 1] * eta[k], jets[k, 2] * turn) for k in order]
    lepton = vector(event[0] * 54.63, event[1] * 1.0274, event[2] * turn)
    x, y = (event[3] * 58.24 * f(event[4] * turn) for f in (np.cos, np.sin))
    # pz from (lepton + neutrino)^2 = m_W^2, a quadratic equation
    half = M_W**2 / 2 + lepton[1] * x + lepton[2] * y
    pt2 = lepton[1] ** 2 + lepton[2] ** 2
    disc = half**2 - pt2 * (x * x + y * y)
    if disc >= 0:
        roots = [(half * lepton[3] + s * lepton[0] * np.sqrt(disc)) / pt2 for s in (-1, 1)]
        z = min(roots, key=abs)
    else:
        z = np.hypot(x, y) * np.sinh(event[1] * 1.0274)
    neutrino = np.array([np.sqrt(x * x + y * y + z * z), x, y, z])
    return dict(zip(["b1", "b2", "j1", "j2", "l", "v"], [*vectors, lepton, neutrino], strict=True))


def test_high_level_agrees_with_four_vectors(made):
    def m(*particles: np.ndarray) -> float:
        total = np.sum(particles, axis=0)
        return float(np.sqrt(max(total[0] ** 2 - (total[1:] ** 2).sum(), 0)))

    low = columns(made, LOW_LEVEL)[:300]
    expected = []
    for event in low:
        p = four_vectors(event)
        b1, b2, j1, j2, lepton, v = (p[k] for k in ("b1", "b2", "j1", "j2", "l", "v"))
        first, other = (b1, b2)
        if abs(m(j1, j2, b2) - M_TOP) < abs(m(j1, j2, b1) - M_TOP):
            first, other = (b2, b1)
        expected.append(
            [
                m(j1, j2),
                m(j1, j2, first),
                m(lepton, v),
                m(lepton, v, other),
                m(b1, b2),
                max(m(b1, b2, j1, j2), m(b1, b2, lepton, v)),
                m(b1, b2, j1, j2, lepton, v),
            ]
        )
    np.testing.assert_allclose(high_level(low), expected / MASS[:, 0], rtol=2e-3)


def test_high_level_finds_the_masses_of_real_events():
    """The definitions and units are those of HIGGS: see what ``high_level`` says of its sources."""
    real = real_events()
    tags = columns(real, [f"jet{k}_b-tag" for k in (1, 2, 3, 4)])
    two = (tags > 0).sum(axis=1) == 2
    ours, theirs = high_level(columns(real, LOW_LEVEL)), columns(real, HIGH_LEVEL)
    off = np.abs(ours / theirs - 1)[two]
    agree = dict(zip(HIGH_LEVEL, (off < 0.01).mean(axis=0), strict=True))
    assert agree["m_bb"] > 0.99
    assert agree["m_lv"] > 0.85  # the real W has a width
    assert agree["m_jj"] > 0.6
    assert agree["m_jjj"] > 0.6
    assert agree["m_wwbb"] > 0.4
    same_jets = off[:, 0] < 0.01
    no_solution = ours[two][:, 2] > 1.0
    assert (off[same_jets & no_solution] < 0.01).mean(axis=0).min() > 0.95


def test_a_wrong_number_of_columns_is_named():
    with pytest.raises(DataError, match=r"shape \(3, 20\).*\[rows, 21\]"):
        high_level(np.zeros((3, 20), np.float32))


@given(st.integers(0, 2**32), st.integers(1, 50))
def test_high_level_is_finite_for_any_event(seed, rows):
    rng = np.random.default_rng(seed)
    low = rng.uniform(-1.7, 1.7, (rows, 21)).astype(np.float32)
    for column in (0, 3, 5, 9, 13, 17):
        low[:, column] = rng.choice([0.3, 1.0, 7.0], rows)
    low[: rows // 2, 3] = 0  # no missing momentum at all
    for column, tag in zip((8, 12, 16, 20), (2.173, 2.215, 2.548, 3.102), strict=True):
        low[:, column] = rng.choice([0, tag / 2, tag], rows)
    masses = high_level(low)
    assert np.isfinite(masses).all()
    assert (masses >= 0).all()


def test_masses_peak_where_particles_are(made):
    signal = made["label"].to_numpy() == 1

    def peak(values: np.ndarray) -> float:
        count, edge = np.histogram(values, bins=np.arange(20, 600, 5))
        return float(edge[count.argmax()] + 2.5)

    assert abs(peak(mass(made, "m_jj")) - 80.4) < 6
    assert abs(peak(mass(made, "m_bb")[signal]) - 115) < 12  # b jets lose some of 125 GeV
    assert peak(mass(made, "m_bb")[~signal]) < 105  # no resonance: nothing there
    assert abs(peak(mass(made, "m_jjj")[~signal]) - M_TOP) < 10
    assert abs(peak(mass(made, "m_wwbb")[signal]) - 425) < 25
    m_lv = mass(made, "m_lv")
    assert (m_lv > M_W * 0.999).all()
    assert np.isclose(m_lv, M_W, rtol=1e-3).mean() > 0.6


# ---- what a model can learn ----------------------------------------------------------------


def test_classes_are_as_hard_to_tell_apart_as_those_of_higgs(made):
    label = made["label"].to_numpy()
    x, y, x_test, y_test = (
        part
        for half in (slice(0, 10_000), slice(30_000, 60_000))
        for part in (columns(made, FEATURES)[half], label[half])
    )
    mean, scale = x.mean(axis=0), x.std(axis=0)
    x, x_test = (x - mean) / scale, (x_test - mean) / scale

    def auroc(model, features: slice) -> float:
        model.fit(x[:, features], y)
        return float(roc_auc_score(y_test, model.predict_proba(x_test[:, features])[:, 1]))

    low = auroc(LogisticRegression(), slice(0, 21))
    every = auroc(LogisticRegression(), slice(0, 28))
    boosted = auroc(HistGradientBoostingClassifier(max_iter=30), slice(0, 28))
    assert low + 0.01 < every < boosted
    assert 0.75 < boosted < 0.9

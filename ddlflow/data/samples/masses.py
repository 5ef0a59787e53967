"""The columns of HIGGS: names, units, and the seven masses computed from the other 21 columns.

HIGGS is the sample of Baldi et al. 2014 (arXiv:1402.4735). Its columns are divided by constants
that UCI does not publish; those here were measured, so that made events
(``ddlflow.data.samples.collider``) and real ones (``ddlflow.data.samples.higgs``) look alike to a
model.
"""

from itertools import combinations, product

import numpy as np

from ddlflow.errors import DataError

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Indices = np.ndarray[tuple[int, ...], np.dtype[np.intp]]

JETS = [f"jet{k}_{name}" for k in (1, 2, 3, 4) for name in ("pt", "eta", "phi", "b-tag")]
LEPTON = ["lepton_pT", "lepton_eta", "lepton_phi", "missing_energy_magnitude", "missing_energy_phi"]
LOW_LEVEL = LEPTON + JETS
HIGH_LEVEL = ["m_jj", "m_jjj", "m_lv", "m_jlv", "m_bb", "m_wbb", "m_wwbb"]
FEATURES = LOW_LEVEL + HIGH_LEVEL
LABEL = "label"

# What a column is divided by: GeV for momenta and masses, radians, pseudorapidity.
# Source: measured for this file on 7,000 UCI events. Where two jets are tagged, m_bb of those two
# as massless jets fits within 0.05 % with these ratios; m_W = 80.4 GeV in m_lv sets the GeV.
LEPTON_PT, LEPTON_ETA, MET, PHI = 54.63, 1.0274, 58.24, float(np.pi / 1.7435)
JET_PT = np.array([[109.1], [79.42], [56.94], [41.08]], np.float32)
JET_ETA = np.array([[1.0099], [1.0293], [1.0985], [1.2008]], np.float32)
TAG = np.array([[2.173], [2.215], [2.548], [3.102]], np.float32)  # tight; loose is half; 0 is none
MASS = np.array([[87.67], [179.75], [81.43], [195.1], [126.55], [336.2], [511.4]], np.float32)
M_W, M_TOP = 80.4, 173.0  # GeV

# Jets by tag, then by pT: [4, 81], for each combination of four levels 0, 1, 2.
_BY_TAG = np.array(
    [np.argsort([-v for v in levels], kind="stable") for levels in product((0, 1, 2), repeat=4)]
).T
_PAIRS = list(combinations(range(6), 2))  # of 0 lepton, 1 neutrino, 2 b1, 3 b2, 4 j1, 5 j2


def high_level(low: np.ndarray) -> Floats:
    """The seven masses of HIGGS from its 21 low-level features.

    All particles are massless. b1, b2 are the two jets with the highest b-tag (the harder first
    where tags are equal), j1, j2 the others. The neutrino has the missing momentum, and the
    pseudorapidity that gives the lepton and the neutrino the mass m_W: of the two solutions the one
    nearer to 0. Where there is none it has the lepton's, so that m_lv is the transverse mass.

    - ``m_jj``: j1 j2. ``m_bb``: b1 b2. ``m_lv``: lepton, neutrino. ``m_wwbb``: all six.
    - ``m_jjj``: j1 j2 and the b that brings it nearer to the top mass.
    - ``m_jlv``: lepton, neutrino and the other b.
    - ``m_wbb``: b1 b2 and, of j1 j2 and lepton neutrino, the pair that gives more.

    Args:
        low: [n, 21], in the order and the units of ``LOW_LEVEL``.

    Returns:
        [n, 7] float32, in the order and the units of ``HIGH_LEVEL``.

    Raises:
        DataError: ``low`` has another shape.

    Source: definitions found on UCI's events with two tags, where they give m_bb everywhere, and
    the others wherever the analysis took the same jets (65 %; it saw more than four) and the same
    neutrino (59 % of the events with two solutions; its rule is not in the 21 features).
    """
    if low.ndim != 2 or low.shape[1] != len(LOW_LEVEL):
        raise DataError(f"low has shape {low.shape}; expected [rows, {len(LOW_LEVEL)}].")
    columns = np.ascontiguousarray(low.T, dtype=np.float32)
    return np.ascontiguousarray(masses_of_columns(columns).T)


def masses_of_columns(low: Floats) -> Floats:
    """``high_level`` of columns: [21, n] -> [7, n].

    A mass is a root of a sum of pair masses, which loses no digits as E^2 - p^2 would in float32.
    """
    pt, up, sine, cosine = _directions(low)

    # m_W^2 = 2 pT_l pT_v (cosh d_eta - cos d_phi), solved for d_eta; `apart` is e^(d_eta / 2).
    cos_phi = 1 - 2 * np.square(sine[0] * cosine[1] - cosine[0] * sine[1])
    cosh = np.maximum(np.float32(M_W**2 / 2) / (pt[0] * pt[1]) + cos_phi, 1)
    apart = np.sqrt(cosh + np.sqrt(cosh * cosh - 1))
    up[1] = up[0] * np.where(low[1] < 0, apart, 1 / apart)
    down = 1 / up

    s = {}  # (p_i + p_k)^2 of two massless particles, GeV^2
    for i, k in _PAIRS:
        rapidity = up[i] * down[k] - up[k] * down[i]
        angle = sine[i] * cosine[k] - cosine[i] * sine[k]
        s[i, k] = pt[i] * pt[k] * (np.square(rapidity) + 4 * np.square(angle))

    jj, lv, bb = s[4, 5], s[0, 1], s[2, 3]
    b1_jj, b2_jj = s[2, 4] + s[2, 5], s[3, 4] + s[3, 5]
    b1_lv, b2_lv = s[0, 2] + s[1, 2], s[0, 3] + s[1, 3]
    top_1, top_2 = np.sqrt(jj + b1_jj), np.sqrt(jj + b2_jj)
    second = np.abs(top_2 - M_TOP) < np.abs(top_1 - M_TOP)
    with_jj, with_lv = jj + b1_jj + b2_jj, lv + b1_lv + b2_lv
    between = s[0, 4] + s[0, 5] + s[1, 4] + s[1, 5]

    masses = np.empty((len(HIGH_LEVEL), low.shape[1]), np.float32)
    masses[0] = np.sqrt(jj)
    masses[1] = np.where(second, top_2, top_1)
    masses[2] = np.sqrt(lv)
    masses[3] = np.sqrt(lv + np.where(second, b1_lv, b2_lv))
    masses[4] = np.sqrt(bb)
    masses[5] = np.sqrt(bb + np.maximum(with_jj, with_lv))
    masses[6] = np.sqrt(bb + with_jj + with_lv + between)
    masses /= MASS
    return masses


def _directions(low: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """pT in GeV, e^(eta/2), sin(phi/2), cos(phi/2), [6, n] each.

    Of lepton, neutrino, b1, b2, j1, j2; the neutrino's e^(eta/2) is left open.
    """
    rows = low.shape[1]
    order = jets_by_tag(np.rint(2 * low[8::4] / TAG).astype(np.int8))
    pt, half_eta, half_phi = (np.empty((6, rows), np.float32) for _ in range(3))
    pt[0], half_eta[0], half_phi[0] = low[0] * LEPTON_PT, low[1] * (LEPTON_ETA / 2), low[2]
    pt[1], half_eta[1], half_phi[1] = np.maximum(low[3] * MET, 1e-3), 0, low[4]
    pt[2:] = reordered(low[5::4] * JET_PT, order)
    half_eta[2:] = reordered(low[6::4] * (JET_ETA / 2), order)
    half_phi[2:] = reordered(low[7::4], order)
    half_phi *= PHI / 2
    return pt, np.exp(half_eta), np.sin(half_phi), np.cos(half_phi)


def jets_by_tag(level: np.ndarray) -> Indices:
    """[4, n] tag levels 0, 1, 2 -> [4, n] jets in order of tag, then as they stand."""
    code = 27 * level[0] + 9 * level[1] + 3 * level[2] + level[3]
    return np.asarray(np.take(_BY_TAG, code, axis=1))


def reordered(columns: np.ndarray, order: Indices) -> np.ndarray:
    """[4, n] columns with ``out[k, row] = columns[order[k, row], row]``."""
    rows = columns.shape[1]
    return np.asarray(np.take(columns, order * rows + np.arange(rows)))

"""One block of made events: from two gluons to the 29 columns of HIGGS.

A toy of the sample of Baldi et al. 2014 (arXiv:1402.4735), every decay isotropic in its rest frame:

    signal      gg -> H0(425) -> W H+(325), H+ -> W h0(125), h0 -> b b
    background  gg -> t t, each t -> W b

One W goes to a lepton and a neutrino, the other to two quarks. The six particles are smeared as a
detector would, cut as HIGGS is cut, sorted and tagged; the seven masses come from that alone. Left
out: spin, parton densities, pile-up.

All is float32 on columns of one block, which stay in the processor's cache.
"""

from itertools import combinations

import numpy as np

from ddlflow.data.samples.blocks import BLOCK_ROWS, stream
from ddlflow.data.samples.masses import (
    JET_ETA,
    JET_PT,
    LEPTON_ETA,
    LEPTON_PT,
    M_TOP,
    M_W,
    MET,
    PHI,
    TAG,
    Floats,
    Indices,
    jets_by_tag,
    masses_of_columns,
    reordered,
)

SIGNAL_SHARE = 0.53
M_LIGHT, M_CHARGED, M_HEAVY = 125.0, 325.0, 425.0  # GeV: h0, H+, H0
WIDTH_W, WIDTH_TOP = 2.1, 1.4  # GeV
# Set so that the columns spread as those of HIGGS do and boosted trees reach about its AUROC.
RECOIL, ABOVE_THRESHOLD, RADIATED = 60.0, 155.0, 45.0  # GeV, means of exponentials
JET_NOISE, JET_FLOOR, B_LOSS = 1.0, 0.08, 0.1  # sqrt(GeV), shares of pT
LOST_QUARK, LOST_B = 0.35, 0.25  # shares of events where a radiated jet takes that one's place
TIGHT, LOOSE = (0.72, 0.03), (0.87, 0.05)  # shares of b and other jets tagged at least so

TURN = np.float32(2 * np.pi)


def _normal(rng: np.random.Generator, *shape: int) -> Floats:
    """Standard normal numbers by Box and Muller: three times as fast as numpy's own here."""
    half = -(-int(np.prod(shape)) // 2)
    radius = np.sqrt(-2 * np.log(1 - rng.random(half, np.float32)))
    angle = TURN * rng.random(half, np.float32)
    both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return both[: int(np.prod(shape))].reshape(shape)


def _exponential(rng: np.random.Generator, *shape: int) -> Floats:
    """Exponential numbers of mean 1."""
    return -np.log(1 - rng.random(shape, np.float32))


def _resonance(rng: np.random.Generator, mass: float, width: float, rows: int) -> Floats:
    """[rows] masses from a Breit-Wigner shape cut off at 8 widths."""
    angle = (rng.random(rows, np.float32) - 0.5) * np.float32(0.96 * np.pi)
    return np.asarray(mass + width / 2 * np.tan(angle))


def _produce(rng: np.random.Generator, mass: Floats | float, rows: int) -> Floats:
    """[4, rows] (E, x, y, z) of the first particle: along the beam, and recoiling a little."""
    up = np.exp(0.9 * _normal(rng, rows))
    pt = RECOIL * _exponential(rng, rows)
    phi = TURN * rng.random(rows, np.float32)
    transverse = np.sqrt(mass * mass + pt * pt) / 2
    return np.stack(
        [transverse * (up + 1 / up), pt * np.cos(phi), pt * np.sin(phi), transverse * (up - 1 / up)]
    )


def _decay(
    rng: np.random.Generator,
    parent: Floats,
    mass: Floats | float,
    mass_1: Floats | float = 0.0,
    mass_2: Floats | float = 0.0,
) -> tuple[Floats, Floats]:
    """Two particles [4, rows] from one, back to back in any direction of its rest frame."""
    rows = parent.shape[1]
    energy = (mass * mass + mass_1 * mass_1 - mass_2 * mass_2) / (2 * mass)
    momentum = np.sqrt(np.maximum(energy * energy - mass_1 * mass_1, 0))
    cosine = 2 * rng.random(rows, np.float32) - 1
    phi = TURN * rng.random(rows, np.float32)
    across = momentum * np.sqrt(1 - cosine * cosine)
    rest = np.stack([across * np.cos(phi), across * np.sin(phi), momentum * cosine])
    overlap = (parent[1] * rest[0] + parent[2] * rest[1] + parent[3] * rest[2]) / mass
    first = np.empty_like(parent)
    first[0] = parent[0] * (energy / mass) + overlap
    first[1:] = rest + parent[1:] * (overlap / (parent[0] + mass) + energy / mass)
    return first, parent - first


def _particles(rng: np.random.Generator, signal: bool, rows: int) -> Floats:
    """[6, 3, rows] momenta in GeV: lepton, b, b, quark, quark, neutrino."""
    w_1, w_2 = (_resonance(rng, M_W, WIDTH_W, rows) for _ in range(2))
    if signal:
        p_1, charged = _decay(rng, _produce(rng, M_HEAVY, rows), M_HEAVY, w_1, M_CHARGED)
        p_2, light = _decay(rng, charged, M_CHARGED, w_2, M_LIGHT)
        b_1, b_2 = _decay(rng, light, M_LIGHT)
        swap = rng.random(rows, np.float32) < 0.5  # either W may be the one with the lepton
        p_1, p_2 = np.where(swap, p_2, p_1), np.where(swap, p_1, p_2)
        w_1, w_2 = np.where(swap, w_2, w_1), np.where(swap, w_1, w_2)
    else:
        t_1, t_2 = (_resonance(rng, M_TOP, WIDTH_TOP, rows) for _ in range(2))
        both = t_1 + t_2 + 2 + ABOVE_THRESHOLD * _exponential(rng, rows)
        top_1, top_2 = _decay(rng, _produce(rng, both, rows), both, t_1, t_2)
        p_1, b_1 = _decay(rng, top_1, t_1, w_1)
        p_2, b_2 = _decay(rng, top_2, t_2, w_2)
    lepton, neutrino = _decay(rng, p_1, w_1)
    quark_1, quark_2 = _decay(rng, p_2, w_2)
    return np.stack([p[1:] for p in (lepton, b_1, b_2, quark_1, quark_2, neutrino)])


def _radiate(rng: np.random.Generator, momenta: Floats) -> None:
    """In some events a radiated jet takes the place of a quark's or a b's, in place."""
    rows = momenta.shape[2]
    for particle, share in ((2, LOST_B), (4, LOST_QUARK)):
        lost = np.flatnonzero(rng.random(rows, np.float32) < share)
        pt = 15 + RADIATED * _exponential(rng, len(lost))
        eta = 5.6 * rng.random(len(lost), np.float32) - 2.8
        phi = TURN * rng.random(len(lost), np.float32)
        momenta[particle][:, lost] = pt * np.stack([np.cos(phi), np.sin(phi), np.sinh(eta)])


def _observe(rng: np.random.Generator, momenta: Floats) -> Floats:
    """[21, kept] what the detector reports of those events that pass the cuts of HIGGS."""
    seen = momenta[:5]
    true_pt = np.sqrt(np.square(seen[:, 0]) + np.square(seen[:, 1]))
    response = 1 + np.concatenate(
        [
            0.02 * _normal(rng, 1, seen.shape[2]),
            np.sqrt(JET_NOISE**2 / true_pt[1:] + JET_FLOOR**2) * _normal(rng, 4, seen.shape[2]),
        ]
    )
    response[1:3] -= B_LOSS * _exponential(rng, 2, seen.shape[2])  # neutrinos inside the b jet
    response = np.maximum(response, 0.1)
    pt = true_pt * response
    steep = np.abs(seen[:, 2]) / true_pt  # sinh |eta|
    cut = np.sinh(np.array([[2.5], [3], [3], [3], [3]], np.float32))
    kept = np.flatnonzero(((pt > 15) & (steep < cut)).all(axis=0))

    momenta, pt, steep = (np.take(a, kept, axis=-1) for a in (momenta, pt, steep))
    response = np.take(response, kept, axis=-1)
    seen, rows = momenta[:5], len(kept)
    eta = np.copysign(np.log(steep + np.sqrt(1 + steep * steep)), seen[:, 2])
    phi = np.arctan2(seen[:, 1], seen[:, 0])
    eta[1:] += 0.02 * _normal(rng, 4, rows)
    phi[1:] += 0.02 * _normal(rng, 4, rows)
    phi -= TURN * np.rint(phi / TURN)
    # What is measured too low is missing; the rest of the event adds 8 GeV of noise an axis.
    missing = momenta[5, :2] + 8 * _normal(rng, 2, rows)
    for particle in range(5):
        missing += seen[particle, :2] * (1 - response[particle])

    low = np.empty((21, rows), np.float32)
    low[0], low[1], low[2] = pt[0] / LEPTON_PT, eta[0] / LEPTON_ETA, phi[0] / PHI
    low[3] = np.sqrt(np.square(missing[0]) + np.square(missing[1])) / MET
    low[4] = np.arctan2(missing[1], missing[0]) / PHI
    order = _by_pt(pt[1:])
    low[5::4] = reordered(pt[1:], order) / JET_PT
    low[6::4] = reordered(eta[1:], order) / JET_ETA
    low[7::4] = reordered(phi[1:], order) / PHI
    low[8::4] = _tags(rng, order) * (TAG / 2)
    return low


def _by_pt(pt: Floats) -> Indices:
    """[4, n] jets in order of falling pT."""
    rank = np.zeros(pt.shape, np.intp)
    for i, k in combinations(range(4), 2):
        softer = pt[i] < pt[k]
        rank[i] += softer
        rank[k] += ~softer
    order = np.empty_like(rank)
    rows = pt.shape[1]
    for jet in range(4):
        order.reshape(-1)[rank[jet] * rows + np.arange(rows)] = jet
    return order


def _tags(rng: np.random.Generator, order: Indices) -> np.ndarray:
    """[4, n] levels 0 none, 1 loose, 2 tight; jets 0 and 1 are b. HIGGS has no event with three."""
    luck = rng.random(order.shape, np.float32)
    is_b = order < 2
    level = (luck < np.where(is_b, *TIGHT)).astype(np.int8) + (luck < np.where(is_b, *LOOSE))
    rows = np.arange(order.shape[1])
    for surplus in jets_by_tag(level)[2:]:
        level[surplus, rows] = 0
    return level


def _draw_class(seed: int, block: int, signal: bool, rows: int) -> Floats:
    """[21, rows] events of one class."""
    rng = stream(seed, block, 1 + signal)
    kept: list[Floats] = []
    missing = rows
    while missing > 0:
        momenta = _particles(rng, signal, 200 + int(missing / 0.62))
        _radiate(rng, momenta)
        low = _observe(rng, momenta)
        kept.append(low[:, :missing])
        missing -= kept[-1].shape[1]
    return np.concatenate(kept, axis=1) if kept else np.empty((21, 0), np.float32)


def draw_block(seed: int, block: int) -> Floats:
    """[29, BLOCK_ROWS] events of one block: the label, then ``FEATURES`` in their units."""
    rng = stream(seed, block, 0)
    label = rng.random(BLOCK_ROWS, np.float32) < SIGNAL_SHARE
    num_signal = int(label.sum())
    both = np.concatenate(
        [
            _draw_class(seed, block, True, num_signal),
            _draw_class(seed, block, False, BLOCK_ROWS - num_signal),
        ],
        axis=1,
    )
    source = np.where(label, np.cumsum(label) - 1, num_signal + np.cumsum(~label) - 1)
    low = np.take(both, source, axis=1)
    return np.concatenate([label[None].astype(np.float32), low, masses_of_columns(low)])

"""Made tracks of charged particles in a toy detector: which of five species is each?

For demos and tests with a label of several classes, categories and missing values. A track starts
near the detector's middle and flies straight to one of three regions, each with instruments of its
own; ``ddlflow.data.samples.generators`` writes the files. Columns:

    track        number of the row; no feature
    species      label: electron, muon, pion, kaon, proton, in shares from 8 to 50 %
    p_gev        momentum by the curvature, GeV
    theta        polar angle, rad
    dedx_kev_cm  energy lost in argon, keV/cm; read by electronics that each sector calibrates
    tof_ns       time of flight L / (beta c), ns, beta = p / sqrt(p^2 + m^2); NaN: dead channel
    photons      Cherenkov photons counted in the region's radiator; none below beta = 1/n
    e_over_p     energy in the calorimeter over p_gev; NaN: dead channel
    region       category: barrel, endcap, forward; sets the path, the radiator, the resolutions
    trigger      category: what started the readout, a weak hint; ``test-001`` ... are rare
    sector       category, 0 to 11: 30 degrees each, with an offset in time and a gain of its own

Masses and formulas: Particle Data Group, Review of Particle Physics (2024). Shares, spectra and
resolutions are invented, of the size that detectors at colliders have. Left out: bending of the
path, decays in flight, showers before the calorimeter.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ddlflow.data.samples.blocks import BLOCK_ROWS, rows_of_blocks, stream

VERSION = 1  # raise it when the same (seed, row) gives another track
REPEATING = ["species", "photons", "region", "trigger", "sector"]  # columns of few values
SCHEMA = pa.schema(
    {
        "track": pa.int64(),
        "species": pa.string(),
        "p_gev": pa.float32(),
        "theta": pa.float32(),
        "dedx_kev_cm": pa.float32(),
        "tof_ns": pa.float32(),
        "photons": pa.int32(),
        "e_over_p": pa.float32(),
        "region": pa.string(),
        "trigger": pa.string(),
        "sector": pa.int32(),
    }
)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# ---- the species -----------------------------------------------------------------------------

SPECIES = ["electron", "muon", "pion", "kaon", "proton"]
ELECTRON, MUON = 0, 1
MASS = np.array([0.51099895e-3, 0.1056583755, 0.13957039, 0.493677, 0.93827209])  # GeV
SHARE = np.array([0.12, 0.08, 0.50, 0.18, 0.12])
# Transverse momentum: LOWEST + SCALE * Lomax(STEEPNESS), a power law as hadron colliders see it.
LOWEST, STEEPNESS = 0.15, 5.0  # GeV
SCALE = np.array([2.5, 4.0, 2.2, 3.2, 4.0])  # GeV
ETA_MOST = 2.6  # pseudorapidity, uniform up to here

# ---- the detector: one value a region ----------------------------------------------------------

REGIONS = ["barrel", "endcap", "forward"]
BARREL, ENDCAP, FORWARD = range(3)
RADIUS, HALF_LENGTH, ENDCAP_Z, ENDCAP_HOLE, FORWARD_Z = 1.2, 1.4, 1.6, 0.55, 4.0  # m
VERTEX_Z = 0.03  # m, spread of the tracks' start along the beam, which no column tells
P_NOISE = np.array([0.008, 0.012, 0.02])  # share of p; LEVER more for each GeV
P_LEVER = np.array([0.002, 0.004, 0.006])
DEDX_NOISE = np.array([0.055, 0.07, 0.09])  # spread of the logarithm of a truncated mean
TIME_NOISE = np.array([0.08, 0.10, 0.13])  # ns
INDEX = np.array([1.05, 1.03, 1.0014])  # refractive: two aerogels, then a gas
MOST_PHOTONS = np.array([14.0, 11.0, 20.0])  # counted at beta = 1
DARK_COUNTS = 0.4  # photons that are none
CALORIMETER_NOISE = np.array([0.10, 0.12, 0.20])  # sqrt(GeV)
DEAD_TIME, DEAD_CALORIMETER = 0.04, 0.025  # shares of channels

# One value a sector: what its calibration has missed.
TIME_OFFSET = np.array([21, -34, 8, 42, -17, -46, 30, -5, 13, -28, 49, -39]) / 100  # ns
GAIN = 1 + np.array([-4, 13, 7, -15, 2, 10, -11, 16, -8, -1, 5, -13]) / 100

# ---- the triggers ------------------------------------------------------------------------------

NUM_RARE = 80
TRIGGERS = [
    *("minimum-bias", "calorimeter", "muon-chambers", "two-tracks", "displaced"),
    *(f"test-{number:03d}" for number in range(1, NUM_RARE + 1)),
]
# Shares of the first five for each species; what is left goes to the tests, 2 %.
TRIGGER_SHARE = np.array(
    [
        [0.43, 0.32, 0.04, 0.13, 0.06],
        [0.43, 0.06, 0.30, 0.13, 0.06],
        [0.58, 0.14, 0.06, 0.14, 0.06],
        [0.50, 0.12, 0.06, 0.12, 0.18],
        [0.56, 0.16, 0.02, 0.16, 0.08],
    ]
)
RARITY = 1.6  # test k is started k^-RARITY times as often as the first

SPEED_OF_LIGHT = 0.299792458  # m/ns


def events(rows: int, seed: int = 1, *, first: int = 0) -> pa.Table:
    """Tracks ``first`` to ``first + rows`` as a table of ``SCHEMA``.

    Peak memory is that of the table and of one block.
    """
    return rows_of_blocks(_draw_block, rows, seed, first)


def energy_loss(p: Floats, mass: Floats | float) -> Floats:
    """Energy that a charged particle loses in argon gas, of collisions up to 10 keV each.

    The cut leaves out rare hard collisions, as the truncated mean of a tracking chamber does, so
    the curve falls as 1/beta^2, has its least value near p = 3.5 m, and rises to a plateau.

    Args:
        p: momenta [n], GeV.
        mass: GeV, one or [n].

    Returns:
        [n] keV/cm at 20 degrees Celsius and 1 atm.

    Source: PDG, Passage of Particles Through Matter, restricted energy loss; density effect with
    the parameters for argon of Sternheimer, Berger and Seltzer, At. Data Nucl. Data Tables 30
    (1984) 261. Applied to electrons too, whose own formula differs by less than the noise.
    """
    k, z_over_a, density = 0.307075, 18 / 39.948, 1.662e-3  # MeV cm^2/mol, mol/g, g/cm^3
    electron, excitation, cut = 0.51099895, 188e-6, 0.01  # MeV
    beta_gamma = p / mass
    gamma = np.sqrt(1 + beta_gamma**2)
    beta2 = (beta_gamma / gamma) ** 2
    ratio = MASS[ELECTRON] / mass
    most = 2 * electron * beta_gamma**2 / (1 + 2 * gamma * ratio + ratio**2)
    upper = np.minimum(cut, most)

    x, bar, x0, x1, a, power = np.log10(beta_gamma), 11.9480, 1.7635, 4.4855, 0.19714, 2.9618
    delta = 2 * np.log(10) * x - bar + a * np.maximum(x1 - x, 0) ** power
    delta = np.where(x < x0, 0, delta)

    logarithm = np.log(2 * electron * beta_gamma**2 * upper / excitation**2)
    loss = (logarithm - beta2 * (1 + upper / most) - delta) / 2
    return np.asarray(1000 * density * k * z_over_a / beta2 * loss)


def _draw_block(seed: int, block: int) -> pa.Table:
    """The ``BLOCK_ROWS`` tracks of one block."""
    rng, rows = stream(seed, block), BLOCK_ROWS
    species = np.searchsorted(np.cumsum(SHARE), rng.random(rows)).clip(max=len(SPECIES) - 1)
    mass = MASS[species]
    pt = LOWEST + SCALE[species] * rng.pareto(STEEPNESS, rows)
    eta = ETA_MOST * (2 * rng.random(rows) - 1)
    p, theta = pt * np.cosh(eta), 2 * np.arctan(np.exp(-eta))
    beta = p / np.sqrt(p * p + mass * mass)
    region, path = _fly(rng, theta)
    sector = rng.integers(0, len(GAIN), rows)

    p_noise = np.hypot(P_NOISE[region], P_LEVER[region] * p)
    p_seen = p * np.exp(p_noise * rng.standard_normal(rows))
    dedx = energy_loss(p, mass) * GAIN[sector]
    dedx *= np.exp(DEDX_NOISE[region] * rng.standard_normal(rows))
    tof = path / (beta * SPEED_OF_LIGHT) + TIME_OFFSET[sector]
    tof += TIME_NOISE[region] * rng.standard_normal(rows)
    tof[rng.random(rows) < DEAD_TIME] = np.nan
    energy = _calorimeter(rng, species, p, region)
    energy[rng.random(rows) < DEAD_CALORIMETER] = np.nan
    columns = {
        "track": np.arange(block * rows, (block + 1) * rows),
        "species": _names(species, SPECIES),
        "p_gev": p_seen,
        "theta": theta,
        "dedx_kev_cm": dedx,
        "tof_ns": tof,
        "photons": _photons(rng, beta, region),
        "e_over_p": energy / p_seen,
        "region": _names(region, REGIONS),
        "trigger": _names(_trigger(rng, species), TRIGGERS),
        "sector": sector,
    }
    arrays = [
        pa.array(values.astype(np.float32) if field.type == pa.float32() else values, field.type)
        for field, values in zip(SCHEMA, columns.values(), strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _fly(rng: np.random.Generator, theta: Floats) -> tuple[Ints, Floats]:
    """The regions [n] that straight tracks reach, and the metres to there."""
    start = VERTEX_Z * rng.standard_normal(len(theta))
    cosine, sine = np.cos(theta), np.sin(theta)
    in_barrel = np.abs(start + RADIUS * cosine / sine) < HALF_LENGTH
    start *= np.sign(cosine)  # towards the side that the track flies to
    slope = sine / np.abs(cosine)
    in_endcap = (ENDCAP_Z - start) * slope > ENDCAP_HOLE
    region = np.where(in_barrel, BARREL, np.where(in_endcap, ENDCAP, FORWARD))
    along = np.where(in_endcap, ENDCAP_Z, FORWARD_Z) - start
    return region, np.where(in_barrel, RADIUS / sine, along / np.abs(cosine))


def _photons(rng: np.random.Generator, beta: Floats, region: Ints) -> Ints:
    """Counts [n] around their mean, which goes as sin^2 of the Cherenkov angle (Frank and Tamm)."""
    sine2 = 1 - 1 / np.square(INDEX[region] * beta)
    most = 1 - 1 / np.square(INDEX[region])
    mean = MOST_PHOTONS[region] * np.maximum(sine2, 0) / most + DARK_COUNTS
    return np.asarray(rng.poisson(mean))


def _calorimeter(rng: np.random.Generator, species: Ints, p: Floats, region: Ints) -> Floats:
    """Energies [n] in GeV: electrons give all, muons little, hadrons little or a part."""
    rows, mass = len(p), MASS[species]
    kinetic = np.sqrt(p * p + mass * mass) - mass
    passing = 0.25 * np.exp(0.25 * rng.standard_normal(rows))  # GeV, by ionization alone
    shower = kinetic * rng.beta(2.0, 2.5, rows)
    showers = rng.random(rows) < 0.65
    is_lepton = species <= MUON
    energy = np.where(showers & ~is_lepton, np.maximum(shower, passing), passing)
    energy = np.minimum(np.where(species == ELECTRON, kinetic, energy), kinetic)
    noise = np.hypot(CALORIMETER_NOISE[region] * np.sqrt(energy), 0.02 * energy)
    return np.asarray(np.maximum(energy + noise * rng.standard_normal(rows), 0))


def _trigger(rng: np.random.Generator, species: Ints) -> Ints:
    """Triggers [n] by the species' shares."""
    often = np.arange(1, NUM_RARE + 1) ** -RARITY
    tests = (1 - TRIGGER_SHARE.sum(axis=1, keepdims=True)) * often / often.sum()
    upto = np.cumsum(np.concatenate([TRIGGER_SHARE, tests], axis=1), axis=1)
    luck = rng.random(len(species))
    chosen = np.zeros(len(species), np.int64)
    for number, bounds in enumerate(upto):
        of_species = species == number
        chosen[of_species] = np.searchsorted(bounds, luck[of_species])
    return chosen.clip(max=len(TRIGGERS) - 1)


def _names(codes: Ints, names: list[str]) -> npt.NDArray[np.object_]:
    return np.array(names, dtype=object)[codes]

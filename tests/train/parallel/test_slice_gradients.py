"""The bit question: a slice's gradient depends on nothing that was computed before it."""

import pytest
import torch

from ddlflow.models import build
from ddlflow.spec import pipeline
from ddlflow.train.tasks.table import task_for

ROWS, SLICES = 403, 4
MODELS = {
    "linear": pipeline.LinearSection(use="linear"),
    "mlp": pipeline.MlpSection(use="mlp", dropout=0.3),
    "deep mlp": pipeline.MlpSection(use="mlp", hidden=[64, 32], activation="gelu", batch_norm=True),
}


class Bench:
    """A model over made rows; the gradient of each slice, computed apart."""

    def __init__(self, spec):
        torch.manual_seed(0)
        self.model = build(spec, num_features=28, category_sizes=[6, 90], num_outputs=1)
        self.start = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.features = torch.randn(ROWS, 28)
        self.codes = torch.stack([torch.randint(n, (ROWS,)) for n in (6, 90)], dim=1)
        self.labels = torch.rand(ROWS).round()

    def gradient(self, number, *, moved=False):
        """Of one slice; ``moved``: from a copy of its rows instead of a view of all."""
        cut = slice(ROWS * number // SLICES, ROWS * (number + 1) // SLICES)
        parts = [tensor[cut] for tensor in (self.features, self.codes, self.labels)]
        features, codes, labels = [part.clone() for part in parts] if moved else parts
        self.model.load_state_dict(self.start)
        self.model.zero_grad()
        torch.manual_seed(number)
        task_for("binary").criterion.sum(self.model(features, codes), labels).backward()
        return torch.cat([p.grad.flatten() for p in self.model.parameters()])


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"], autouse=True)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", MODELS)
def test_same_bits_whatever_was_computed_before(name):
    bench = Bench(MODELS[name])
    alone = [Bench(MODELS[name]).gradient(number) for number in range(SLICES)]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 2, 3, 3, 0, 1]):
        for number in order:
            assert torch.equal(bench.gradient(number), alone[number])
            assert torch.equal(bench.gradient(number, moved=True), alone[number])


@pytest.mark.parametrize("name", MODELS)
def test_a_sum_in_fixed_order_is_the_same_for_any_split_among_ranks(name):
    def tree(ranks):
        found = {number: rank.gradient(number) for number, rank in enumerate(ranks)}
        return (found[0] + found[1]) + (found[2] + found[3])

    one, two, three, four = (Bench(MODELS[name]) for _ in range(4))
    sums = [tree([one] * 4), tree([one, one, two, two]), tree([one, two, three, four])]
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])

"""Sources of text, parsed once for all passes and for all data sets that are made of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from ddlflow.data.roles import Roles
from ddlflow.data.sources.converted import place_of
from ddlflow.data.sources.derive import needed
from ddlflow.data.sources.source import Source
from ddlflow.redact import redacted
from ddlflow.store.files import writing
from ddlflow.store.store import Store


@dataclass(frozen=True, slots=True)
class ConvertedSources:
    """The sources of a data set: ``data.source``, and ``data.test_source`` if there is one.

    Attributes:
        sources: they keep as Parquet what they parse.
        places: where, in the same order.
    """

    sources: tuple[Source, ...]
    places: tuple[Store, ...]

    def forget(self) -> None:
        """Removes what is kept of them."""
        for place in self.places:
            place.remove_all()


def convert_sources(sources: Sequence[Source], roles: Roles, store: Store) -> ConvertedSources:
    """Sources that keep what they parse in a store.

    Args:
        sources: the first is ``data.source``, another ``data.test_source``.
        roles: which columns are read of them.
        store: that every worker sees.

    Raises:
        DdlflowError: the store failed.
    """
    with writing(store.location):
        places = [place_of(store, redacted(one.address), one.fingerprint) for one in sources]
    kept = []
    for number, (source, place) in enumerate(zip(sources, places, strict=True)):
        keys = roles.keys(is_test=number > 0)
        own = needed([*keys, *roles.numeric, *roles.tensor_names], source.derived)[1]
        kept.append(source.converted(place, own))
    return ConvertedSources(tuple(kept), tuple(places))

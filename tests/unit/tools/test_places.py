"""Places for runs, and how many of them one principal may have."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from kala.errors import ResourceExhaustedError
from services.tools.files.model import Owner
from services.tools.places import Places

ANN, BEN = Owner("acme", "keys/ann"), Owner("acme", "keys/ben")


@pytest.mark.parametrize(("most", "of_one"), [(1, 1), (2, 1), (3, 2), (8, 6), (256, 192)])
def test_one_principal_leaves_places_to_others(most: int, of_one: int) -> None:
    places = Places(most)
    with ExitStack() as stack:
        for _ in range(of_one):
            stack.enter_context(places.place(ANN))
        with pytest.raises(ResourceExhaustedError) as caught, places.place(ANN):
            pass
        assert caught.value.reason == "RUNS_EXHAUSTED"
        assert caught.value.retry_after_seconds
        for _ in range(most - of_one):
            stack.enter_context(places.place(BEN))
        with pytest.raises(ResourceExhaustedError, match=f"{most} runs are under way"), places.place(BEN):
            pass
    with places.place(ANN):
        pass


def test_the_same_name_in_another_tenant_is_somebody_else() -> None:
    places = Places(2)
    with places.place(ANN), places.place(Owner("other", ANN.principal)):
        pass


def test_a_run_that_fails_gives_its_place_back() -> None:
    places = Places(1)
    with pytest.raises(KeyError), places.place(ANN):
        raise KeyError
    with places.place(BEN):
        pass

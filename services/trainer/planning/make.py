"""Makes the planner of a trainer from its settings."""

from __future__ import annotations

from services.trainer.config import TrainerSettings
from services.trainer.cores import usable_cores
from services.trainer.places import Places
from services.trainer.planning.bases import Bases
from services.trainer.planning.catalogue import PACKAGED_PROFILES, StoredCatalogue
from services.trainer.planning.planner import Planner
from services.trainer.planning.site import Site, machine_memory_bytes
from services.trainer.store.store import Store


def make_planner(settings: TrainerSettings, store: Store, bases: Bases | None = None) -> Planner:
    """A planner that names what this trainer has."""
    directories = [PACKAGED_PROFILES, *([settings.profiles_dir] if settings.profiles_dir else [])]
    site = Site(
        memory_bytes=settings.memory_bytes or machine_memory_bytes(),
        cpus_per_worker=float(settings.threads or usable_cores()),
        has_cluster=settings.ray_address is not None,
        allows_demo_profiles=settings.accept_demo_profiles,
        has_mlflow=settings.mlflow_uri is not None,
    )
    return Planner(bases or make_bases(settings), StoredCatalogue(store, *directories), site)


def make_bases(settings: TrainerSettings) -> Bases:
    """The bases that this trainer may train."""
    return Bases(settings.bases_dir, settings.embedded_dir, exports=Places(settings.state_dir).exports)
